"""Benchmarks and the demo: what terra_tf gains over eager TensorFlow, on programs one can check.

`python -m benchmarks` runs the ten programs of the Terra paper in all modes and compares them.
`python -m benchmarks.demo` trains on real images in three modes and compares them.
`python -m benchmarks.micro` measures single costs and whole steps, into `benchmarks/results/`.
`python -m benchmarks.coverage` measures how much of each conformance case runs in the graph.
`programs/` holds the training steps, which the tests run as well, at tiny sizes.
"""

import os

# TensorFlow reads this once, while it loads; its start-up notices would drown the tables.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What is measured is the steady state, however long the way there is, and every step of it counts.
os.environ.setdefault("TERRA_WEIGH_COSTS", "0")
