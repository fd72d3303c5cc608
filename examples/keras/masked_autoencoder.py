"""A masked autoencoder (keras.io: MAE): patches hidden at random, a schedule of one's own."""

import math

import keras
import tensorflow as tf
from common import digits, parse_mode, ready, train
from keras import layers

IMAGE_SIZE, PATCH_SIZE, MASK_PROPORTION = 8, 2, 0.75
NUM_PATCHES, PATCH_AREA = (IMAGE_SIZE // PATCH_SIZE) ** 2, PATCH_SIZE**2
NUM_MASKED = int(MASK_PROPORTION * NUM_PATCHES)
ENCODER_DIM, DECODER_DIM, NUM_HEADS, EPSILON = 32, 16, 2, 1e-6


def make_augmentation():
    return keras.Sequential([
        keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1)), layers.Resizing(10, 10),
        layers.RandomCrop(IMAGE_SIZE, IMAGE_SIZE), layers.RandomFlip("horizontal"),
    ], name="augmentation")  # fmt: skip


class Patches(layers.Layer):
    def __init__(self):
        super().__init__()
        self.resize = layers.Reshape((-1, PATCH_AREA))

    def call(self, images):
        patches = tf.image.extract_patches(
            images, sizes=[1, PATCH_SIZE, PATCH_SIZE, 1], strides=[1, PATCH_SIZE, PATCH_SIZE, 1],
            rates=[1, 1, 1, 1], padding="VALID",
        )  # fmt: skip
        return self.resize(patches)


class PatchEncoder(layers.Layer):
    """Projects patches and adds positions; which are hidden is drawn for each image."""

    def build(self, input_shape):
        _, self.num_patches, self.patch_area = input_shape
        self.mask_token = self.add_weight(
            shape=(1, self.patch_area), initializer="random_normal", name="mask_token"
        )
        self.projection = layers.Dense(ENCODER_DIM)
        self.position_embedding = layers.Embedding(self.num_patches, ENCODER_DIM)

    def call(self, patches):
        batch_size = tf.shape(patches)[0]
        positions = tf.range(self.num_patches)[tf.newaxis]
        pos_embeddings = tf.tile(self.position_embedding(positions), [batch_size, 1, 1])
        patch_embeddings = self.projection(patches) + pos_embeddings
        mask_indices, unmask_indices = self.get_random_indices(batch_size)
        unmasked_embeddings = tf.gather(patch_embeddings, unmask_indices, axis=1, batch_dims=1)
        unmasked_positions = tf.gather(pos_embeddings, unmask_indices, axis=1, batch_dims=1)
        masked_positions = tf.gather(pos_embeddings, mask_indices, axis=1, batch_dims=1)
        mask_tokens = tf.repeat(tf.convert_to_tensor(self.mask_token), NUM_MASKED, axis=0)
        mask_tokens = tf.repeat(mask_tokens[tf.newaxis], batch_size, axis=0)
        masked_embeddings = self.projection(mask_tokens) + masked_positions
        return unmasked_embeddings, masked_embeddings, unmasked_positions, mask_indices

    def get_random_indices(self, batch_size):
        order = tf.argsort(tf.random.uniform((batch_size, self.num_patches)), axis=-1)
        return order[:, :NUM_MASKED], order[:, NUM_MASKED:]


def transformer_block(x, width):
    x1 = layers.LayerNormalization(epsilon=EPSILON)(x)
    attention = layers.MultiHeadAttention(NUM_HEADS, key_dim=width, dropout=0.1)(x1, x1)
    x2 = layers.Add()([attention, x])
    x3 = layers.LayerNormalization(epsilon=EPSILON)(x2)
    for units in (2 * width, width):
        x3 = layers.Dropout(0.1)(layers.Dense(units, activation="gelu")(x3))
    return layers.Add()([x3, x2])


def make_encoder():
    inputs = keras.Input((None, ENCODER_DIM))
    x = transformer_block(transformer_block(inputs, ENCODER_DIM), ENCODER_DIM)
    outputs = layers.LayerNormalization(epsilon=EPSILON)(x)
    return keras.Model(inputs, outputs, name="mae_encoder")


def make_decoder():
    inputs = keras.Input((NUM_PATCHES, ENCODER_DIM))
    x = transformer_block(layers.Dense(DECODER_DIM)(inputs), DECODER_DIM)
    x = layers.Flatten()(layers.LayerNormalization(epsilon=EPSILON)(x))
    x = layers.Dense(IMAGE_SIZE * IMAGE_SIZE, activation="sigmoid")(x)
    outputs = layers.Reshape((IMAGE_SIZE, IMAGE_SIZE, 1))(x)
    return keras.Model(inputs, outputs, name="mae_decoder")


class MaskedAutoencoder(keras.Model):
    def __init__(self):
        super().__init__()
        self.augmentation, self.patch_layer = make_augmentation(), Patches()
        self.patch_encoder = PatchEncoder()
        self.encoder, self.decoder = make_encoder(), make_decoder()
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.mae_tracker = keras.metrics.MeanAbsoluteError(name="mae")

    @property
    def metrics(self):
        return [self.loss_tracker, self.mae_tracker]

    def calculate_loss(self, images, training):
        if training:
            images = self.augmentation(images, training=True)
        patches = self.patch_layer(images)
        unmasked, masked, unmasked_positions, mask_indices = self.patch_encoder(patches)
        encoded = self.encoder(unmasked, training=training) + unmasked_positions
        decoder_inputs = tf.concat([encoded, masked], axis=1)
        decoded = self.patch_layer(self.decoder(decoder_inputs, training=training))
        loss_patch = tf.gather(patches, mask_indices, axis=1, batch_dims=1)
        loss_output = tf.gather(decoded, mask_indices, axis=1, batch_dims=1)
        total_loss = tf.reduce_mean(self.loss(loss_patch, loss_output))
        return total_loss, loss_patch, loss_output

    def results(self, total_loss, loss_patch, loss_output):
        self.loss_tracker.update_state(total_loss)
        self.mae_tracker.update_state(loss_patch, loss_output)
        return {metric.name: metric.result() for metric in self.metrics}

    def train_step(self, images):
        with tf.GradientTape() as tape:
            losses = self.calculate_loss(images, training=True)
        train_vars = [
            part.trainable_variables for part in (self.patch_encoder, self.encoder, self.decoder)
        ]
        grads = tape.gradient(losses[0], train_vars)
        tv_list = []
        for grad, var in zip(grads, train_vars):
            for g, v in zip(grad, var):
                tv_list.append((g, v))
        self.optimizer.apply_gradients(tv_list)
        return self.results(*losses)

    def test_step(self, images):
        return self.results(*self.calculate_loss(images, training=False))


class WarmUpCosine(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, base, total_steps, warmup_steps):
        super().__init__()
        self.base, self.total_steps, self.warmup_steps = base, total_steps, warmup_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        decayed = 0.5 * self.base * (1 + tf.cos(math.pi * step / self.total_steps))
        warming = self.base * (step + 1) / self.warmup_steps
        return tf.where(step < self.warmup_steps, warming, decayed)


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    x, _ = digits(arguments)
    num_steps = arguments.epochs * arguments.batches
    schedule = WarmUpCosine(5e-3, num_steps, warmup_steps=max(1, num_steps // 7))
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-4)
    model = ready(
        MaskedAutoencoder(), arguments.mode,
        optimizer=optimizer, loss=keras.losses.MeanSquaredError(),
    )  # fmt: skip
    train(model, arguments, x, validation_data=x[:64])
