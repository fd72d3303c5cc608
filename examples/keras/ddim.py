"""A diffusion model (keras.io: DDIM): a U-Net, its moving average, and a loop that samples."""

import json
import math

import keras
import tensorflow as tf
from common import digits, parse_mode, ready, train
from keras import layers

MIN_SIGNAL_RATE, MAX_SIGNAL_RATE, EMA = 0.02, 0.95, 0.99
EMBEDDING_DIMS, WIDTHS, BLOCK_DEPTH = 8, (8, 16), 1


@keras.saving.register_keras_serializable()
def sinusoidal_embedding(x):
    frequencies = tf.exp(tf.linspace(tf.math.log(1.0), tf.math.log(100.0), EMBEDDING_DIMS // 2))
    angular_speeds = 2.0 * math.pi * frequencies
    return tf.concat([tf.sin(angular_speeds * x), tf.cos(angular_speeds * x)], axis=3)


def residual_block(width):
    def apply(x):
        residual = x if x.shape[3] == width else layers.Conv2D(width, kernel_size=1)(x)
        x = layers.BatchNormalization(center=False, scale=False)(x)
        x = layers.Conv2D(width, kernel_size=3, padding="same", activation="swish")(x)
        x = layers.Conv2D(width, kernel_size=3, padding="same")(x)
        return layers.Add()([x, residual])

    return apply


def down_block(width, block_depth):
    def apply(x, skips):
        for _ in range(block_depth):
            x = residual_block(width)(x)
            skips.append(x)
        return layers.AveragePooling2D(pool_size=2)(x)

    return apply


def up_block(width, block_depth):
    def apply(x, skips):
        x = layers.UpSampling2D(size=2, interpolation="bilinear")(x)
        for _ in range(block_depth):
            x = layers.Concatenate()([x, skips.pop()])
            x = residual_block(width)(x)
        return x

    return apply


def make_network():
    noisy_images, noise_variances = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
    e = layers.Lambda(sinusoidal_embedding, output_shape=(1, 1, EMBEDDING_DIMS))(noise_variances)
    e = layers.UpSampling2D(size=8, interpolation="nearest")(e)
    x = layers.Conv2D(WIDTHS[0], kernel_size=1)(noisy_images)
    x, skips = layers.Concatenate()([x, e]), []
    for width in WIDTHS[:-1]:
        x = down_block(width, BLOCK_DEPTH)(x, skips)
    for _ in range(BLOCK_DEPTH):
        x = residual_block(WIDTHS[-1])(x)
    for width in reversed(WIDTHS[:-1]):
        x = up_block(width, BLOCK_DEPTH)(x, skips)
    x = layers.Conv2D(1, kernel_size=1, kernel_initializer="zeros")(x)
    return keras.Model([noisy_images, noise_variances], x, name="residual_unet")


class DiffusionModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalizer = layers.Normalization()
        self.network = make_network()
        self.ema_network = keras.models.clone_model(self.network)

    def compile(self, **options):
        super().compile(**options)
        self.noise_loss_tracker = keras.metrics.Mean(name="n_loss")
        self.image_loss_tracker = keras.metrics.Mean(name="i_loss")

    @property
    def metrics(self):
        return [self.noise_loss_tracker, self.image_loss_tracker]

    def denormalize(self, images):
        images = self.normalizer.mean + images * self.normalizer.variance**0.5
        return tf.clip_by_value(images, 0.0, 1.0)

    def diffusion_schedule(self, diffusion_times):
        start_angle, end_angle = tf.math.acos(MAX_SIGNAL_RATE), tf.math.acos(MIN_SIGNAL_RATE)
        angles = start_angle + diffusion_times * (end_angle - start_angle)
        return tf.sin(angles), tf.cos(angles)

    def denoise(self, noisy_images, noise_rates, signal_rates, training):
        network = self.network if training else self.ema_network
        pred_noises = network([noisy_images, noise_rates**2], training=training)
        return pred_noises, (noisy_images - noise_rates * pred_noises) / signal_rates

    def generate(self, num_images, diffusion_steps):
        noisy_images = tf.random.normal(shape=(num_images, 8, 8, 1))
        step_size = 1.0 / diffusion_steps
        for step in range(diffusion_steps):
            diffusion_times = tf.ones((num_images, 1, 1, 1)) - step * step_size
            noise_rates, signal_rates = self.diffusion_schedule(diffusion_times)
            pred_noises, pred_images = self.denoise(
                noisy_images, noise_rates, signal_rates, training=False
            )
            noise_rates, signal_rates = self.diffusion_schedule(diffusion_times - step_size)
            noisy_images = signal_rates * pred_images + noise_rates * pred_noises
        return self.denormalize(pred_images)

    def losses_of(self, images, training):
        images = self.normalizer(images, training=training)
        noises = tf.random.normal(shape=tf.shape(images))
        diffusion_times = tf.random.uniform(shape=(tf.shape(images)[0], 1, 1, 1))
        noise_rates, signal_rates = self.diffusion_schedule(diffusion_times)
        noisy_images = signal_rates * images + noise_rates * noises
        pred_noises, pred_images = self.denoise(
            noisy_images, noise_rates, signal_rates, training=training
        )
        noise_loss = tf.reduce_mean(self.loss(noises, pred_noises))
        return noise_loss, tf.reduce_mean(self.loss(images, pred_images))

    def results(self, noise_loss, image_loss):
        self.noise_loss_tracker.update_state(noise_loss)
        self.image_loss_tracker.update_state(image_loss)
        return {metric.name: metric.result() for metric in self.metrics}

    def train_step(self, images):
        with tf.GradientTape() as tape:
            noise_loss, image_loss = self.losses_of(images, training=True)
        gradients = tape.gradient(noise_loss, self.network.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.network.trainable_weights))
        for weight, ema_weight in zip(self.network.weights, self.ema_network.weights):
            ema_weight.assign(EMA * ema_weight + (1 - EMA) * weight)
        return self.results(noise_loss, image_loss)

    def test_step(self, images):
        return self.results(*self.losses_of(images, training=False))


class Generate(keras.callbacks.Callback):
    """Generates images after each epoch (and keeps their mean for the history)."""

    def on_epoch_end(self, epoch, logs=None):
        logs["generated"] = float(tf.reduce_mean(self.model.generate(4, diffusion_steps=5)))


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    x, _ = digits(arguments)
    model = DiffusionModel()
    model.normalizer.adapt(x)
    optimizer = keras.optimizers.AdamW(learning_rate=1e-3, weight_decay=1e-4)
    ready(model, arguments.mode, optimizer=optimizer, loss=keras.losses.mean_absolute_error)
    train(model, arguments, x, validation_data=x[:64], callbacks=[Generate()])
    print(json.dumps({"generated": model.generate(2, 10).numpy().ravel().tolist()[::16]}))
