"""`optimize inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optimizer.cli import _options, _progress, _show

if TYPE_CHECKING:
    from optimizer.verbs.inspect import Inspected


@click.command("inspect")
@click.argument("path", metavar="MODEL|ENGINE", type=click.Path(path_type=Path))
@_options.target
@_options.importing
@_options.as_json
def command(path: Path, targets: tuple[str, ...], shapes: tuple[str, ...], factory_args: tuple[str, ...], as_json: bool, **how: Any) -> int:
    """Show what a model is made of, or what an engine came to.

    Of a model: inputs, layers, what fuses, which backends can take it and why a layer is not INT8. Of an engine: its report.
    """
    from optimizer.verbs.inspect import InspectedEngine, inspect

    with _show.standard_output(), _progress.shown(plain=False) as track:
        found = inspect(
            path,
            targets=targets,
            factory_args=_options.pairs_from_words(factory_args, "--factory-arg"),
            shapes=_options.shapes_from_words(shapes),
            **how,
            track=track,
        )
    if as_json:
        _show.json(found)
    elif isinstance(found, InspectedEngine):
        _show.report(found.report, err=False, plain=False)
    else:
        _model(found)
    if isinstance(found, InspectedEngine):
        passport = found.passport
        what = f"{path.name}, which holds no engine of its own" if passport is None else f"{passport.name} for {passport.target}"
        return _show.ending(0, f"{what}: {found.report.headline}")
    return _show.ending(0, f"{len(found.layers)} layers, {found.parameters:,} parameters, {len(found.fusions)} fusions")


def _model(found: Inspected) -> None:
    _show.line(f"{found.source.file} ({found.source.framework}), {found.parameters:,} parameters, {found.weights / 1e6:.1f} MB of weights")
    specs = [("input", one) for one in found.inputs] + [("output", one) for one in found.outputs]
    _show.table(["", "name", "type", "shape"], [(kind, one.name, one.dtype, " x ".join(map(str, one.shape))) for kind, one in specs])
    weighted = [(layer.name, layer.op, f"{layer.parameters:,}") for layer in found.layers if layer.parameters]
    _show.table(["layer", "op", "parameters"], weighted, f"{len(weighted)} of {len(found.layers)} layers hold parameters")
    _show.line("operators after fusion: " + ", ".join(f"{count} {op}" for op, count in found.operators.items()))
    if found.fusions:
        _show.line()
        rows = [(one.rule, " + ".join(one.layers), one.result) for one in found.fusions]
        _show.table(["rule", "layers", "become"], rows, f"{len(rows)} fusions")
    for taker in found.takers:
        _show.line()
        if taker.missing is not None:
            _show.line(f"{taker.target} by {taker.backend}: no. {taker.missing}")
            continue
        _show.line(f"{taker.target} by {taker.backend}: yes, in {', '.join(taker.precisions)}")
        ops = {layer.name: layer.op for layer in found.layers}
        refused = [(name, ops.get(name, ""), why) for name, why in taker.not_int8.items()]
        _show.table(["layer", "op", "why not"], refused, f"Not in INT8: {len(refused)} of {len(found.layers)} layers")
