"""A vector-quantized autoencoder (keras.io: VQ-VAE): a layer, a `train_step` and trackers."""

import keras
import numpy as np
import tensorflow as tf
from common import digits, parse_mode, ready, train
from keras import layers


class VectorQuantizer(layers.Layer):
    """Replaces each vector by the nearest one of a codebook; gradients go straight through."""

    def __init__(self, num_embeddings, embedding_dim, beta=0.25):
        super().__init__()
        self.embedding_dim, self.num_embeddings, self.beta = embedding_dim, num_embeddings, beta
        self.embeddings = self.add_weight(
            shape=(embedding_dim, num_embeddings), initializer="random_uniform", name="codebook"
        )

    def call(self, x):
        flattened = tf.reshape(x, [-1, self.embedding_dim])
        indices = self.get_code_indices(flattened)
        encodings = tf.one_hot(indices, self.num_embeddings)
        quantized = tf.matmul(encodings, self.embeddings, transpose_b=True)
        quantized = tf.reshape(quantized, tf.shape(x))
        commitment = tf.reduce_mean((tf.stop_gradient(quantized) - x) ** 2)
        codebook = tf.reduce_mean((quantized - tf.stop_gradient(x)) ** 2)
        self.add_loss(self.beta * commitment + codebook)
        return x + tf.stop_gradient(quantized - x)

    def get_code_indices(self, flattened):
        similarity = tf.matmul(flattened, self.embeddings)
        distances = (
            tf.reduce_sum(flattened**2, axis=1, keepdims=True)
            + tf.reduce_sum(self.embeddings**2, axis=0)
            - 2 * similarity
        )
        return tf.argmin(distances, axis=1)


def make_vqvae(latent_dim=8, num_embeddings=16):
    x = keras.Input((8, 8, 1))
    h = layers.Conv2D(16, 3, activation="relu", strides=2, padding="same")(x)
    h = layers.Conv2D(latent_dim, 1, padding="same")(h)
    h = VectorQuantizer(num_embeddings, latent_dim)(h)
    h = layers.Conv2DTranspose(16, 3, activation="relu", strides=2, padding="same")(h)
    return keras.Model(x, layers.Conv2DTranspose(1, 3, padding="same")(h))


class VQVAETrainer(keras.Model):
    def __init__(self, train_variance):
        super().__init__()
        self.train_variance, self.vqvae = train_variance, make_vqvae()
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")
        self.reconstruction_loss_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.vq_loss_tracker = keras.metrics.Mean(name="vq_loss")

    @property
    def metrics(self):
        return [
            self.total_loss_tracker, self.reconstruction_loss_tracker, self.vq_loss_tracker
        ]  # fmt: skip

    def train_step(self, x):
        with tf.GradientTape() as tape:
            reconstructions = self.vqvae(x)
            reconstruction_loss = tf.reduce_mean((x - reconstructions) ** 2) / self.train_variance
            total_loss = reconstruction_loss + sum(self.vqvae.losses)
        grads = tape.gradient(total_loss, self.vqvae.trainable_variables)
        self.optimizer.apply_gradients(zip(grads, self.vqvae.trainable_variables))
        self.total_loss_tracker.update_state(total_loss)
        self.reconstruction_loss_tracker.update_state(reconstruction_loss)
        self.vq_loss_tracker.update_state(sum(self.vqvae.losses))
        return {metric.name: metric.result() for metric in self.metrics}


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    x, _ = digits(arguments)
    trainer = VQVAETrainer(float(np.var(x)))
    ready(trainer, arguments.mode, optimizer=keras.optimizers.Adam())
    train(trainer, arguments, x)
