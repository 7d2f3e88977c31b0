"""Quantiles that the bounds need, from the incomplete beta function alone (the standard library has only the normal's)."""

from __future__ import annotations

import math
from collections.abc import Callable

_TINY = 1e-300
_STEPS = 20_000


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), to about 1e-12; a, b > 0.

    Continued fraction 8.17.22 of the NIST Digital Library of Mathematical Functions by Lentz's method, on the side of the
    mean where it converges fast.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / _off_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for step in range(1, _STEPS):
        even = step * (b - step) * x / ((a + 2 * step - 1.0) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1.0))
        for term in (even, odd):
            d = 1.0 / _off_zero(1.0 + term * d)
            c = _off_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-14:
            return value
    raise ArithmeticError(f"the incomplete beta function did not converge at a={a}, b={b}, x={x}")


def _off_zero(number: float) -> float:
    return number if abs(number) > _TINY else _TINY


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = probability."""
    return root(lambda x: incomplete_beta(a, b, x) - probability, 0.0, 1.0)


def student_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t for a probability over one half."""
    tail = 2.0 * (1.0 - probability)
    x = beta_quantile(tail, freedom / 2.0, 0.5)
    return math.sqrt(freedom * (1.0 - x) / x)


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that rises or falls throughout crosses 0 between `low` and `high`, to about 1e-13 of the place itself.

    Chandrupatla's method (Advances in Engineering Software 28, 1997): inverse quadratic interpolation where it is safe, else
    bisection, about ten evaluations.
    """
    a, b = high, low
    at_a, at_b = function(a), function(b)
    share = 0.5
    while True:
        x = a + share * (b - a)
        at_x = function(x)
        if (at_x > 0.0) == (at_a > 0.0):
            c, at_c = a, at_a
        else:
            c, at_c, b, at_b = b, at_b, a, at_a
        a, at_a = x, at_x
        best = a if abs(at_a) < abs(at_b) else b
        least = 1e-13 * abs(best) / abs(b - a) if b != a else 1.0
        if least > 0.5 or at_a == 0.0 or (a + b) / 2.0 in (a, b):
            return best
        share = min(max(_interpolated(a, b, c, at_a, at_b, at_c), least), 1.0 - least)


def _interpolated(a: float, b: float, c: float, at_a: float, at_b: float, at_c: float) -> float:
    """How far from a to b the next look should be."""
    if not all(map(math.isfinite, (at_a, at_b, at_c))) or at_b == at_c or at_a == at_c:
        return 0.5
    place, height = (a - b) / (c - b), (at_a - at_b) / (at_c - at_b)
    if not (height * height < place and (1.0 - height) ** 2 < 1.0 - place):
        return 0.5
    straight = at_a / (at_b - at_a) * at_c / (at_b - at_c)
    return straight + (c - a) / (b - a) * at_a / (at_c - at_a) * at_b / (at_c - at_b)
