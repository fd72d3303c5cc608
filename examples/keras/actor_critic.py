"""An actor and a critic (keras.io: Actor Critic): a whole episode under one tape.

NumPy draws each action from what the network says, and the environment is Python: a `tf.function`
of an episode cannot be made as it is written.
"""

import time

import keras
import numpy as np
import tensorflow as tf
from cart_pole import CartPole
from common import as_written, decorator, parse_mode, report
from keras import layers

GAMMA, EPSILON = 0.99, np.finfo(np.float32).eps.item()


def make_model(num_observed, num_actions):
    inputs = keras.Input((num_observed,))
    common = layers.Dense(32, activation="relu")(inputs)
    action = layers.Dense(num_actions, activation="softmax")(common)
    return keras.Model(inputs, [action, layers.Dense(1)(common)])


class Agent:
    def __init__(self, environment, decorate):
        self.environment = environment
        self.model = make_model(environment.num_observed, environment.num_actions)
        self.optimizer = keras.optimizers.Adam(0.01)
        self.huber_loss = keras.losses.Huber()
        self.random = np.random.default_rng(0)
        self.running_reward = 0.0
        self.play = decorate(self.play)

    def play(self):
        action_log_probs, critic_values, rewards = [], [], []
        state, is_over = self.environment.reset(), False
        with tf.GradientTape() as tape:
            while not is_over:
                probabilities, value = self.model(tf.expand_dims(tf.constant(state), 0))
                critic_values.append(value[0, 0])
                weights = np.squeeze(probabilities.numpy()).astype(np.float64)
                action = self.random.choice(len(weights), p=weights / weights.sum())
                action_log_probs.append(tf.math.log(probabilities[0, action]))
                state, reward, is_over = self.environment.step(action)
                rewards.append(reward)
            self.running_reward = 0.05 * sum(rewards) + 0.95 * self.running_reward
            losses = []
            for log_prob, value, target in zip(
                action_log_probs, critic_values, self.returns(rewards)
            ):
                losses.append(-log_prob * (target - value))
                losses.append(self.huber_loss(tf.expand_dims(value, 0), tf.expand_dims(target, 0)))
            loss = sum(losses)
        grads = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply_gradients(zip(grads, self.model.trainable_variables))
        return loss

    def returns(self, rewards):
        found, discounted = [], 0.0
        for reward in rewards[::-1]:
            discounted = reward + GAMMA * discounted
            found.insert(0, discounted)
        found = np.array(found, np.float32)
        return tf.constant((found - found.mean()) / (found.std() + EPSILON))


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    agent = Agent(CartPole(seed=0, max_steps=40), decorator(arguments.mode))
    history, ms_per_episode, start_s = {"loss": [], "reward": []}, [], time.perf_counter()
    with as_written(arguments.mode):
        for _ in range(arguments.epochs):
            epoch_s = time.perf_counter()
            for _ in range(arguments.batches):  # episodes
                loss = agent.play()
            history["loss"].append(float(loss))
            history["reward"].append(agent.running_reward)
            ms_per_episode.append(1e3 * (time.perf_counter() - epoch_s) / arguments.batches)
        report(arguments.mode, history, time.perf_counter() - start_s, ms_per_episode)
