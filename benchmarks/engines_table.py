"""The tables of engines.py, in markdown: every engine of every model, then ours beside the best neighbour that keeps 99 %."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import geometric_mean
from typing import Any

from benchmarks.engines_neighbours import OURS, TIGHT

KEPT = 0.99
NOISE = 0.97
"""Never behind the best beyond 3 %."""

TRAINED_BAR, RANDOM_BAR = 1.8, 1.15
TIGHT_KEPT = 0.999
BUILD_BAR = 300.0
"""Seconds for a default build of ResNet-50 with 200 calibration images."""

Row = dict[str, Any]


def tables(results: Sequence[Row]) -> str:
    """All tables of all models that were measured."""
    if not results:
        return "Nothing was measured yet."
    lines = [f"CPU: {'; '.join(dict.fromkeys(one['cpu'] for one in results))}", ""]
    for result in results:
        lines += [*_model(result), ""]
    for trained, title in ((True, "Trained weights"), (False, "Random weights")):
        if chosen := [one for one in results if one["trained"] is trained]:
            lines += [*_bars(chosen, title, trained), *(_tight(chosen) if trained else _build(chosen)), ""]
    return "\n".join(lines)


def _modes(result: Row) -> list[str]:
    return list(dict.fromkeys(mode for row in result["rows"].values() for mode in row["times"]))


def _heading(mode: str) -> str:
    return "throughput, ms a request" if mode == "throughput" else f"{mode} thread{'s' if mode != '1' else ''}, ms"


def _model(result: Row) -> Iterator[str]:
    modes = _modes(result)
    samples = max(one["samples"] for row in result["rows"].values() for one in row["kept"].values())
    yield f"### {result['title']} ({'trained' if result['trained'] else 'random'} weights)\n"
    yield f"Kept: {result['measure']}, {samples} held-out samples.\n"
    yield f"| engine | {' | '.join(f'{_heading(mode)} | times as fast' for mode in modes)} | kept, % | beside | build, s | MB |"
    yield "|---|" + "---|---|" * len(modes) + "---|---|---|---|"
    for name, row in sorted(result["rows"].items(), key=lambda one: float(one[1]["times"].get(modes[0], {}).get("ms", "inf"))):
        times = [_time(row["times"].get(mode), _failed(row, mode)) for mode in modes]
        told = [_kept(row, modes), _beside(row), _span(one["seconds"] for one in row["built"].values() if "seconds" in one)]
        yield f"| {f'**{name}**' if row['ours'] else name} | {' | '.join([*times, *told, _span(row['megabytes'].values())])} |"
    for name, row in result["rows"].items():
        yield from (f"\n{name}: {reason}" for reason in dict.fromkeys(_failed(row, mode) for mode in modes) if reason)
        notes = [(mode, one["note"]) for mode, one in row["built"].items() if row["ours"] and one.get("note")]
        yield from (f"\n{name}, {mode}: {note}" for mode, note in notes)


def _failed(row: Row, mode: str) -> str:
    """Why an engine has no time in a mode; empty where it has one, or was not asked for it."""
    return "" if mode in row["times"] else str(row["built"].get(mode, {}).get("failed", ""))


def _time(time: Row | None, failed: str) -> str:
    if time is None:
        return f"{'-' if failed else ''} | "
    interval = f"[{time['ratio_low']:.2f}, {time['ratio_high']:.2f}]"
    return f"{time['ms']:.3g} ({time['low']:.3g} to {time['high']:.3g}) | {time['ratio']:.2f} {interval}"


def _kept(row: Row, modes: Sequence[str]) -> str:
    """The least over all modes; a tick where that is 99 %."""
    shares = [one["share"] for one in row["kept"].values()]
    return f"{100 * min(shares):.2f}{' ✓' if all(honest(row, mode) for mode in modes if mode in row['times']) else ''}" if shares else ""


def _beside(row: Row) -> str:
    first: Row = next(iter(row["kept"].values()), {"beside": {}})
    return ", ".join(f"{words} {100 * share:.2f} %" for words, share in first["beside"].items())


def _span(numbers: Iterable[float]) -> str:
    """The smallest and the largest, in whole numbers; one where they are the same."""
    whole = sorted({round(number) for number in numbers})
    return " to ".join(dict.fromkeys(map(str, (whole[0], whole[-1])))) if whole else ""


def honest(row: Row, mode: str) -> bool:
    """Whether at least 99 % of the parent's answers stay, as it was built and loaded for this mode."""
    return float(row["kept"].get(mode, {}).get("share", 0.0)) >= KEPT


def best(result: Row, mode: str, ours: bool) -> tuple[str, Row] | None:
    """The fastest that keeps 99 %: of ours the default build, which is what is compared, or of the neighbours."""
    rows = {name: row for name, row in result["rows"].items() if row["ours"] is ours and mode in row["times"] and honest(row, mode)}
    if ours:
        rows = {name: row for name, row in rows.items() if name == OURS}
    return min(rows.items(), key=lambda one: float(one[1]["times"][mode]["ms"]), default=None)


def _bars(results: Sequence[Row], title: str, trained: bool) -> Iterator[str]:
    yield f"## {title}: ours beside the fastest neighbour that keeps 99 %\n"
    for mode in dict.fromkeys(mode for result in results for mode in _modes(result)):
        gains = []
        yield f"**{_heading(mode)}**\n\n| model | ours | best neighbour | its ms | ours over it |\n|---|---|---|---|---|"
        for result in results:
            mine, other = best(result, mode, True), best(result, mode, False)
            times = [float(one[1]["times"][mode]["ms"]) if one else None for one in (mine, other)]
            gain = times[1] / times[0] if times[0] and times[1] else None
            gains += [gain] if gain else []
            without = "none keeps 99 %" if mode in _modes(result) else "not measured yet"
            cells = [f"{one:.3g}" if one else without for one in times]
            yield f"| {result['title']} | {cells[0]} | {other[0] if other else ''} | {cells[1]} | {f'{gain:.2f}' if gain else ''} |"
        if gains:
            yield from (f"\n{line}" for line in _verdict(results, gains, mode, trained))
        yield ""


def _verdict(results: Sequence[Row], gains: list[float], mode: str, trained: bool) -> Iterator[str]:
    """Whether the bars hold; a model without an engine of ours that keeps 99 % breaks each."""
    mean, missing = geometric_mean(gains), len(results) - len(gains)
    yield f"Over the best neighbour of each: geometric mean {mean:.2f}, least {min(gains):.2f}; {missing} models can't be compared."
    if trained:
        yield f"Faster than every neighbour that keeps 99 %: {_word(min(gains) > 1.0 and not missing)}."
        yield f"Geometric mean at least {TRAINED_BAR}: {_word(mean >= TRAINED_BAR and not missing)}."
        return
    yield f"Never behind the best beyond 3 %: {_word(min(gains) >= NOISE and not missing)}."
    if single := _single(results, mode):
        name, over = single
        yield f"Over the best single neighbour, {name}: {over:.2f}; at least {RANDOM_BAR}: {_word(over >= RANDOM_BAR and not missing)}."


def _tight(results: Sequence[Row]) -> Iterator[str]:
    if not any(TIGHT in result["rows"] for result in results):
        yield "A 99.9 % plan for each: not measured yet."
        return
    rows = {result["title"]: result["rows"].get(TIGHT, {"kept": {}}) for result in results}
    without = [title for title, row in rows.items() if not any(one["share"] >= TIGHT_KEPT for one in row["kept"].values())]
    told = f"; not for {', '.join(without)}" if without else ""
    yield f"A 99.9 % plan for each: {_word(not without)}{told}."


def _build(results: Sequence[Row]) -> Iterator[str]:
    for result in results:
        seconds = [one["seconds"] for one in result["rows"].get(OURS, {"built": {}})["built"].values() if "seconds" in one]
        if result["title"] == "ResNet-50" and seconds:
            yield f"Default build of ResNet-50 under {BUILD_BAR:g} s: {_word(max(seconds) < BUILD_BAR)} ({_span(seconds)} s)."


def _single(results: Sequence[Row], mode: str) -> tuple[str, float] | None:
    """The one neighbour that ours leads by the least, geometric mean over the models; it counts as ONNX Runtime FP32 where it has no
    engine that keeps 99 %."""
    mine = [best(result, mode, True) for result in results]
    names = dict.fromkeys(name for result in results for name, row in result["rows"].items() if not row["ours"])
    leads = {}
    for name in names:
        gains = [_ms(result, name, mode) / one[1]["times"][mode]["ms"] for result, one in zip(results, mine, strict=True) if one]
        leads[name] = geometric_mean(gains) if gains else float("inf")
    return min(leads.items(), key=lambda one: one[1], default=None)


def _ms(result: Row, name: str, mode: str) -> float:
    row = result["rows"].get(name, {})
    usable = mode in row.get("times", {}) and honest(row, mode)
    found = (row if usable else next(iter(result["rows"].values())))["times"][mode]["ms"]
    return float(found)


def _word(holds: bool) -> str:
    return "**yes**" if holds else "**no**"
