"""The cheapest way to part a hypergraph in two (Ford and Fulkerson 1956), edges counting 1 where they reach across."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable

SOURCE, SINK = "source", "sink"
"""Members that stand for the two sides."""

_UNLIMITED = 1 << 60


def cheapest_cut(edges: Iterable[Iterable[Hashable]]) -> tuple[int, set[Hashable]]:
    """How many `edges` (each a set of members) must have members on both sides, and the smallest side of SOURCE that does so."""
    capacity: defaultdict[Hashable, dict[Hashable, int]] = defaultdict(dict)
    for number, members in enumerate(edges):
        into, out = ("in", number), ("out", number)
        _join(capacity, into, out, 1)
        for member in members:
            _join(capacity, member, into, _UNLIMITED)
            _join(capacity, out, member, _UNLIMITED)
    cost = 0
    while SINK in (before := _reached(capacity)):
        cost += 1  # an edge lies on each way, so that each carries 1
        place: Hashable = SINK
        while place != SOURCE:
            previous = before[place]
            capacity[previous][place] -= 1
            capacity[place][previous] += 1
            place = previous
    return cost, set(before)


def _join(capacity: dict[Hashable, dict[Hashable, int]], start: Hashable, end: Hashable, limit: int) -> None:
    capacity[start][end] = capacity[start].get(end, 0) + limit
    capacity[end].setdefault(start, 0)


def _reached(capacity: dict[Hashable, dict[Hashable, int]]) -> dict[Hashable, Hashable]:
    """What can still be reached from SOURCE, each with the place before it."""
    before: dict[Hashable, Hashable] = {SOURCE: SOURCE}
    waiting = deque([SOURCE] if SOURCE in capacity else [])
    while waiting:
        place = waiting.popleft()
        for end, left in capacity[place].items():
            if left > 0 and end not in before:
                before[end] = place
                waiting.append(end)  # type: ignore[arg-type]
    return before
