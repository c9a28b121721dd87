r"""Tempering, $\pi(x) L(x)^\beta$: how far the likelihood may be switched on at once."""

from __future__ import annotations

import math

import numpy as np

from ..weights import kish


def next_temperature(beta: float, log_l: np.ndarray, log_base: np.ndarray, *, goal: float) -> float:
    r"""Return the largest power $b$ in $(\beta, 1]$ that leaves `goal` effective points.

    The points have weights $e^{b\,\mathtt{log\_l} + \mathtt{log\_base}}$. Where no step leaves as
    many, the one returned is a vanishing one.
    """

    def enough(power: float) -> bool:
        return kish(power * log_l + log_base) >= goal

    if enough(1.0):
        return 1.0
    # In the logarithm of the step: a sharp likelihood starts at powers as small as its inverse.
    low, high = -40.0, math.log1p(-beta)
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if enough(beta + math.exp(middle)) else (low, middle)
    return beta + math.exp(low)
