"""Translation by characters (keras.io: seq2seq with LSTMs): a sampling loop that asks `predict`.

The language is sums: "17+5" is to become "22".
"""

import json
import time

import keras
import numpy as np
from common import BATCH_SIZE, parse_mode, ready, train
from keras import layers

CHARACTERS, LATENT_DIM = "0123456789+\t\n ", 32
INDEX = {character: index for index, character in enumerate(CHARACTERS)}
INPUT_LENGTH, TARGET_LENGTH = 5, 5  # "99+99", "\t198\n"


def one_hot(texts, length):
    encoded = np.zeros((len(texts), length, len(CHARACTERS)), np.float32)
    for i, text in enumerate(texts):
        for t, character in enumerate(text.ljust(length)[:length]):
            encoded[i, t, INDEX[character]] = 1.0
    return encoded


def make_data(num):
    terms = np.random.default_rng(0).integers(0, 100, (num, 2))
    questions = [f"{a}+{b}" for a, b in terms]
    targets = [f"\t{a + b}\n" for a, b in terms]
    shifted = [target[1:] for target in targets]
    encoded = [one_hot(questions, INPUT_LENGTH), one_hot(targets, TARGET_LENGTH)]
    return questions, encoded, one_hot(shifted, TARGET_LENGTH)


def make_models():
    encoder_inputs = keras.Input((None, len(CHARACTERS)))
    _, state_h, state_c = layers.LSTM(LATENT_DIM, return_state=True)(encoder_inputs)
    decoder_inputs = keras.Input((None, len(CHARACTERS)))
    decoder_lstm = layers.LSTM(LATENT_DIM, return_sequences=True, return_state=True)
    decoder_dense = layers.Dense(len(CHARACTERS), activation="softmax")
    outputs, _, _ = decoder_lstm(decoder_inputs, initial_state=[state_h, state_c])
    model = keras.Model([encoder_inputs, decoder_inputs], decoder_dense(outputs))

    encoder_model = keras.Model(encoder_inputs, [state_h, state_c])
    states = [keras.Input((LATENT_DIM,)), keras.Input((LATENT_DIM,))]
    outputs, state_h, state_c = decoder_lstm(decoder_inputs, initial_state=states)
    decoder_model = keras.Model(
        [decoder_inputs, *states], [decoder_dense(outputs), state_h, state_c]
    )
    return model, encoder_model, decoder_model


def decode_sequence(encoder_model, decoder_model, input_seq):
    """Ask for one character after the other; return them, and the number of questions."""
    states_value = encoder_model.predict(input_seq, verbose=0)
    target_seq, decoded, num_asked = one_hot("\t", 1), "", 1
    while True:
        output_tokens, h, c = decoder_model.predict([target_seq, *states_value], verbose=0)
        num_asked += 1
        sampled_char = CHARACTERS[np.argmax(output_tokens[0, -1, :])]
        decoded += sampled_char
        if sampled_char == "\n" or len(decoded) > TARGET_LENGTH:
            return decoded, num_asked
        target_seq, states_value = one_hot(sampled_char, 1), [h, c]


if __name__ == "__main__":
    arguments = parse_mode()
    keras.utils.set_random_seed(0)
    questions, inputs, targets = make_data(arguments.batches * BATCH_SIZE)
    model, encoder_model, decoder_model = make_models()
    ready(
        model, arguments.mode,
        optimizer="rmsprop", loss="categorical_crossentropy", metrics=["accuracy"],
    )  # fmt: skip
    for part in (encoder_model, decoder_model):
        ready(part, arguments.mode)
    train(model, arguments, inputs, targets)
    start_s, answers, num_asked = time.perf_counter(), [], 0
    for i in range(arguments.batches):
        decoded, num = decode_sequence(encoder_model, decoder_model, inputs[0][i : i + 1])
        answers.append(f"{questions[i]}={decoded.strip()}")
        num_asked += num
    elapsed_s = time.perf_counter() - start_s
    print(json.dumps({"answers": answers}))
    print(f"{arguments.mode}: {num_asked} x predict, {1e3 * elapsed_s / num_asked:.1f} ms each")
