"""Learning without labels (keras.io: SimSiam): two views of each image, by a `tf.data` pipeline."""

import keras
import tensorflow as tf
from common import BATCH_SIZE, digits, parse_mode, ready, train
from keras import layers, regularizers

PROJECT_DIM, LATENT_DIM, WEIGHT_DECAY = 32, 16, 5e-4


def augment(image):
    image = tf.image.random_flip_left_right(image)
    image = tf.image.resize_with_crop_or_pad(image, 10, 10)
    image = tf.image.random_crop(image, (8, 8, 1))
    return tf.image.random_brightness(image, 0.2)


def views(images, seed):
    data = tf.data.Dataset.from_tensor_slices(images).shuffle(1024, seed=seed)
    return data.map(augment).batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)


def make_encoder():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    for _ in range(2):
        x = layers.Dense(
            PROJECT_DIM, use_bias=False, kernel_regularizer=regularizers.l2(WEIGHT_DECAY)
        )(x)
        x = layers.BatchNormalization()(x)
    return keras.Model(inputs, x, name="encoder")


def make_predictor():
    return keras.Sequential([
        keras.Input((PROJECT_DIM,)),
        layers.Dense(
            LATENT_DIM, use_bias=False, activation="relu",
            kernel_regularizer=regularizers.l2(WEIGHT_DECAY),
        ),
        layers.BatchNormalization(), layers.Dense(PROJECT_DIM),
    ], name="predictor")  # fmt: skip


def compute_loss(p, z):
    z = tf.stop_gradient(z)
    p, z = tf.math.l2_normalize(p, axis=1), tf.math.l2_normalize(z, axis=1)
    return -tf.reduce_mean(tf.reduce_sum(p * z, axis=1))


class SimSiam(keras.Model):
    def __init__(self, encoder, predictor):
        super().__init__()
        self.encoder, self.predictor = encoder, predictor
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.loss_tracker]

    def train_step(self, data):
        ds_one, ds_two = data
        with tf.GradientTape() as tape:
            z1, z2 = self.encoder(ds_one, training=True), self.encoder(ds_two, training=True)
            p1, p2 = self.predictor(z1, training=True), self.predictor(z2, training=True)
            loss = compute_loss(p1, z2) / 2 + compute_loss(p2, z1) / 2
        learnable_params = self.encoder.trainable_variables + self.predictor.trainable_variables
        gradients = tape.gradient(loss, learnable_params)
        self.optimizer.apply_gradients(zip(gradients, learnable_params))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    x, _ = digits(arguments)
    num_steps = arguments.epochs * arguments.batches
    schedule = keras.optimizers.schedules.CosineDecay(0.03, decay_steps=num_steps)
    model = SimSiam(make_encoder(), make_predictor())
    ready(model, arguments.mode, optimizer=keras.optimizers.SGD(schedule, momentum=0.6))
    train(model, arguments, tf.data.Dataset.zip((views(x, 1), views(x, 1))))
