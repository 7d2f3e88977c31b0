"""What quantizing one layer alone does to the outputs: measured on a few calibration samples, by groups where layers are many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optimizer.progress import Track, silent

_GROUPS = 24
"""Groups that are measured at first: neighbours in topological order, which tend to be broken by the same thing."""

_LOOKED_INTO = 3
"""The worst groups, whose layers are then measured one by one."""


def sensitivities(layers: Sequence[str], error: Callable[[Sequence[str]], float], track: Track = silent) -> Mapping[str, float]:
    """The output error that each layer causes when it alone is quantized.

    `error` measures the output error with the layers it is given quantized and no others.  Up to 24 layers are measured one by
    one; of more, groups of neighbours are, then the layers of the three worst groups; a layer of another group is given its
    share of the group's squared error, as if errors added up like independent noise.
    """
    groups = _groups(layers)
    measured = {}
    for done, group in enumerate(groups):
        track("sensitivity", done, len(groups))
        measured[group] = error(group)
    found = {layer: measured[group] / len(group) ** 0.5 for group in groups for layer in group}
    worst = sorted((group for group in groups if len(group) > 1), key=lambda group: measured[group], reverse=True)[:_LOOKED_INTO]
    inside = [layer for group in worst for layer in group]
    for done, layer in enumerate(inside):
        track("sensitivity of the worst", done, len(inside))
        found[layer] = error([layer])
    return found


def _groups(layers: Sequence[str]) -> list[tuple[str, ...]]:
    size = max(1, -(-len(layers) // _GROUPS))
    return [tuple(layers[start : start + size]) for start in range(0, len(layers), size)]
