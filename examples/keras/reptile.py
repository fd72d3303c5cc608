"""Few-shot learning (keras.io: Reptile): weights are read and set around a few inner steps."""

import time

import keras
import numpy as np
import tensorflow as tf
from common import as_written, decorator, digits, parse_mode, report
from keras import layers

CLASSES, SHOTS, INNER_ITERATIONS, INNER_BATCH_SIZE = 3, 5, 4, 15
META_STEP_SIZE = 0.25


class Tasks:
    """Few images of few digits at a time, under labels of their own."""

    def __init__(self, images, labels, seed):
        self.images = [images[labels == digit] for digit in range(10)]
        self.random = np.random.default_rng(seed)

    def mini_dataset(self, with_test_image):
        """Return a dataset of a task, and an image and a label of each class if asked."""
        digits_of_task = self.random.choice(10, CLASSES, replace=False)
        num = SHOTS + with_test_image
        drawn = [
            self.images[digit][self.random.choice(len(self.images[digit]), num, replace=False)]
            for digit in digits_of_task
        ]
        x = np.concatenate([images[:SHOTS] for images in drawn])
        y = np.repeat(np.arange(CLASSES), SHOTS)
        order = self.random.permutation(len(x))
        dataset = tf.data.Dataset.from_tensor_slices((x[order], y[order]))
        dataset = dataset.batch(INNER_BATCH_SIZE).repeat(INNER_ITERATIONS)
        if with_test_image:
            return dataset, np.stack([images[-1] for images in drawn]), np.arange(CLASSES)
        return dataset


def convolution_block(x):
    x = layers.Conv2D(16, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x)


def make_model():
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(convolution_block(convolution_block(inputs)))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def make_inner_step(model, optimizer):
    def inner_step(images, labels):
        with tf.GradientTape() as tape:
            preds = model(images, training=True)
            loss = keras.losses.sparse_categorical_crossentropy(labels, preds)
        grads = tape.gradient(loss, model.trainable_weights)
        optimizer.apply_gradients(zip(grads, model.trainable_weights))
        return tf.reduce_mean(loss)

    return inner_step


def meta_iteration(model, inner_step, tasks, meta_step_size):
    old_weights = model.get_weights()
    for images, labels in tasks.mini_dataset(with_test_image=False):
        loss = inner_step(images, labels)
    new_weights = [
        old + (new - old) * meta_step_size for old, new in zip(old_weights, model.get_weights())
    ]
    model.set_weights(new_weights)
    return float(loss)


def evaluate(model, inner_step, tasks):
    """Learn a task from a few images, and say how many more are right; forget it again."""
    old_weights = model.get_weights()
    dataset, test_images, test_labels = tasks.mini_dataset(with_test_image=True)
    for images, labels in dataset:
        inner_step(images, labels)
    preds = model.predict(test_images, verbose=0)
    model.set_weights(old_weights)
    return float(np.mean(np.argmax(preds, axis=1) == test_labels))


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    x, y = digits(arguments)
    model = make_model()
    model.compile(run_eagerly=arguments.mode == "eager")
    inner_step = decorator(arguments.mode)(
        make_inner_step(model, keras.optimizers.SGD(learning_rate=0.03))
    )
    tasks, history = Tasks(x, y, seed=0), {"loss": [], "accuracy": []}
    ms_per_step, start_s = [], time.perf_counter()
    num_iterations = arguments.epochs * arguments.batches
    with as_written(arguments.mode):
        for epoch in range(arguments.epochs):
            epoch_s = time.perf_counter()
            for i in range(arguments.batches):
                done = (epoch * arguments.batches + i) / num_iterations
                loss = meta_iteration(model, inner_step, tasks, (1 - done) * META_STEP_SIZE)
            num_steps = INNER_ITERATIONS * arguments.batches
            ms_per_step.append(1e3 * (time.perf_counter() - epoch_s) / num_steps)
            history["loss"].append(loss)
            history["accuracy"].append(evaluate(model, inner_step, tasks))
        report(arguments.mode, history, time.perf_counter() - start_s, ms_per_step)
