"""A pole that is to be balanced on a cart, for the examples that learn by reward."""

from __future__ import annotations

import math

import numpy as np

_GRAVITY, _CART_MASS, _POLE_MASS, _HALF_LENGTH = 9.8, 1.0, 0.1, 0.5
_FORCE, _SECONDS = 10.0, 0.02
_MAX_POSITION, _MAX_ANGLE = 2.4, 12 * math.pi / 180


class CartPole:
    """The equations of Barto, Sutton and Anderson (1983), with the interface of Gymnasium.

    A state is position, speed, angle and angular speed; action 0 pushes to the left, 1 to the
    right. Each step is worth 1, until the pole has fallen, the cart has left, or time is up.
    """

    num_actions, num_observed = 2, 4

    def __init__(self, seed: int, max_steps: int) -> None:
        self._random, self._max_steps = np.random.default_rng(seed), max_steps

    def reset(self) -> np.ndarray:
        """Begin an episode, and return its first state."""
        self._state, self._num_steps = self._random.uniform(-0.05, 0.05, 4), 0
        return self._state.astype(np.float32)

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        """Return state, reward, and whether that was the end."""
        _, speed, angle, turning = self._state
        sine, cosine = math.sin(angle), math.cos(angle)
        mass = _CART_MASS + _POLE_MASS
        pull = _POLE_MASS * _HALF_LENGTH
        push = ((_FORCE if action else -_FORCE) + pull * turning**2 * sine) / mass
        turn = (_GRAVITY * sine - cosine * push) / (
            _HALF_LENGTH * (4.0 / 3.0 - _POLE_MASS * cosine**2 / mass)
        )
        change = np.array([speed, push - pull * turn * cosine / mass, turning, turn])
        self._state = self._state + _SECONDS * change
        self._num_steps += 1
        is_lost = abs(self._state[0]) > _MAX_POSITION or abs(self._state[2]) > _MAX_ANGLE
        is_over = bool(is_lost) or self._num_steps >= self._max_steps
        return self._state.astype(np.float32), 1.0, is_over
