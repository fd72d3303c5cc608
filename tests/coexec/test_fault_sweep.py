"""At every op of a 50-op training step, force a fault: afterwards nobody can tell Terra from eager.

The program calls `point(i)` between its ops. A fault armed for index i acts there, once:
  divergence   two ops the graph does not know
  read         the value at hand, which no earlier step read (an unplanned materialization)
  exception    the user's own exception leaves the step
  op_error     the graph's own op i fails, on data that was fed
  other_error  an op the graph does not know fails
Eager and Terra run in lockstep. One function serves all indices of a kind; where it does not come
back to co-execution by itself it is reset.
"""

import numpy as np
import programs
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.testing import describe_exception, find_difference, freeze

KINDS = ["divergence", "read", "exception", "op_error", "other_error"]
NUM_LAYERS = 8
WIDTH = 8
NUM_STEPS_AFTER = 10
NUM_WARM_UP_STEPS = 4
NO_FAULT = (None, None)
DELAYS = "graph,python"


class FaultError(Exception):
    """The user's own exception."""


class FaultyTrainer:
    """A training step of some 50 ops with a visible point before each, and its Python state.

    Args:
      wrap: decorates the step.
      is_fallible: whether each point has an op that fails if the step is fed a NaN for it.
    """

    def __init__(self, wrap, is_fallible):
        rng = np.random.default_rng(0)
        self.weights = [
            tf.Variable(programs.normal(rng, WIDTH, WIDTH, scale=0.4)) for _ in range(NUM_LAYERS)
        ]
        self.biases = [tf.Variable(tf.zeros([WIDTH])) for _ in range(NUM_LAYERS)]
        self.table = tf.Variable(programs.normal(rng, 10, WIDTH))
        self.num_steps = tf.Variable(0.0)
        self.log = []
        self.kept = []
        self.armed = NO_FAULT
        self.num_points = 0
        self.is_fallible = is_fallible
        self.run = wrap(self._run)

    def variables(self):
        return [*self.weights, *self.biases, self.table, self.num_steps]

    def _point(self, x):
        index, self.num_points = self.num_points, self.num_points + 1
        self.log.append(index)
        if self.is_fallible and self.poison is not None:
            x = x + tf.raw_ops.CheckNumerics(
                tensor=self.poison[index], message=f"poison at {index}"
            )
        if self.armed[1] == index:
            x = self._fault(x, index)
        return x

    def _fault(self, x, index):
        kind = self.armed[0]
        if kind == "divergence":
            return tf.sin(x * 1.5)
        if kind == "read":
            self.log.append(x.numpy().tobytes())
        if kind == "exception":
            self.kept.append(x)
            raise FaultError(f"at {index}")
        if kind == "other_error":
            return x + tf.gather(self.table, 99)[0]
        return x

    def _run(self, x, poison):
        self.num_points = 0
        self.poison = tf.unstack(poison) if self.is_fallible else None
        self.num_steps.assign_add(1.0)
        with tf.GradientTape() as tape:
            h = x + tf.reduce_sum(self._point(tf.gather(self.table, [1, 2, 1])), axis=0)
            for weight, bias in zip(self.weights, self.biases, strict=True):
                h = self._point(h @ weight)
                h = self._point(h + bias)
                h = self._point(self._visible_gradient(tf.tanh(h)))
            h = self._point(tf.nn.dropout(h, 0.1))
            loss = self._point(tf.reduce_mean(h**2))
        gradients = tape.gradient(loss, self.weights + self.biases)
        for variable, gradient in zip(self.weights + self.biases, gradients, strict=True):
            variable.assign_sub(0.1 * self._point(gradient))
        self.num_steps.assign(self._point(self.num_steps * 1.25))
        self.log.append("end")
        return self._point(loss)

    def _visible_gradient(self, x):
        """Identity whose gradient function is a visible point too."""

        @tf.custom_gradient
        def through(y):
            return tf.identity(y), self._point

        return through(x)


class Lockstep:
    """An eager trainer and one under Terra, stepped together on the same data and seeds."""

    def __init__(self, is_fallible):
        self.trainers = [FaultyTrainer(wrap, is_fallible) for wrap in (lambda f: f, terra.function)]
        self.rng = np.random.default_rng(1)
        self.outcomes = [[], []]
        self.num_blocks = 0

    @property
    def function(self):
        return self.trainers[1].run

    def run(self, faults):
        """Run one step for each (kind, index) of `faults`, first eagerly, then under Terra."""
        blocks = [self._make_inputs(*fault) for fault in faults]
        self.num_blocks += 1
        for trainer, outcomes in zip(self.trainers, self.outcomes, strict=True):
            tf.random.set_seed(self.num_blocks)
            for fault, (x, poison) in zip(faults, blocks, strict=True):
                trainer.armed = fault
                try:
                    outcomes.append(trainer.run(tf.constant(x), tf.constant(poison)))
                except (FaultError, tf.errors.InvalidArgumentError) as error:
                    outcomes.append(describe_exception(error))

    def _make_inputs(self, kind, index):
        poison = np.zeros(64, np.float32)
        if kind == "op_error":
            poison[index] = np.nan
        return programs.normal(self.rng, 4, WIDTH, scale=1.0), poison

    def compare(self, what, *, is_error_late=False):
        """Assert that both trainers are in the same state.

        Args:
          what: what was done, for the message.
          is_error_late: whether the last step failed in the graph: Python may then have gone on for
            a while, so that its log may be longer than eager's, and nothing else may differ.
        """
        eager_log, log = [trainer.log for trainer in self.trainers]
        if is_error_late:
            del log[len(eager_log) :]
        assert log == eager_log, f"{what}: the logs differ\n{self.function.explain()}"
        eager, under_terra = [
            freeze([outcomes, trainer.variables(), trainer.kept])
            for trainer, outcomes in zip(self.trainers, self.outcomes, strict=True)
        ]
        found = find_difference(eager, under_terra, path="[outcomes, variables, kept]")
        assert not found, f"{what}: {found}\n{self.function.explain()}"
        for trainer, outcomes in zip(self.trainers, self.outcomes, strict=True):
            trainer.log.clear()
            trainer.kept.clear()
            outcomes.clear()

    def count_fallbacks(self):
        return sum(self.function.stats().fallbacks.values())

    def warm_up(self):
        """Step until the function co-executes; reset it if it does not find back by itself."""
        for _ in range(2):
            self.run([NO_FAULT] * NUM_WARM_UP_STEPS)
            if self.function.stats().phase == "co-execution":
                return
            self.function.reset()
        raise AssertionError(f"no co-execution after a reset\n{self.function.explain()}")


def count_points():
    """Run one eager step to learn how many points there are."""
    trainer = FaultyTrainer(lambda f: f, False)
    trainer.run(tf.zeros([4, WIDTH]), tf.zeros([64]))
    return trainer.num_points


def sweep(kind, indices):
    lockstep, num_noticed = Lockstep(is_fallible=kind == "op_error"), 0
    for index in indices:
        if kind in ("op_error", "other_error"):
            lockstep.function.reset()  # An op that failed once runs imperatively from then on.
        lockstep.warm_up()
        before = lockstep.function.stats()
        lockstep.run([NO_FAULT, (kind, index)])
        num_noticed += lockstep.count_fallbacks() > sum(before.fallbacks.values())
        lockstep.compare(f"{kind} at point {index}", is_error_late=kind == "op_error")
        lockstep.run([NO_FAULT] * NUM_STEPS_AFTER)
        lockstep.compare(f"the {NUM_STEPS_AFTER} steps after {kind} at point {index}")
    # At two points the value is the loss, which the step returns: to read it is no surprise. And
    # an exception where the step has ended before is one more way to the end.
    num_unsurprising = {"read": 2, "exception": len(indices) // 2}.get(kind, 0)
    assert num_noticed >= len(indices) - num_unsurprising, lockstep.function.explain()


def test_program_has_fifty_points():
    assert 45 <= count_points() <= 64


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_fault_at_every_fifth_op_leaves_what_eager_leaves(kind):
    sweep(kind, range(KINDS.index(kind), count_points(), 5))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_fault_under_random_delays_leaves_what_eager_leaves(kind):
    with terra.config.override(inject_delays=DELAYS):
        sweep(kind, range(KINDS.index(kind), count_points(), 15))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("delays", ["", DELAYS])
@pytest.mark.parametrize("kind", KINDS)
def test_fault_at_every_op_leaves_what_eager_leaves(kind, delays):
    with terra.config.override(inject_delays=delays):
        sweep(kind, range(count_points()))
