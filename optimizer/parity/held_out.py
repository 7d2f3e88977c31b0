"""Evidence is held out: a sample that calibration has seen proves nothing."""

from __future__ import annotations

from optimizer.data import Samples
from optimizer.errors import InputError

MOST_SHARED = 0.01
"""The share of evaluation samples that may also be calibration samples: they are left out; more is no accident."""


def held_out(evaluation: Samples, calibration: Samples | None) -> tuple[Samples, int]:
    """The evaluation samples that are not in the calibration data, and how many were left out.

    Raises:
        InputError: more than 1 % of the evaluation samples are calibration samples.
    """
    if calibration is None:
        return evaluation, 0
    seen = set(calibration.fingerprints())
    fresh = [index for index, digest in enumerate(evaluation.fingerprints()) if digest not in seen]
    total = len(evaluation)
    shared = total - len(fresh)
    if shared > MOST_SHARED * total:
        raise InputError(
            f"{shared:,} of the {total:,} evaluation samples are also in the calibration data, so they are no evidence.",
            "Give evaluation data that calibration has not seen.",
        )
    return (evaluation.take(fresh) if shared else evaluation), shared
