"""A Wasserstein GAN with gradient penalty (keras.io: WGAN-GP): two optimizers, an inner loop."""

import keras
import tensorflow as tf
from common import digits, parse_mode, ready, train
from keras import layers


def make_discriminator():
    return keras.Sequential([
        keras.Input((8, 8, 1)), layers.Conv2D(16, 3, strides=2, padding="same"),
        layers.LeakyReLU(0.2), layers.Conv2D(32, 3, strides=2, padding="same"),
        layers.LeakyReLU(0.2), layers.Flatten(), layers.Dropout(0.2), layers.Dense(1),
    ])  # fmt: skip


def make_generator(latent_dim):
    return keras.Sequential([
        keras.Input((latent_dim,)), layers.Dense(4 * 4 * 16, use_bias=False),
        layers.BatchNormalization(), layers.LeakyReLU(0.2), layers.Reshape((4, 4, 16)),
        layers.UpSampling2D(2), layers.Conv2D(1, 3, padding="same", use_bias=False),
        layers.BatchNormalization(), layers.Activation("sigmoid"),
    ])  # fmt: skip


class WGAN(keras.Model):
    def __init__(self, latent_dim=16, discriminator_extra_steps=3, gp_weight=10.0):
        super().__init__()
        self.discriminator, self.generator = make_discriminator(), make_generator(latent_dim)
        self.latent_dim, self.d_steps, self.gp_weight = (
            latent_dim, discriminator_extra_steps, gp_weight
        )  # fmt: skip

    def compile(self, d_optimizer, g_optimizer, d_loss_fn, g_loss_fn, **options):
        super().compile(**options)
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        self.d_loss_fn, self.g_loss_fn = d_loss_fn, g_loss_fn

    def gradient_penalty(self, batch_size, real_images, fake_images):
        alpha = tf.random.uniform([batch_size, 1, 1, 1], 0.0, 1.0)
        interpolated = real_images + alpha * (fake_images - real_images)
        with tf.GradientTape() as gp_tape:
            gp_tape.watch(interpolated)
            pred = self.discriminator(interpolated, training=True)
        grads = gp_tape.gradient(pred, [interpolated])[0]
        norm = tf.sqrt(tf.reduce_sum(tf.square(grads), axis=[1, 2, 3]))
        return tf.reduce_mean((norm - 1.0) ** 2)

    def train_step(self, real_images):
        batch_size = tf.shape(real_images)[0]
        for _ in range(self.d_steps):
            noise = tf.random.normal(shape=(batch_size, self.latent_dim))
            with tf.GradientTape() as tape:
                fake_images = self.generator(noise, training=True)
                fake_logits = self.discriminator(fake_images, training=True)
                real_logits = self.discriminator(real_images, training=True)
                d_cost = self.d_loss_fn(real_img=real_logits, fake_img=fake_logits)
                gp = self.gradient_penalty(batch_size, real_images, fake_images)
                d_loss = d_cost + gp * self.gp_weight
            d_gradient = tape.gradient(d_loss, self.discriminator.trainable_variables)
            self.d_optimizer.apply_gradients(
                zip(d_gradient, self.discriminator.trainable_variables)
            )
        noise = tf.random.normal(shape=(batch_size, self.latent_dim))
        with tf.GradientTape() as tape:
            generated = self.generator(noise, training=True)
            g_loss = self.g_loss_fn(self.discriminator(generated, training=True))
        gen_gradient = tape.gradient(g_loss, self.generator.trainable_variables)
        self.g_optimizer.apply_gradients(zip(gen_gradient, self.generator.trainable_variables))
        return {"d_loss": d_loss, "g_loss": g_loss}


def discriminator_loss(real_img, fake_img):
    return tf.reduce_mean(fake_img) - tf.reduce_mean(real_img)


def generator_loss(fake_img):
    return -tf.reduce_mean(fake_img)


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    x, _ = digits(arguments)
    wgan = WGAN()
    ready(
        wgan,
        arguments.mode,
        d_optimizer=keras.optimizers.Adam(2e-4, beta_1=0.5, beta_2=0.9),
        g_optimizer=keras.optimizers.Adam(2e-4, beta_1=0.5, beta_2=0.9),
        d_loss_fn=discriminator_loss,
        g_loss_fn=generator_loss,
    )
    train(wgan, arguments, x)
