"""Small programs whose Python takes another way in every call, for the tests of control flow.

Each `make_*(wrap)` builds a `CaseProgram`, whose calls are numbered *cases*:

    program = make_branches(terra.function, num_branches=3)
    program.step(5)    # the third and the first branch: 0b101
    program.step()     # the program draws a case itself, from its own generator

A case stands for one input of the program's Python: a tree, a length, a list of choices. Where the
program trains, the way that a case takes may change with the weights, but no way is rare: a few
rounds over all cases have seen what there is to see. What a step returns has the program's Python
side effects in it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from programs import normal

LEARNING_RATE = 0.05
MIN_LENGTH, MAX_LENGTH = 5, 30


class CaseProgram(NamedTuple):
    """A step that takes the number of a case, or None to draw one, and the variables it leaves."""

    step: Callable[..., Any]
    variables: Sequence[Any]
    num_cases: int


def number_cases(run_case, variables, num_cases, seed=1):
    """Make a CaseProgram of `run_case(case)`, cases drawn evenly."""
    rng = np.random.default_rng(seed)

    def step(case=None):
        return run_case(int(rng.integers(num_cases)) if case is None else case)

    return CaseProgram(step, variables, num_cases)


def descend(tape, loss, variables):
    """Take a step of gradient descent on the variables that the loss depends on."""
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        if gradient is None:
            continue
        if isinstance(gradient, tf.IndexedSlices):
            values = LEARNING_RATE * gradient.values
            variable.scatter_sub(tf.IndexedSlices(values, gradient.indices))
        else:
            variable.assign_sub(LEARNING_RATE * gradient)


def bits(case, num_bits):
    """Return the lowest bits of a number as bools, lowest first."""
    return [bool(case >> j & 1) for j in range(num_bits)]


# ------------------------------------------------------------- recursion, search


def draw_tree(rng, num_leaves, num_words):
    """Draw a binary tree of nested pairs; a leaf is a word's number."""
    if num_leaves == 1:
        return int(rng.integers(num_words))
    num_left = int(rng.integers(1, num_leaves))
    return (
        draw_tree(rng, num_left, num_words),
        draw_tree(rng, num_leaves - num_left, num_words),
    )


def make_tree_lstm(wrap, num_trees=8, max_leaves=5):
    """Train a binary Tree-LSTM by recursion over nested pairs; a case is a tree."""
    rng = np.random.default_rng(0)
    width, num_words, num_classes = 8, 10, 3
    embedding = tf.Variable(normal(rng, num_words, width))
    compose = tf.Variable(normal(rng, 2 * width, 5 * width))
    bias = tf.Variable(tf.zeros([5 * width]))
    head = tf.Variable(normal(rng, width, num_classes))
    variables = [embedding, compose, bias, head]
    sizes = rng.integers(1, max_leaves + 1, num_trees)
    trees = [draw_tree(rng, int(size), num_words) for size in sizes]
    labels = rng.integers(0, num_classes, num_trees).astype(np.int32)

    def encode(tree, words):
        if isinstance(tree, int):
            words.append(tree)
            leaf = tf.nn.embedding_lookup(embedding, [tree])
            return tf.tanh(leaf), leaf
        (h_left, c_left), (h_right, c_right) = (encode(child, words) for child in tree)
        gates = tf.concat([h_left, h_right], axis=1) @ compose + bias
        take, keep_left, keep_right, give, new = tf.split(gates, 5, axis=1)
        cell = tf.sigmoid(keep_left) * c_left + tf.sigmoid(keep_right) * c_right
        cell += tf.sigmoid(take) * tf.tanh(new)
        return tf.sigmoid(give) * tf.tanh(cell), cell

    @wrap
    def train(tree, label):
        words = []
        with tf.GradientTape() as tape:
            h, _ = encode(tree, words)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(label, h @ head)[0]
        descend(tape, loss, variables)
        return loss, words

    return number_cases(
        lambda case: train(trees[case], tf.constant(labels[case : case + 1])), variables, num_trees
    )


def make_beam_search(wrap, num_inputs=8, beam=2, max_length=4):
    """Search with lists of hypotheses, sorted in Python by scores read; a case is an input."""
    rng = np.random.default_rng(2)
    width, num_tokens, start, end = 8, 5, 0, 1
    embedding = tf.Variable(normal(rng, num_tokens, width, scale=1.0))
    recurrent = tf.Variable(normal(rng, width, width, scale=0.5))
    output = tf.Variable(normal(rng, width, num_tokens, scale=1.0))
    contexts = [normal(rng, 1, width, scale=2.0) for _ in range(num_inputs)]

    def extend(score, tokens, state):
        state = tf.tanh(tf.nn.embedding_lookup(embedding, tokens[-1:]) + state @ recurrent)
        log_probs = tf.nn.log_softmax(state @ output)[0].numpy()
        return [(score + float(p), [*tokens, i], state) for i, p in enumerate(log_probs)]

    @wrap
    def search(context):
        alive, finished = [(0.0, [start], tf.tanh(context))], []
        for _ in range(max_length):
            candidates = [new for hypothesis in alive for new in extend(*hypothesis)]
            candidates.sort(key=lambda candidate: (-candidate[0], candidate[1]))
            alive = []
            for candidate in candidates[:beam]:
                (finished if candidate[1][-1] == end else alive).append(candidate)
            if not alive:
                break
        return max(finished + alive, key=lambda candidate: candidate[0])

    variables = [embedding, recurrent, output]
    return number_cases(lambda case: search(tf.constant(contexts[case])), variables, num_inputs)


# ---------------------------------------------------------------- layers or not


def make_early_exit(wrap, num_inputs=12, num_blocks=4):
    """Leave a network at the first head that is sure enough, and train that one."""
    rng = np.random.default_rng(0)
    width, num_classes, sure, less_per_block = 8, 3, 0.7, 0.1
    blocks = [tf.Variable(normal(rng, width, width, scale=0.3)) for _ in range(num_blocks)]
    heads = [tf.Variable(normal(rng, width, num_classes, scale=0.3)) for _ in range(num_blocks)]
    inputs = [normal(rng, 1, width, scale=0.3 * (1 + i % 4)) for i in range(num_inputs)]
    labels = rng.integers(0, num_classes, [num_inputs, 1]).astype(np.int32)
    variables = [*blocks, *heads]

    @wrap
    def train(x, label):
        with tf.GradientTape() as tape:
            for depth, (block, head) in enumerate(zip(blocks, heads, strict=True)):
                x = x + tf.tanh(x @ block)
                logits = x @ head
                confidence = float(tf.reduce_max(tf.nn.softmax(logits)))
                if confidence > sure - depth * less_per_block:
                    break
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)[0]
        descend(tape, loss, variables)
        return loss, depth

    def run_case(case):
        return train(tf.constant(inputs[case]), tf.constant(labels[case]))

    return number_cases(run_case, variables, num_inputs)


def make_residual_network(wrap, num_layers, forward):
    """Train `num_layers` weights and a head; `forward(x, weights, choices)` is the part between.

    A case is the number whose bits are the choices.
    """
    rng, data = np.random.default_rng(0), np.random.default_rng(2)
    width, batch = 8, 4
    weights = [tf.Variable(normal(rng, width, width, scale=0.3)) for _ in range(num_layers)]
    head = tf.Variable(normal(rng, width, 1, scale=0.3))
    variables = [*weights, head]

    @wrap
    def train(x, choices):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((forward(x, weights, choices) @ head - 1.0) ** 2)
        descend(tape, loss, variables)
        return loss

    def run_case(case):
        return train(tf.constant(normal(data, batch, width, scale=1.0)), bits(case, num_layers))

    return number_cases(run_case, variables, 2**num_layers)


def make_stochastic_depth(wrap, num_layers=8, keep=0.5):
    """Drop each residual layer at random, drawn inside of the step: its case does not matter."""
    rng = np.random.default_rng(5)

    def forward(x, weights, choices):
        del choices
        for weight in weights:
            if rng.random() < keep:
                x = x + tf.tanh(x @ weight)
        return x

    return make_residual_network(wrap, num_layers, forward)


def make_optional_blocks(wrap):
    """Eight optional blocks one after the other, each with a line of its own."""

    def forward(x, w, chosen):
        if chosen[0]:
            x = x + tf.tanh(x @ w[0])
        if chosen[1]:
            x = x * tf.sigmoid(x @ w[1])
        if chosen[2]:
            x = tf.tanh(x @ w[2]) - x
        if chosen[3]:
            x = x + tf.nn.relu(x @ w[3])
        if chosen[4]:
            x = x - tf.tanh(x @ w[4])
        if chosen[5]:
            x = tf.sigmoid(x @ w[5]) * x
        if chosen[6]:
            x = x + tf.nn.elu(x @ w[6])
        if chosen[7]:
            x = x - tf.nn.relu(x @ w[7])
        return x

    return make_residual_network(wrap, 8, forward)


def make_branches(wrap, num_branches=8):
    """Choose one of two layers, `num_branches` times."""

    def grow(x, weight):
        return x + tf.tanh(x @ weight)

    def gate(x, weight):
        return tf.sigmoid(x @ weight) * x

    def forward(x, weights, choices):
        for weight, is_first in zip(weights, choices, strict=True):
            x = grow(x, weight) if is_first else gate(x, weight)
        return x

    return make_residual_network(wrap, num_branches, forward)


# ------------------------------------------------------------------------ loops


def make_dynamic_rnn(wrap, training=False):
    """Run a cell over the first 5 to 30 of 30 inputs; a case is the length, less five."""
    rng, data = np.random.default_rng(0), np.random.default_rng(2)
    batch, num_features, width = 4, 6, 8
    from_input = tf.Variable(normal(rng, num_features, width, scale=0.3))
    from_state = tf.Variable(normal(rng, width, width, scale=0.3))
    bias = tf.Variable(tf.zeros([width]))
    head = tf.Variable(normal(rng, width, 1))
    variables = [from_input, from_state, bias, head]

    def predict(inputs, length):
        h = tf.zeros([batch, width])
        for t in range(length):
            h = tf.tanh(inputs[t] @ from_input + h @ from_state + bias)
        return h @ head

    def train(inputs, length):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((predict(inputs, length) - 1.0) ** 2)
        descend(tape, loss, variables)
        return loss

    function = wrap(train if training else predict)

    def run_case(case):
        inputs = tf.constant(normal(data, MAX_LENGTH, batch, num_features, scale=1.0))
        return function(inputs, MIN_LENGTH + case)

    return number_cases(run_case, variables, MAX_LENGTH - MIN_LENGTH + 1)


def make_nested_loops(wrap, num_tables=10):
    """Two nested loops with break, continue and else; a case is the table they run over."""
    rng = np.random.default_rng(0)
    skip, stop = 0, 3
    tables = [rng.integers(0, 4, rng.integers(1, 4, size=2)).tolist() for _ in range(num_tables)]
    weight = tf.Variable(normal(rng, 4, 4, scale=0.5))
    total_of_calls = tf.Variable(0.0)
    x_of_case = [normal(rng, 2, 4, scale=1.0) for _ in range(num_tables)]

    @wrap
    def run(x, table):
        seen, total = [], tf.constant(0.0)
        for row in table:
            for entry in row:
                if entry == skip:
                    continue
                if entry == stop:
                    break
                x = tf.tanh(x @ weight * float(entry))
            else:
                x = x + 1.0
                seen.append("whole row")
            total = total + tf.reduce_sum(x)
            if float(total) > 12.0:
                seen.append("enough")
                break
        else:
            total = -total
            seen.append("whole table")
        total_of_calls.assign_add(total)
        return x, total, seen

    def run_case(case):
        return run(tf.constant(x_of_case[case]), tables[case])

    return number_cases(run_case, [weight, total_of_calls], num_tables)


def make_generator_loop(wrap, num_plans=6):
    """Train on what a generator yields, which runs ops of its own; a case is a list of sizes."""
    rng = np.random.default_rng(0)
    plans = [rng.integers(1, 3, rng.integers(1, 5)).tolist() for _ in range(num_plans)]
    weight = tf.Variable(normal(rng, 4, 4, scale=0.5))

    def pieces(x, sizes, closed):
        begin = 0
        try:
            for size in sizes:
                yield tf.nn.l2_normalize(x[begin : begin + size], axis=1)
                begin += size
        finally:
            closed.append(begin)

    @wrap
    def train(x, sizes):
        closed, sums = [], []
        with tf.GradientTape() as tape:
            loss = tf.constant(0.0)
            for i, piece in enumerate(pieces(x, sizes, closed)):
                sums.append(tf.reduce_sum(tf.tanh(piece @ weight)))
                loss = loss + sums[-1] ** 2
                if i == 2:
                    break
            del piece
        descend(tape, loss, [weight])
        return loss, [float(value) for value in sums], closed

    x = normal(rng, 8, 4, scale=1.0)
    return number_cases(lambda case: train(tf.constant(x), plans[case]), [weight], num_plans)


def make_comprehensions(wrap, num_plans=6):
    """List, dict and generator comprehensions, and map; a case is the list they go over."""
    rng = np.random.default_rng(0)
    plans = [rng.integers(0, 4, rng.integers(1, 5)).tolist() for _ in range(num_plans)]
    weights = [tf.Variable(normal(rng, 4, 4, scale=0.5)) for _ in range(4)]

    @wrap
    def run(x, plan):
        heads = [tf.tanh(x @ weights[i]) for i in plan if i != 2]
        by_name = {f"head{i}": tf.reduce_sum(head) for i, head in enumerate(heads)}
        squares = list(map(lambda value: value * value, by_name.values()))
        total = sum((tf.sqrt(square + 1.0) for square in squares), start=tf.constant(0.0))
        large = sorted(name for name, value in by_name.items() if float(value) > 0.0)
        weights[0].assign_add(0.01 * total * tf.ones([4, 4]))
        return total, by_name, large

    x = normal(rng, 2, 4, scale=1.0)
    return number_cases(lambda case: run(tf.constant(x), plans[case]), weights, num_plans)


# ----------------------------------------------------------------------- shapes


def make_mixed_shapes(wrap, num_rows=(2, 5, 8), num_columns=(3, 6)):
    """Arguments of several batch sizes, parts of several widths, and a branch on a shape.

    A case is one pair of a number of rows and a number of columns.
    """
    rng, data = np.random.default_rng(0), np.random.default_rng(2)
    weight = tf.Variable(normal(rng, 6, 4, scale=0.5))
    kinds = [(rows, columns) for rows in num_rows for columns in num_columns]

    @wrap
    def train(x, columns):
        with tf.GradientTape() as tape:
            h = tf.tanh(x[:, :columns] @ weight[:columns])
            if h.shape[0] > 4:
                h = tf.reduce_mean(h, axis=0)  # float32[4]; the other way leaves float32[rows, 4]
            loss = tf.reduce_sum(h * h)
        descend(tape, loss, [weight])
        return loss, h, h.shape.as_list()

    def run_case(case):
        rows, columns = kinds[case]
        return train(tf.constant(normal(data, rows, 6, scale=1.0)), columns)

    return number_cases(run_case, [weight], len(kinds))
