"""`optimize qualify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli import _options, _progress, _show

_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}


@click.command("qualify")
@_options.engine
@click.option(
    "--engine", "own", type=click.Path(path_type=Path), metavar="my.plan", help="The engine that you built yourself from handover/."
)
@click.option("--model", type=click.Path(path_type=Path), help="The file that the engine was built from, to gate against.")
@click.option("--evaluation", metavar="DATA", help="Held-out samples to gate on.")
@_options.source_python
@_options.trust
@_options.custom_ops
@_options.seconds
@_options.as_json
@_options.ci
def command(
    engine: Path, own: Path | None, model: Path | None, evaluation: str | None, seconds: float, as_json: bool, ci: bool, **how: Any
) -> int:
    """On the target: time ENGINE, gate it there, and attest it.

    The attestation is added to its folder. For GPUs this is written and was never run.
    """
    from optimizer.report.headline import dropped
    from optimizer.verbs.qualify import qualify

    with _show.standard_output(), _progress.shown(plain=ci) as track:
        found = qualify(engine, model=model, evaluation=evaluation, engine=own, seconds=seconds, track=track, **how)
    timing, parity = found.timing, found.parity
    if as_json:
        _show.json(found)
    else:
        _show.line(f"{found.engine} on {found.device}: p50 {timing.milliseconds:.3g} ms, p90 {timing.p90:.3g} ms, p99 {timing.p99:.3g} ms")
        if timing.versus != "engine":
            _show.line(f"{timing.ratio:.2f}x {timing.versus} [{timing.low:.2f}, {timing.high:.2f}]")
        for note in found.notes:
            _show.line(f"note: {note}")
    if parity is None:
        return _show.ending(
            0, f"{timing.milliseconds:.3g} ms on {found.device}, not gated here; the attestation is in {engine.name}", ci=ci
        )
    judged = f"{parity.metric} {dropped(parity.drop, parity.low, parity.high, parity.metric)}: {parity.reason}"
    return _show.ending(_CODES[parity.verdict], f"{timing.milliseconds:.3g} ms on {found.device}; {judged}", ci=ci)
