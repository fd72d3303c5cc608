"""A differential fuzzer: random imperative programs, run eagerly and under `terra.function`.

    python -m tests.fuzz --first=0 --count=1500

`tree` is the shape of a program, `expressions` the table of ops, `generator` and `compound` write a
program from a seed, `harness` runs and compares it, `shrink` makes a failing one small, `batch`
runs many of them in processes of their own.
"""
