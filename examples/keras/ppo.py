"""Proximal policy optimization (keras.io: PPO): a buffer in NumPy, and three decorated steps."""

import time

import keras
import numpy as np
import tensorflow as tf
from cart_pole import CartPole
from common import as_written, decorator, parse_mode, report
from keras import layers

GAMMA, LAMBDA, CLIP_RATIO, TARGET_KL = 0.99, 0.97, 0.2, 0.01
POLICY_ITERATIONS = VALUE_ITERATIONS = 10


def discounted_cumulative_sums(x, discount):
    sums, total = np.zeros_like(x), 0.0
    for i in range(len(x) - 1, -1, -1):
        sums[i] = total = x[i] + discount * total
    return sums


class Buffer:
    """What was seen in an epoch, with advantages by GAE and rewards to go."""

    def __init__(self, num_observed, size):
        self.observations = np.zeros((size, num_observed), np.float32)
        self.actions = np.zeros(size, np.int32)
        self.advantages, self.rewards, self.returns, self.values, self.log_probs = np.zeros(
            (5, size), np.float32
        )
        self.pointer = self.start = 0

    def store(self, observation, action, reward, value, log_prob):
        self.observations[self.pointer], self.actions[self.pointer] = observation, action
        self.rewards[self.pointer], self.values[self.pointer] = reward, value
        self.log_probs[self.pointer] = log_prob
        self.pointer += 1

    def finish_trajectory(self, last_value=0.0):
        path = slice(self.start, self.pointer)
        rewards, values = (
            np.append(self.rewards[path], last_value), np.append(self.values[path], last_value)
        )  # fmt: skip
        deltas = rewards[:-1] + GAMMA * values[1:] - values[:-1]
        self.advantages[path] = discounted_cumulative_sums(deltas, GAMMA * LAMBDA)
        self.returns[path] = discounted_cumulative_sums(rewards, GAMMA)[:-1]
        self.start = self.pointer

    def get(self):
        self.pointer = self.start = 0
        advantages = (self.advantages - self.advantages.mean()) / self.advantages.std()
        return self.observations, self.actions, advantages, self.returns, self.log_probs


def mlp(x, sizes, output_activation=None):
    for size in sizes[:-1]:
        x = layers.Dense(size, activation="tanh")(x)
    return layers.Dense(sizes[-1], activation=output_activation)(x)


class Agent:
    def __init__(self, environment, decorate):
        self.num_actions = environment.num_actions
        observed = keras.Input((environment.num_observed,))
        self.actor = keras.Model(observed, mlp(observed, [32, 32, self.num_actions]))
        value = keras.ops.squeeze(mlp(observed, [32, 32, 1]), axis=1)
        self.critic = keras.Model(observed, value)
        self.policy_optimizer = keras.optimizers.Adam(3e-3)
        self.value_optimizer = keras.optimizers.Adam(1e-2)
        self.seed_generator = keras.random.SeedGenerator(1337)
        self.sample_action = decorate(self.sample_action)
        self.train_policy = decorate(self.train_policy)
        self.train_value_function = decorate(self.train_value_function)

    def log_probabilities(self, logits, actions):
        log_probs = keras.ops.log_softmax(logits)
        return keras.ops.sum(keras.ops.one_hot(actions, self.num_actions) * log_probs, axis=1)

    def sample_action(self, observation):
        logits = self.actor(observation)
        action = keras.random.categorical(logits, 1, seed=self.seed_generator)
        return logits, keras.ops.squeeze(action, axis=1)

    def train_policy(self, observations, actions, log_probs, advantages):
        with tf.GradientTape() as tape:
            ratio = keras.ops.exp(
                self.log_probabilities(self.actor(observations), actions) - log_probs
            )
            least = keras.ops.where(
                advantages > 0, (1 + CLIP_RATIO) * advantages, (1 - CLIP_RATIO) * advantages
            )
            policy_loss = -keras.ops.mean(keras.ops.minimum(ratio * advantages, least))
        grads = tape.gradient(policy_loss, self.actor.trainable_variables)
        self.policy_optimizer.apply_gradients(zip(grads, self.actor.trainable_variables))
        return keras.ops.mean(log_probs - self.log_probabilities(self.actor(observations), actions))

    def train_value_function(self, observations, returns):
        with tf.GradientTape() as tape:
            value_loss = keras.ops.mean((returns - self.critic(observations)) ** 2)
        grads = tape.gradient(value_loss, self.critic.trainable_variables)
        self.value_optimizer.apply_gradients(zip(grads, self.critic.trainable_variables))
        return value_loss


def run_epoch(agent, environment, buffer, num_steps):
    """Play and learn; return what was learned, and the number of calls of decorated steps."""
    observation, num_episodes, num_calls = environment.reset(), 0, num_steps
    for t in range(num_steps):
        logits, action = agent.sample_action(tf.constant(observation[None]))
        value, log_prob = (
            agent.critic(tf.constant(observation[None])), agent.log_probabilities(logits, action)
        )  # fmt: skip
        new_observation, reward, is_over = environment.step(int(action[0]))
        buffer.store(observation, action[0], reward, value[0], log_prob[0])
        observation = new_observation
        if is_over or t == num_steps - 1:
            last = 0.0 if is_over else agent.critic(tf.constant(observation[None]))[0]
            buffer.finish_trajectory(last)
            observation, num_episodes = environment.reset(), num_episodes + 1
    observations, actions, advantages, returns, log_probs = map(tf.constant, buffer.get())
    for _ in range(POLICY_ITERATIONS):
        num_calls += 1
        kl = agent.train_policy(observations, actions, log_probs, advantages)
        if kl > 1.5 * TARGET_KL:  # stopped early
            break
    for _ in range(VALUE_ITERATIONS):
        num_calls += 1
        value_loss = agent.train_value_function(observations, returns)
    learned = {
        "kl": float(kl), "value_loss": float(value_loss), "length": num_steps / num_episodes
    }  # fmt: skip
    return learned, num_calls


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    environment, num_steps = CartPole(seed=0, max_steps=200), 10 * arguments.batches
    agent = Agent(environment, decorator(arguments.mode))
    buffer = Buffer(environment.num_observed, num_steps)
    history, ms_per_call, start_s = {}, [], time.perf_counter()
    with as_written(arguments.mode):
        for _ in range(arguments.epochs):
            epoch_s = time.perf_counter()
            learned, num_calls = run_epoch(agent, environment, buffer, num_steps)
            for name, value in learned.items():
                history.setdefault(name, []).append(value)
            ms_per_call.append(1e3 * (time.perf_counter() - epoch_s) / num_calls)
        report(arguments.mode, history, time.perf_counter() - start_s, ms_per_call)
