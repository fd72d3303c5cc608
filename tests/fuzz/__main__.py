"""Run the fuzzer: python -m tests.fuzz --first=0 --count=1500

Prints a progress line, each failing seed with what differs, and at the end a line of JSON. The exit
status is 1 if any program behaved in another way under `terra.function` than eagerly.

    python -m tests.fuzz --seed=17 --show         the program's text, and its result
    python -m tests.fuzz --seed=17 --shrink       the smallest program that still differs
    python -m tests.fuzz --profile=keras          programs with layers and optimizers of Keras
    python -m tests.fuzz --profile=functions      with tf.functions, tapes and accumulators
    python -m tests.fuzz --profile=shapes         whose shapes follow from data
    python -m tests.fuzz --profile=gradients      of gradients of gradients
    python -m tests.fuzz --profile=interrupts     some of whose calls are interrupted
    python -m tests.fuzz --reference=no_replay    compared is call replay with none, not with eager
"""

import argparse
import dataclasses
import json
import os
import sys
import traceback

# Read by TensorFlow when it is first imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TERRA_WEIGH_COSTS", "0")  # one process runs hundreds of programs

import terra_tf as terra
from tests.fuzz import batch, harness, profiles, shrink

CHILD_OPTIONS = ("inject_delays", "profile", "reference")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument(
        "--inject_delays", default="", help="who is held up at random: graph, python, graph,python"
    )
    parser.add_argument("--profile", default="plain", choices=profiles.PROFILES)
    parser.add_argument("--reference", default="eager", choices=("eager", "no_replay"))
    parser.add_argument("--json", default="", help="also write the JSON to this file")
    parser.add_argument("--seed", type=int, help="run this one program in this process")
    parser.add_argument("--show", action="store_true", help="with --seed: print the program")
    parser.add_argument("--shrink", action="store_true", help="with --seed: make it small")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def check_program(program, reference):
    """Return a row for one program; an error of the harness or of Terra's reading is a finding."""
    try:
        result = harness.check(program, reference=reference)
    except Exception:
        return {"difference": "the run itself failed\n" + traceback.format_exc()[-3000:]}
    return dataclasses.asdict(result)


def run_one(arguments):
    def still_fails(program):
        row = check_program(program, arguments.reference)
        return bool(row["difference"]) and not row.get("bad_program")

    program = profiles.generate(arguments.seed, arguments.profile)
    row = check_program(program, arguments.reference)
    if arguments.shrink and row["difference"]:
        program, num_checks = shrink.shrink(program, still_fails)
        row = check_program(program, arguments.reference)
        print(f"# {num_checks} programs tried, {program.num_statements()} statements left")
    if arguments.show or arguments.shrink:
        settings = f"synchronous_errors={program.has_synchronous_errors}"
        print(f"# {settings}, reads_each_call={program.reads_each_call}\n{program.text()}")
    print(row["difference"] or "eager and terra agree", json.dumps(row))
    return 1 if row["difference"] else 0


def run_many(arguments):
    summary = batch.Summary()
    options = [f"--{name}={getattr(arguments, name)}" for name in CHILD_OPTIONS]
    for row in batch.run_batches(arguments.first, arguments.count, arguments.jobs, options):
        summary.add(row)
        if row["difference"]:
            print(f"\nseed {row['seed']}: {row['difference']}", flush=True)
        if summary.programs % batch.BATCH_SIZE == 0 or summary.programs == arguments.count:
            found = f"{summary.programs} programs, {len(summary.failures)} differ"
            print(f"{found}, {summary.seconds:.0f} s", flush=True)
    text = json.dumps(summary.as_json())
    print(text)
    if arguments.json:
        with open(arguments.json, "w") as file:
            file.write(text + "\n")
    return 1 if summary.failures else 0


def main():
    arguments = parse_arguments()
    terra.config.inject_delays = arguments.inject_delays
    if arguments.child:
        seeds = range(arguments.first, arguments.first + arguments.count)
        batch.run_here(
            seeds,
            lambda seed: check_program(
                profiles.generate(seed, arguments.profile), arguments.reference
            ),
        )
        return 0
    return run_many(arguments) if arguments.seed is None else run_one(arguments)


if __name__ == "__main__":
    sys.exit(main())
