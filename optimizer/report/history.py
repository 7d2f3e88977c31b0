"""How often the same evaluation data has judged the same model: each further look makes a lucky PASS likelier."""

from __future__ import annotations

from pathlib import Path

import msgspec

FILE = "report.json"


class _Hashed(msgspec.Struct):
    sha256: str
    judged: int = 0


class _Origin(msgspec.Struct):
    source: _Hashed
    evaluation: _Hashed | None = None


class _Judged(msgspec.Struct):
    provenance: _Origin


def judged_before(output: Path, model: str, evaluation: str) -> int:
    """In how many builds into the folder `output`, by the reports that lie there, this evaluation data judged this model.

    Both are named by their SHA-256. What is no report of one target (none yet, several targets' summary) counts nothing.
    """
    return max((_judged(file, model, evaluation) for file in (output / FILE, *output.glob(f"*/{FILE}"))), default=0)


def _judged(file: Path, model: str, evaluation: str) -> int:
    try:
        origin = msgspec.json.decode(file.read_bytes(), type=_Judged).provenance
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0
    same = origin.evaluation is not None and (origin.source.sha256, origin.evaluation.sha256) == (model, evaluation)
    return origin.evaluation.judged if same and origin.evaluation is not None else 0
