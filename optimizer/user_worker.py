"""Runs a function of the user's for `optimizer.process`: started by `isolated(...)`, where none of our packages can be found.

The request says how it is used: `generate` yields dicts of arrays until it ends; `transform` gets an array and returns one, for
each message; `tokenize` gets a text, or a text and its pair, and returns a dict of arrays, for each message; `score` gets a dict of
outputs and the labels or None, and returns one number or one a sample, for each message too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from optimizer.child import Channel


def main(channel: Channel) -> None:
    request = channel.receive().event
    reference = request["reference"]
    channel.see(Path(request["folder"]))
    function = channel.function(reference, request["role"])
    _USES[request["use"]](channel, function, f"The {request['role']} {reference}")


def _generate(channel: Channel, function: Callable[..., Any], what: str) -> None:
    with channel.theirs(what, _CORRECT):
        items = iter(function())
    while True:
        with channel.theirs(what, _CORRECT):
            item = next(items, None)
        if item is None:
            return
        channel.send("item", _arrays(channel, item, what, "yield"))


def _transform(channel: Channel, function: Callable[..., Any], what: str) -> None:
    while True:
        raw = channel.receive().arrays["raw"]
        with channel.theirs(what, _CORRECT):
            result = function(raw)
        channel.send("item", {"prepared": _array(channel, result, f"{what} must return an array of numbers")})


def _tokenize(channel: Channel, function: Callable[..., Any], what: str) -> None:
    while True:
        arrays = channel.receive().arrays
        texts = [arrays[name].tobytes().decode() for name in ("text", "pair") if name in arrays]
        with channel.theirs(what, _CORRECT):
            result = function(*texts)
        channel.send("item", _arrays(channel, result, what, "return"))


def _score(channel: Channel, function: Callable[..., Any], what: str) -> None:
    while True:
        arrays = channel.receive().arrays
        outputs = {name.removeprefix("outputs."): array for name, array in arrays.items() if name.startswith("outputs.")}
        with channel.theirs(what, _CORRECT):
            result = function(outputs, arrays.get("labels"))
        channel.send("item", {"score": _array(channel, result, f"{what} must return one number or an array of shape (n,)")})


def _arrays(channel: Channel, item: object, what: str, does: str) -> dict[str, NDArray[Any]]:
    rule = f"{what} must {does} a dict of arrays of numbers by input name"
    if not isinstance(item, Mapping):
        channel.refuse(f"{rule}, not {type(item).__name__}.", _CORRECT)
    return {str(name): _array(channel, value, rule) for name, value in item.items()}


def _array(channel: Channel, value: object, rule: str) -> NDArray[Any]:
    with channel.theirs(rule, _CORRECT):
        array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        channel.refuse(f"{rule}, not {type(value).__name__} of {array.dtype}.", _CORRECT)
    return array


_USES = {"generate": _generate, "transform": _transform, "tokenize": _tokenize, "score": _score}
_CORRECT = "Correct the function, then build again."
