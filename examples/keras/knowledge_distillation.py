"""A small network learns from a large one (keras.io: Knowledge distillation), by `compute_loss`."""

import keras
from common import digits, parse_mode, ready, train
from keras import layers, ops


class Distiller(keras.Model):
    """Trains a student on labels and on what its teacher says."""

    def __init__(self, student, teacher, alpha=0.1, temperature=3.0):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.alpha, self.temperature = alpha, temperature
        self.distillation_loss = keras.losses.KLDivergence()

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        teacher_pred = self.teacher(x, training=False)
        student_loss = super().compute_loss(x=x, y=y, y_pred=y_pred)
        distillation = self.distillation_loss(
            ops.softmax(teacher_pred / self.temperature, axis=1),
            ops.softmax(y_pred / self.temperature, axis=1),
        ) * (self.temperature**2)
        return self.alpha * student_loss + (1 - self.alpha) * distillation

    def call(self, x, training=None):
        return self.student(x, training=training)


def network(width):
    return keras.Sequential([
        keras.Input((8, 8, 1)), layers.Conv2D(width, 3, strides=2, padding="same"),
        layers.LeakyReLU(negative_slope=0.2), layers.MaxPooling2D(2, strides=1, padding="same"),
        layers.Conv2D(2 * width, 3, strides=2, padding="same"), layers.Flatten(), layers.Dense(10),
    ])  # fmt: skip


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    x, y = digits(arguments)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = ready(network(32), arguments.mode, optimizer="adam", loss=loss, metrics=["accuracy"])
    train(teacher, arguments, x, y)
    distiller = Distiller(network(4), teacher)
    ready(distiller, arguments.mode, optimizer="adam", loss=loss, metrics=["accuracy"])
    train(distiller, arguments, x, y)
