"""`optimize bench`."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli import _options, _progress, _show


@click.command("bench")
@click.argument("engines", nargs=-1, required=True, type=click.Path(path_type=Path))
@_options.seconds
@click.option("--evaluation", metavar="DATA", help="Run on these samples instead of random numbers.")
@_options.shapes
@_options.trust
@click.option("--threads", type=int, metavar="N", help="Threads for models; an engine keeps those that it was built with.")
@_options.seed
@_options.as_json
@_options.ci
def command(
    engines: tuple[Path, ...],
    seconds: float,
    evaluation: str | None,
    shapes: tuple[str, ...],
    trust: bool,
    threads: int | None,
    seed: int | None,
    as_json: bool,
    ci: bool,
) -> int:
    """Time ENGINES (folders, or ONNX models as they are) against the first of them, in interleaved pairs."""
    from optimizer.verbs.bench import bench

    with _show.standard_output(), _progress.shown(plain=ci) as track:
        found = bench(
            engines,
            seconds=seconds,
            evaluation=evaluation,
            shapes=_options.shapes_from_words(shapes),
            trust=trust,
            threads=threads,
            seed=seed or 0,
            track=track,
        )
    timings = found.timings
    if as_json:
        _show.json(found)
    else:
        rows = [
            (
                name,
                f"{one.milliseconds:.3g}",
                f"{one.p90:.3g}",
                f"{one.p99:.3g}",
                f"{one.ratio:.2f}x [{one.low:.2f}, {one.high:.2f}]",
                one.runs,
            )
            for name, one in timings.items()
        ]
        _show.table(["engine", "p50 ms", "p90 ms", "p99 ms", f"speed of {found.baseline}", "runs"], rows, f"On {found.inputs}")
    fastest = min(timings, key=lambda name: timings[name].milliseconds)
    best = timings[fastest]
    return _show.ending(
        0, f"{fastest} is the fastest: {best.ratio:.2f}x {found.baseline} [{best.low:.2f}, {best.high:.2f}] on {best.timed_on}", ci=ci
    )
