"""More bodies for `test_switch_cases`: variables through branches, joins, feeds, kept tensors."""

import numpy as np
import tensorflow as tf
from switch_case_programs import BODIES, Body, body

# --------------------------------------------------------------------- variables

WRITES = {
    "assign": lambda variable, x: variable.assign(variable * 0.5 + x),
    "assign_constant": lambda variable, x: variable.assign(tf.zeros_like(variable)),
    "assign_add": lambda variable, x: variable.assign_add(variable * 0.1),
    "assign_sub": lambda variable, x: variable.assign_sub(tf.stack([x] * 4)),
    "scatter": lambda variable, x: variable.scatter_add(tf.IndexedSlices(x[tf.newaxis], [2])),
    "strided": lambda variable, x: variable[1].assign(x),
    "strided_column": lambda variable, x: variable[1:, 0].assign(x),
}


def _add_writes():
    """Every write in a branch, with every other in the other one, read before, after or not."""
    for first, write in WRITES.items():
        for second, other_write in [("nothing", None), *WRITES.items()]:
            BODIES[f"{first}_or_{second}"] = Body(_two_writes(write, other_write, "after"))
        for use in ("before", "inside", "never", "around"):
            BODIES[f"{first}_read_{use}"] = Body(_two_writes(write, None, use))


def _two_writes(write, other_write, use):
    def run(x, case, s):
        y = x
        if use in ("before", "around"):
            y = y + s.w[1]
        if case:
            write(s.w, x)
            if use == "inside":
                y = y + s.w[2]
        elif other_write is not None:
            other_write(s.w, x * 2.0)
        if use in ("after", "around"):
            y = y + s.w[1] * s.w[2]
        return y

    return run


_add_writes()


@body(4)
def write_then_write_again_after(x, case, s):
    if case & 1:
        s.u.assign_add(x)
    s.u.assign(s.u * 0.5)
    if case & 2:
        s.u.assign_sub(x * 0.1)
    return x


@body()
def write_before_and_inside(x, case, s):
    s.u.assign_add(x)
    if case:
        s.u.assign_add(x * 2.0)
        s.u.assign(tf.tanh(s.u))
    return s.u * 1.0


@body()
def read_variable_before_write_inside(x, case, s):
    before = s.u + 0.0
    raw = s.u.read_value()
    if case:
        s.u.assign(x)
    return before, raw, s.u.read_value()


@body()
def variables_of_one_branch_only(x, case, s):
    if case:
        s.v.assign_add(s.v * 0.1)
        return s.v[0] + x
    return s.w[0] * x


@body()
def variable_only_written_in_one_branch(x, case, s):
    if case:
        s.v.assign(tf.stack([x] * 4))
    return x * 2.0


@body(4)
def variable_chosen_by_python(x, case, s):
    chosen = (s.w, s.v)[case & 1]
    if case & 2:
        chosen.assign_add(tf.stack([x] * 4))
    return chosen[0] * 2.0


@body()
def new_variable_inside(x, case, s):
    y = x
    if case:
        fresh = tf.Variable(x)
        fresh.assign_add(x)
        y = fresh + 1.0
    return y * 2.0


@body(3)
def many_variables(x, case, s):
    if case == 1:
        s.u.assign_add(x)
        s.w.assign(s.v + x)
    elif case == 2:
        s.v.assign(s.w * 0.5)
        s.u.assign(s.v[0])
    return tf.reduce_sum(s.u) + tf.reduce_sum(s.w) + tf.reduce_sum(s.v)


@body(8, 3)
def a_variable_for_each_block(x, case, s):
    if case & 1:
        s.u.assign_add(x)
    if case & 2:
        s.v.assign_sub(s.v * 0.1)
    if case & 4:
        s.w[2].assign(x)
    return float(s.calls)


# ------------------------------------------------------------------------- joins


@body(num_rounds=8, is_branch=False)
def best_so_far(x, case, s):
    best = tf.tanh(x)
    h = best * 2.0
    for i in range(3):
        h = tf.sin(h + float(i))
        if (case + i) % 2:
            best = h
    return best * 3.0


@body(is_branch=False)
def one_of_two(x, case, s):
    a, b = tf.tanh(x), tf.exp(x)
    y = a if case else b
    return y * 2.0, y + 1.0


@body(is_branch=False)
def swap(x, case, s):
    a, b = tf.tanh(x), tf.exp(x)
    if case:
        a, b = b, a
    a = a * 2.0
    b = b + 1.0
    return a - b


@body(4, is_branch=False)
def swap_twice(x, case, s):
    a, b = tf.tanh(x), tf.exp(x)
    if case & 1:
        a, b = b, a
    c = a * 2.0
    if case & 2:
        a, b = b, a
    return c - b, a * 3.0


@body(is_branch=False)
def chosen_and_used_twice_by_one_op(x, case, s):
    h = x * 2.0
    y = tf.tanh(h)
    best = y if case else h
    return best * best


@body(is_branch=False)
def chosen_variables_value(x, case, s):
    a, b = s.w * x, s.v * x
    chosen = a if case else b  # what ends a function at once may be compiled into each branch
    return tf.reduce_sum(chosen, 0)


@body(3)
def made_in_a_branch_or_before(x, case, s):
    h = y = tf.tanh(x)
    if case == 1:
        y = h * 2.0
    elif case == 2:
        h = tf.exp(h)
    return y + h, h * 2.0


@body()
def from_outside_or_made(x, case, s):
    y = x
    if case:
        y = tf.tanh(x)
    return y * 2.0, y + x


@body(4)
def from_outside_or_made_twice(x, case, s):
    y = x
    if case & 1:
        y = tf.tanh(y)
    z = y * 2.0
    if case & 2:
        y = y + z
    return y * 3.0, z - y


@body()
def from_the_last_call_or_made(x, case, s):
    last = s.kept.pop() if s.kept else x * 0.5
    y = tf.tanh(x) if case else last
    z = y * 2.0
    s.kept.append(z)
    return z


@body(3)
def constant_captured_or_made(x, case, s):
    if s.calls == 1:
        s.captured = tf.constant(np.arange(1000, dtype=np.float32))
    y = s.captured[:3] if case == 0 else tf.ones([3]) if case == 1 else tf.exp(x)
    return y * x


@body()
def joined_and_differentiated(x, case, s):
    with tf.GradientTape() as tape:
        h = tf.reduce_sum(s.w * x, 0)
        y = tf.tanh(h)
        best = y if case else h
        loss = tf.reduce_sum(best * best)
    s.w.assign_sub(0.1 * tape.gradient(loss, s.w))
    return loss


@body()
def other_shapes(x, case, s):
    y = tf.concat([x, x], 0) if case else x
    y = tf.tanh(y)
    return tf.reduce_sum(y), tf.shape(y)


@body()
def integers_and_strings(x, case, s):
    i = tf.cast(x * 10.0, tf.int32)
    if case:
        i = i // 2
        text = tf.strings.as_string(i)
    else:
        text = tf.strings.as_string(x[:2])
    return i + 1, tf.strings.join([text, "!"])


@body()
def branch_with_bool(x, case, s):
    mask = x > 0.0
    if case:
        mask = tf.logical_not(mask)
    return tf.where(mask, x, -x)


# ------------------------------------------------------------------------- feeds


@body()
def fed_only_inside(x, case, s):
    y = s.u * 2.0
    if case:
        y = y + x
    return y


@body()
def fed_inside_and_after(x, case, s):
    y = s.u * 2.0
    if case:
        y = y + x
    return y * x


@body(4)
def fed_in_two_branches(x, case, s):
    y = s.u * 2.0
    if case & 1:
        y = y + x
    y = y * 3.0
    if case & 2:
        y = y - x
    return y


@body()
def numpy_fed_inside(x, case, s):
    y = x + 1.0
    if case:
        batch = np.full([3], s.calls, np.float32)
        big = np.full([1000], s.calls, np.float32)
        y = y * batch + tf.reduce_sum(tf.constant(big))
        batch[:] = -1.0
        big[:] = -1.0
    return y


@body()
def numpy_changed_in_place(x, case, s):
    if s.calls == 1:
        s.array = np.zeros([1000], np.float32)
    s.array += 1.0
    y = x + 1.0
    if case:
        y = y + tf.convert_to_tensor(s.array)[:3]
    s.array += 1.0
    return y


@body()
def captured_inside(x, case, s):
    if s.calls == 1:
        s.mask = tf.constant(np.linspace(0, 1, 1000, dtype=np.float32))
    y = x + 1.0
    if case:
        y = y * tf.reduce_sum(s.mask)
    return y


@body(4)
def changing_constant_inside(x, case, s):
    if case & 1:
        x = x * (0.5 + s.calls)
    if case & 2:
        x = x + float(case)
    return x


# ------------------------------------------------------------------ kept tensors


@body()
def kept_from_inside(x, case, s):
    y = x + 1.0
    if case:
        kept = tf.tanh(y)
        s.kept.append(kept)
        y = kept * 2.0
    return y, [t.numpy()[0] for t in s.kept[-4:-1]]


@body()
def kept_and_used_in_the_next_call(x, case, s):
    y = x * 2.0
    if case:
        if s.kept:
            y = y + s.kept.pop()
        s.kept.append(tf.exp(y) * 0.1)
    return y


@body()
def returned_from_inside(x, case, s):
    y = x * 2.0
    if case:
        inside = tf.tanh(y)
        return y, inside, inside * 2.0
    return y
