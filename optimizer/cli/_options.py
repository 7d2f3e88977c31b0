"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

Command = Callable[..., Any]

if TYPE_CHECKING:
    from optimizer.plan import Shape

as_json = click.option("--json", "as_json", is_flag=True, help="Standard output carries JSON and nothing else.")


def _without_colour(context: click.Context, _option: click.Parameter, wanted: bool) -> bool:
    if wanted:
        context.color = False
    return wanted


ci = click.option(
    "--ci", is_flag=True, callback=_without_colour, help="For a CI job: no colour, no bars, no random calibration, a job summary."
)

threads = click.option("--threads", type=int, metavar="N", help="Threads that an engine may use.")

seed = click.option("--seed", type=int, metavar="N", help="Seed of everything that is drawn at random.")

target = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="cpu, auto, another CPU (cpu:avx2, cpu:icelake-server ...) or a GPU (l4, t4, a100, sm_89 ...). May be repeated.",
)

shapes = click.option("--shapes", multiple=True, metavar="X=1x3x32x32", help="Sizes of an input, or smallest:usual:largest.")

factory = click.option("--factory", metavar="FILE.py:FUNCTION", help="What makes the module that a checkpoint belongs to.")

factory_args = click.option("--factory-arg", "factory_args", multiple=True, metavar="K=V", help="An argument of the factory.")

source_python = click.option(
    "--source-python", type=click.Path(path_type=Path), metavar="INTERPRETER", help="The Python in which the model's own code lives."
)

trust = click.option("--trust", is_flag=True, help="Open what can run code (.pt2, TorchScript, pickles, Lambda layers, custom operators).")

custom_ops = click.option(
    "--custom-ops", type=click.Path(path_type=Path), metavar="LIBRARY", help="ONNX Runtime's library of custom operators."
)

_IMPORTING = (
    shapes,
    factory,
    factory_args,
    source_python,
    trust,
    click.option("--signature", metavar="NAME", help="Which signature of a SavedModel. Default serving_default."),
    click.option("--tag", "tags", multiple=True, metavar="TAG", help="Which graph of a SavedModel. Default serve. May be repeated."),
    custom_ops,
)


def importing(command: Command) -> Command:
    """The options that say how a model file is read."""
    for option in reversed(_IMPORTING):
        command = option(command)
    return command


seconds = click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True, help="Time for the race.")

engine = click.argument("engine", type=click.Path(path_type=Path))


def pairs_from_words(words: Sequence[str], option: str) -> dict[str, str]:
    """`k=v` words as a mapping; a word of another form is a usage error."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise click.UsageError(f"{word!r} is not of the form name=value. Write {option} name=value.")
        found[name] = value
    return found


def shapes_from_words(words: Sequence[str]) -> dict[str, Shape]:
    """`--shapes` words by input name."""
    from optimizer.request import shape_from_words

    return {name: shape_from_words(value) for name, value in pairs_from_words(words, "--shapes").items()}
