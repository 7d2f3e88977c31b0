"""`optimize build`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli import _options, _progress, _show


@click.command("build")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT", help="The engine folder to write.")
@_options.target
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME", help="Which may compete. Default all that serve the target. May be repeated."
)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]), help="auto: the fastest that passes.")
@click.option("--calibration", metavar="DATA", help="Samples for INT8 ranges: a file, a folder, or file.py:function.")
@click.option("--evaluation", metavar="DATA", help="Held-out samples, with labels if there are any, that the gate judges by.")
@click.option("--tokenizer", metavar="FILE.py:FUNCTION", help="What makes the inputs of a text (and its pair): a dict of arrays.")
@click.option("--random-calibration", is_flag=True, help="Calibrate on random numbers; leaves a mark.")
@click.option("--task", type=click.Choice(["classification", "regression", "embedding"]), help="What the outputs mean.")
@click.option("--metric", metavar="NAME|FILE.py:FUNCTION", help="top1, top5, auc, f1, mae, rmse, cosine, agreement ... or yours.")
@click.option("--max-drop", metavar="1%|0.5pp", help="What may be lost: of the parent's metric (%), or in points (pp). Default 1%.")
@click.option("--min-metric", type=float, metavar="X", help="What the engine's own lower bound must reach.")
@click.option(
    "--min-int8-coverage",
    type=float,
    metavar="X",
    help="FAIL where less than this share (0.9) of all multiplications by weights runs in INT8, as read back from the engine.",
)
@click.option("--min-speedup", type=float, metavar="X", help="FAIL where the engine is not X times as fast as unquantized.")
@click.option(
    "--time-budget",
    metavar="10m",
    help="About how long the build may take (s, m, h): the best plan found by then ships. Without it the search alone has 2m.",
)
@click.option("--resume", is_flag=True, help="Go on where a killed build into OUT had got to.")
@click.option(
    "--max-latency",
    metavar="2ms@p99",
    help="FAIL where requests take longer (us, ms, s; at p50, p90, p99). One client asks again as soon as it is answered;"
    " 2ms@p99x4: four do so at once; 2ms@p99@200/s: so many requests arrive a second, at random.",
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput", "size"]),
    help="What decides: the time of one run (default); samples a second, with streams, threads and batch tuned; or bytes of memory.",
)
@_options.importing
@click.option("--plan", type=click.Path(path_type=Path), metavar="plan.json", help="Repeat the decisions of an earlier build.")
@click.option("--config", type=click.Path(path_type=Path), metavar="optimize.toml", help="Options and preprocessing from a file.")
@_options.threads
@_options.seed
@click.option("--on-inconclusive", type=click.Choice(["fail", "pass"]), help="Take INCONCLUSIVE (exit 4) for a FAIL or a PASS.")
@click.option("--require-measured", is_flag=True, help="INCONCLUSIVE where the gate was only simulated.")
@_options.as_json
@_options.ci
def command(model: Path, output: Path, config: Path | None, as_json: bool, ci: bool, **words: Any) -> int:
    """Build an engine for MODEL into OUT, gated against its parent.

    It is imported, fused and calibrated; of the plans that are tried the fastest that passes on held-out data ships.

    MODEL is an ONNX file, a PyTorch checkpoint or archive, a Hugging Face folder, or a TensorFlow model.
    """
    from optimizer.process import check_house

    # Before the pipeline is imported: with somebody else's `kernels` the import itself would fail, and in no user's words.
    check_house()

    from optimizer.pipeline import build
    from optimizer.provenance import to_json
    from optimizer.request import request_from_words

    # A flag that was not given must not count against optimize.toml.
    given = {name: value for name, value in {**words, "ci": ci}.items() if value is not False}
    request = request_from_words(model=model, output=output, config=config, **given)
    with _show.standard_output() as stream, _progress.shown(plain=request.ci) as track:
        outcome = build(request, track)
        if as_json:
            stream.write(to_json(outcome.report))
    _show.report(outcome.report, err=as_json, plain=request.ci)
    if request.ci:
        _show.job_summary(outcome.report)
    for page in sorted(outcome.folder.glob("report.html")) or sorted(outcome.folder.glob("*/report.html")):
        _show.line(f"report: {page}", err=True)
    return _show.ending(outcome.exit_code, outcome.headline, ci=request.ci)
