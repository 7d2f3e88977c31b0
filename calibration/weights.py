"""Ranges of weights: known before any data, one symmetric range a channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError

Float = NDArray[np.float32]

_BLOCK = 1 << 15  # numbers worked on at once: they and their roundings stay in the processor's cache
_NARROWEST = 0.2
_FEW = 64  # with fewer numbers a channel, the error is a jagged function of the range and wants a denser look
_SECOND_LOOK = 16


def weight_ranges(weight: NDArray[Any], axis: int, method: str, limit: int = 127) -> Float:
    """The largest magnitude that -limit..limit covers in each channel along `axis`: float32, shape (channels,).

    `method` is a key of WEIGHT_METHODS. A channel of zeros gets 0.

    Raises:
        InputError: the weight holds NaN or an infinity.
    """
    channels = np.moveaxis(np.asarray(weight, np.float32), axis, 0)
    channels = np.ascontiguousarray(channels.reshape(len(channels), -1))
    if not np.isfinite(channels).all():
        raise InputError("A weight holds NaN or infinities.", "Take the checkpoint from before training diverged.")
    return WEIGHT_METHODS[method](channels, limit)


def _minmax(channels: Float, _limit: int) -> Float:
    """The largest magnitude of each row: nothing is clipped."""
    return np.abs(channels).max(axis=1, initial=0.0)  # type: ignore[no-any-return]


def _mse(channels: Float, limit: int) -> Float:
    """The range with the least squared error of each row, among shares of its largest magnitude: an even look, then a near one."""
    largest = _minmax(channels, limit)
    looks = 128 if channels.shape[1] < _FEW else 48
    step = (1 - _NARROWEST) / looks
    found = np.empty_like(largest)
    rows = max(1, _BLOCK // max(channels.shape[1], 1))
    for start in range(0, len(channels), rows):
        block, top = channels[start : start + rows], largest[start : start + rows]
        best, least = np.ones_like(top), np.full(len(top), np.inf, np.float32)
        for share in np.linspace(1, _NARROWEST, looks + 1, dtype=np.float32):
            best, least = _better(block, top, np.full_like(top, share), limit, best, least)
        middle = best
        for away in np.linspace(-step, step, _SECOND_LOOK + 1, dtype=np.float32):
            best, least = _better(block, top, np.minimum(middle + away, 1), limit, best, least)
        found[start : start + rows] = best * top
    return found


def _better(block: Float, top: Float, share: Float, limit: int, best: Float, least: Float) -> tuple[Float, Float]:
    """The better share of each row, and its squared error, of the one tried now and the best so far."""
    scale = np.maximum(top * share / np.float32(limit), np.finfo(np.float32).tiny)
    exact = block / scale[:, None]
    rounded = np.rint(exact)
    np.clip(rounded, -limit, limit, out=rounded)
    rounded -= exact
    error = np.einsum("ij,ij->i", rounded, rounded) * scale * scale
    wins = error < least
    return np.where(wins, share, best), np.where(wins, error, least)


WEIGHT_METHODS: Mapping[str, Callable[[Float, int], Float]] = {"minmax": _minmax, "mse": _mse}
