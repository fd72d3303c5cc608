"""A normalizing flow (keras.io: real NVP): coupling layers in a Python loop, forth and back."""

import json
import math

import keras
import tensorflow as tf
from common import BATCH_SIZE, parse_mode, ready, train
from keras import layers, regularizers
from sklearn.datasets import make_moons

WIDTH, REGULARIZATION = 32, 0.01


def coupling(num_inputs):
    inputs = keras.Input((num_inputs,))

    def branch(activation):
        x = inputs
        for _ in range(3):
            x = layers.Dense(
                WIDTH, activation="relu", kernel_regularizer=regularizers.l2(REGULARIZATION)
            )(x)
        return layers.Dense(
            num_inputs, activation=activation, kernel_regularizer=regularizers.l2(REGULARIZATION)
        )(x)

    return keras.Model(inputs, [branch("tanh"), branch("linear")])


def log_prob(z):
    """Return the logarithm of the density of the normal distribution."""
    return tf.reduce_sum(-0.5 * (z**2 + math.log(2 * math.pi)), axis=1)


class RealNVP(keras.Model):
    def __init__(self, num_coupling_layers):
        super().__init__()
        self.num_coupling_layers = num_coupling_layers
        self.masks = keras.ops.array([[0, 1], [1, 0]] * (num_coupling_layers // 2), dtype="float32")
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.layers_list = [coupling(2) for _ in range(num_coupling_layers)]

    @property
    def metrics(self):
        return [self.loss_tracker]

    def call(self, x, training=True):
        log_det_inv = 0
        direction = -1 if training else 1
        for i in range(self.num_coupling_layers)[::direction]:
            x_masked = x * self.masks[i]
            reversed_mask = 1 - self.masks[i]
            s, t = self.layers_list[i](x_masked)
            s *= reversed_mask
            t *= reversed_mask
            gate = (direction - 1) / 2
            x = (
                reversed_mask
                * (x * keras.ops.exp(direction * s) + direction * t * keras.ops.exp(gate * s))
                + x_masked
            )
            log_det_inv += gate * keras.ops.sum(s, axis=1)
        return x, log_det_inv

    def log_loss(self, x):
        y, logdet = self(x)
        return -tf.reduce_mean(log_prob(y) + logdet)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.log_loss(data)
        g = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(g, self.trainable_variables))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data):
        self.loss_tracker.update_state(self.log_loss(data))
        return {"loss": self.loss_tracker.result()}


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    # A fifth of the data is for validation.
    data, _ = make_moons(arguments.batches * BATCH_SIZE * 5 // 4, noise=0.05, random_state=0)
    norm = layers.Normalization()
    norm.adapt(data)
    model = RealNVP(num_coupling_layers=4)
    ready(model, arguments.mode, optimizer=keras.optimizers.Adam(learning_rate=1e-3))
    train(model, arguments, norm(data), validation_split=0.2)
    samples, _ = model(keras.random.normal((100, 2), seed=0), training=False)
    print(json.dumps({"samples": samples.numpy().mean(axis=0).tolist()}))
