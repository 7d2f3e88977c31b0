"""INT8 asked for, and INT8 realised: by layers, and by the multiplications that they are there for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizer.engine import Realised

UNKNOWN = "unknown"
"""`Realised.realised` of a layer that nobody has built yet."""


@dataclass(frozen=True)
class Missing:
    """A layer that does not run in INT8 though it was `asked` for, or holds weights, which are what INT8 is for.

    `share` is its part of all multiplications by weights, `ms` the time that it takes as it is, where that was seen.
    """

    layer: str
    asked: bool
    reason: str
    share: float
    ms: float | None


@dataclass(frozen=True)
class Coverage:
    """How far INT8 went, read back from a built engine.

    `asked` layers were planned in INT8 and are still there, `got` of them run in it.  `share` is the part in INT8, static or
    dynamic, of all multiplications by weights in a run, those of layers that were not asked for among them; None where no layer holds
    weights.  `missing` is sorted by time where there is one, the dearest first, then by share.
    """

    asked: int
    got: int
    share: float | None
    missing: tuple[Missing, ...] = ()

    @property
    def sentence(self) -> str:
        """The figures in words."""
        asked = f"INT8 was asked for {self.asked} layers, and {self.got} run in it" if self.asked else "INT8 was asked for no layer"
        return asked if self.share is None else f"{asked}: {self.share:.1%} of all multiplications by weights"


def coverage(realised: Sequence[Realised], reasons: Mapping[str, str] | None = None) -> Coverage | None:
    """The Coverage of a built engine; None where nothing was read back. `reasons` are the plan's for what it did not ask, by layer."""
    layers = [layer for layer in realised if layer.realised != "folded" or layer.multiplications]
    if not layers or any(layer.realised == UNKNOWN for layer in layers):
        return None
    total = sum(layer.multiplications or 0 for layer in layers)
    asked = [layer for layer in layers if _int8(layer.planned)]
    missing = [
        Missing(
            layer=layer.layer,
            asked=_int8(layer.planned),
            reason=layer.reason or (reasons or {}).get(layer.layer) or f"the plan keeps it in {layer.planned.upper()}",
            share=(layer.multiplications or 0) / total if total else 0.0,
            ms=layer.ms,
        )
        for layer in layers
        if not _int8(layer.realised) and (layer.multiplications or _int8(layer.planned))
    ]
    return Coverage(
        asked=len(asked),
        got=sum(_int8(layer.realised) for layer in asked),
        share=sum(layer.multiplications or 0 for layer in layers if _int8(layer.realised)) / total if total else None,
        missing=tuple(sorted(missing, key=lambda one: (-(one.ms or 0.0), -one.share))),
    )


def _int8(precision: str) -> bool:
    return precision.startswith("int8")
