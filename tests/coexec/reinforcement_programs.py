"""Reinforcement learning with its environment in Python, for the tests of control flow.

The builders are of the kind that `control_flow_programs` describes.
"""

import numpy as np
import tensorflow as tf
from control_flow_programs import descend, number_cases
from programs import normal


class Corridor:
    """Four cells in a row, the goal at one end; an episode ends there, or after six moves."""

    NUM_CELLS, MAX_MOVES = 4, 6

    def reset(self, position):
        self.position, self.num_moves = position, 0

    def observe(self):
        """Return where the agent is, as float32[1, NUM_CELLS]."""
        return np.eye(self.NUM_CELLS, dtype=np.float32)[self.position : self.position + 1]

    def move(self, action):
        """Go one cell away from the goal (0) or to it (1); return reward and whether it is over."""
        self.position = max(0, min(self.NUM_CELLS - 1, self.position + (-1 if action else 1)))
        self.num_moves += 1
        has_arrived = self.position == 0
        return (1.0 if has_arrived else -0.1), has_arrived or self.num_moves == self.MAX_MOVES


def make_reinforce(wrap):
    """Train a policy on one episode per call (REINFORCE); a case is where the episode starts."""
    rng, environment = np.random.default_rng(0), Corridor()
    hidden = tf.Variable(normal(rng, Corridor.NUM_CELLS, 8, scale=0.5))
    output = tf.Variable(normal(rng, 8, 2, scale=0.5))

    def discount(rewards):
        returns, total = [], 0.0
        for reward in reversed(rewards):
            total = reward + 0.9 * total
            returns.append(total)
        return returns[::-1]

    @wrap
    def run_episode(start):
        environment.reset(start)
        actions, rewards, log_probs, is_over = [], [], [], False
        with tf.GradientTape() as tape:
            while not is_over:
                h = tf.tanh(tf.constant(environment.observe()) @ hidden)
                log_prob = tf.nn.log_softmax(h @ output)
                actions.append(int(rng.random() < float(tf.exp(log_prob[0, 1]))))
                log_probs.append(log_prob[0, actions[-1]])
                reward, is_over = environment.move(actions[-1])
                rewards.append(reward)
            loss = tf.constant(0.0)
            for log_prob, gain in zip(log_probs, discount(rewards), strict=True):
                loss = loss - gain * log_prob
        descend(tape, loss, [hidden, output])
        return loss, actions, environment.position

    starts = range(1, Corridor.NUM_CELLS)
    return number_cases(lambda case: run_episode(starts[case]), [hidden, output], len(starts))


def make_dqn(wrap, batch=8, sync_every=5):
    """One move and one update of Q-learning per call, with a replay buffer and a target network."""
    rng, environment, buffer = np.random.default_rng(0), Corridor(), []
    environment.reset(3)
    shapes = [(Corridor.NUM_CELLS, 8), (8, 2)]
    online = [tf.Variable(normal(rng, *shape, scale=0.5)) for shape in shapes]
    target = [tf.Variable(variable) for variable in online]
    counts = {"moves": 0, "explored": 0, "episodes": 0, "syncs": 0}

    def evaluate(weights, x):
        return tf.tanh(x @ weights[0]) @ weights[1]

    def act(before):
        if rng.random() < 0.3:
            counts["explored"] += 1
            return int(rng.integers(2))
        return int(tf.argmax(evaluate(online, tf.constant(before))[0]))

    def learn():
        chosen = [buffer[i] for i in rng.integers(len(buffer), size=batch)]
        before, action, reward, after, is_over = (np.stack(part) for part in zip(*chosen))
        best = tf.reduce_max(evaluate(target, tf.constant(after)), axis=1)
        goal = reward + 0.9 * best * (1.0 - is_over)
        with tf.GradientTape() as tape:
            values = tf.gather(evaluate(online, tf.constant(before)), action, batch_dims=1)
            loss = tf.reduce_mean((goal - values) ** 2)
        descend(tape, loss, online)
        return float(loss)

    @wrap
    def step():
        before = environment.observe()
        action = act(before)
        reward, is_over = environment.move(action)
        after = environment.observe()
        buffer.append((before[0], action, np.float32(reward), after[0], np.float32(is_over)))
        if is_over:
            environment.reset(int(rng.integers(1, Corridor.NUM_CELLS)))
            counts["episodes"] += 1
        loss = learn() if len(buffer) >= batch else None
        counts["moves"] += 1
        if counts["moves"] % sync_every == 0:
            for old, new in zip(target, online, strict=True):
                old.assign(new)
            counts["syncs"] += 1
        return loss, action, dict(counts)

    return number_cases(lambda case: step(), [*online, *target], 1)
