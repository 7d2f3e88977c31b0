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
@click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", help="Load test, too: N clients that ask again as soon as they are answered."
)
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
    concurrency: int | None,
    seed: int | None,
    as_json: bool,
    ci: bool,
) -> int:
    """Time ENGINES against the first of them, in interleaved pairs.

    An engine is a folder that a build wrote, or an ONNX model, which runs as it is.
    """
    from kernels.load import load_in_words
    from optimizer.verbs.bench import bench

    with _show.standard_output(), _progress.shown(plain=ci) as track:
        found = bench(
            engines,
            seconds=seconds,
            evaluation=evaluation,
            shapes=_options.shapes_from_words(shapes),
            trust=trust,
            threads=threads,
            concurrency=concurrency,
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
                "-" if one.cold_milliseconds is None else f"{one.cold_milliseconds:.3g}",
                f"{one.ratio:.2f}x [{one.low:.2f}, {one.high:.2f}]",
                one.runs,
            )
            for name, one in timings.items()
        ]
        _show.table(["engine", "p50 ms", "p90 ms", "p99 ms", "cold ms", f"speed of {found.baseline}", "runs"], rows, f"On {found.inputs}")
        for name, load in found.loads.items():
            _show.line(f"{name}: {load_in_words(load)}")
    fastest = min(timings, key=lambda name: timings[name].milliseconds)
    best = timings[fastest]
    return _show.ending(
        0, f"{fastest} is the fastest: {best.ratio:.2f}x {found.baseline} [{best.low:.2f}, {best.high:.2f}] on {best.timed_on}", ci=ci
    )
