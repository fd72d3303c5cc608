"""A differential fuzzer: random imperative programs, run eagerly and under `terra.function`.

    python -m tests.fuzz --first=0 --count=1500
    python -m tests.fuzz --first=0 --count=500 --profile=keras

`tree` is the shape of a program, `expressions` the table of ops, `generator` and `compound` write a
program from a seed, `keras_tables` and `keras_generator` one with objects of Keras; `profiles`
names the two. `harness` runs and compares a program, `shrink` makes a failing one small, `batch`
runs many of them in processes of their own.
"""
