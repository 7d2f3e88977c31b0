"""From raw data to what the model takes: part of the model's meaning, so it travels in the passport.

Training-serving skew is the commonest way a good engine gives bad answers; hence one description, used for calibration, for
the gate and by `run_raw`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.model import TensorSpec
from optimizer.provenance import told

Function = Callable[[NDArray[Any]], NDArray[Any]]
"""A user's own preprocessing of one input, raw batch to prepared batch."""


@dataclass(frozen=True)
class InputPreprocessing:
    """One input: (raw * scale - mean) / std by channel, then from the data's layout to the model's.

    `layout` names the data's axes (`NHWC`, `NTC` ...); the model's own comes from its declared shape.  `function` is a
    reference to code of the user's (`file.py:function`) that takes the place of scale, mean and std.  `state` names the output
    that this input carries on: zeros at the start of a sequence, then what that output gave for the sample before.
    """

    layout: str | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    function: str | None = None
    state: str | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and (not self.layout.startswith("N") or len(set(self.layout)) != len(self.layout)):
            raise InputError(
                f"The layout {self.layout!r} is not a list of different axes that begins with N.", 'Write it like layout = "NHWC".'
            )
        if any(value == 0 for value in self.std):
            raise InputError("A std of 0 would divide by zero.", "Give the standard deviation of each channel, or leave std out.")
        if self.function and (self.scale != 1.0 or self.mean or self.std):
            raise InputError("An input has both a function and scale, mean or std.", "Do all of it in the function, or none.")


@dataclass(frozen=True)
class Preprocessing:
    """What happens to each input before the model sees it; inputs that are not named are taken as they are."""

    inputs: Mapping[str, InputPreprocessing] = field(default_factory=dict)

    def check(self, inputs: tuple[TensorSpec, ...]) -> None:
        """Raises InputError where an input is described that the model does not have."""
        known = [spec.name for spec in inputs]
        for name in self.inputs:
            if name not in known:
                raise InputError(
                    f"optimize.toml describes an input {name!r} that the model does not have.", f"Its inputs are: {', '.join(known)}."
                )

    def told(self, folder: Path) -> Preprocessing:
        """This as it may be written down: users' functions by their files seen from `folder`."""
        named = {name: replace(how, function=told(how.function, folder)) for name, how in self.inputs.items() if how.function is not None}
        return Preprocessing({**self.inputs, **named})

    def apply(
        self, raw: Mapping[str, NDArray[Any]], inputs: tuple[TensorSpec, ...], functions: Mapping[str, Function] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Prepared arrays by input name for raw ones with a batch axis first; `functions` holds the users' own, by input.

        Raises:
            InputError: an input is missing, or does not fit the model in shape or type.
        """
        prepared = {}
        for spec in inputs:
            if spec.name not in raw:
                raise InputError(
                    f"The data has no array for the model's input {spec.name!r}.", f"It has: {', '.join(sorted(raw)) or 'nothing'}."
                )
            function = (functions or {}).get(spec.name)
            prepared[spec.name] = _one(raw[spec.name], spec, self.inputs.get(spec.name, InputPreprocessing()), function)
        return prepared


def _one(raw: NDArray[Any], spec: TensorSpec, how: InputPreprocessing, function: Function | None) -> NDArray[Any]:
    if how.function is not None:
        if function is None:
            raise InputError(
                f"The input {spec.name!r} is preprocessed by {how.function}, which is not part of the engine.",
                "Call run with arrays that went through it.",
            )
        return as_model_takes(function(raw), spec)
    array = raw
    if how.scale != 1.0 or how.mean or how.std:
        array = array.astype(np.float32) * np.float32(how.scale)
        if how.mean:
            array -= _along_channel(how.mean, array, how.layout, spec)
        if how.std:
            array /= _along_channel(how.std, array, how.layout, spec)
    if how.layout is not None:
        array = _to_model_layout(array, how.layout, spec)
    return as_model_takes(array, spec)


def _along_channel(numbers: tuple[float, ...], array: NDArray[Any], layout: str | None, spec: TensorSpec) -> NDArray[np.float32]:
    """`numbers`, shaped so that they broadcast along the channel axis of `array`."""
    values = np.asarray(numbers, np.float32)
    if len(numbers) == 1:
        return values
    if layout is not None and "C" in layout and len(layout) == array.ndim:
        axis = layout.index("C")
    else:
        axes = [axis for axis in range(1, array.ndim) if array.shape[axis] == len(numbers)]
        if len(axes) != 1:
            raise InputError(
                f"Which axis of {spec.name!r} holds the {len(numbers)} channels of mean and std can't be told.",
                'Name the data\'s axes in optimize.toml, like layout = "NHWC".',
            )
        axis = axes[0]
    if array.shape[axis] != len(numbers):
        raise InputError(
            f"mean or std of {spec.name!r} has {len(numbers)} numbers, the data {array.shape[axis]} channels.",
            "Give one number, or one a channel.",
        )
    return values.reshape([-1 if position == axis else 1 for position in range(array.ndim)])


def _to_model_layout(array: NDArray[Any], layout: str, spec: TensorSpec) -> NDArray[Any]:
    if len(layout) != array.ndim:
        raise InputError(
            f"The layout {layout} of {spec.name!r} has {len(layout)} axes, the data has shape {array.shape}.",
            "The batch axis counts too.",
        )
    if "C" not in layout:
        return array
    rest = layout.replace("C", "")
    # Channels first where both would fit: that is how PyTorch and ONNX have it.
    for wanted in (rest[0] + "C" + rest[1:], rest + "C"):
        moved = array.transpose([layout.index(axis) for axis in wanted])
        if fits(moved.shape, spec):
            return moved
    return array


def fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    """Whether an array with a batch axis first has the sizes that the model declares; its batch may be any multiple."""
    if len(shape) != len(spec.shape):
        return False
    batch = spec.shape[0] if spec.shape else 1
    if isinstance(batch, int) and (shape[0] % batch if batch else shape[0]):
        return False
    return all(isinstance(want, str) or have == want for have, want in zip(shape[1:], spec.shape[1:], strict=True))


def as_model_takes(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """`array` in the model's type; refuses what does not fit in shape, and numbers that the type can't hold.

    Raises:
        InputError: wrong shape, or a type that would lose numbers (1.5 for an integer input, text ...).
    """
    if spec.shape and not fits(array.shape, spec):
        hint = f"The model wants ({', '.join(str(size) for size in spec.shape)})."
        if len(array.shape) == len(spec.shape) == 4 and fits((array.shape[0], array.shape[3], *array.shape[1:3]), spec):
            hint += ' The channels stand last in the data: set layout = "NHWC" for this input in optimize.toml.'
        raise InputError(f"The data for {spec.name!r} has shape {tuple(array.shape)}, which does not fit.", hint)
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return np.asarray(array, order="C")
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"The data for {spec.name!r} holds {array.dtype}, not numbers.",
            f"The model takes {spec.dtype}: convert it before, or by a function.",
        )
    with np.errstate(over="ignore"):  # refused below, in words
        converted = array.astype(wanted, order="C")
    if wanted.kind == "f" and np.isfinite(array[np.isinf(converted)]).any():
        raise InputError(f"The data for {spec.name!r} holds numbers beyond {spec.dtype}.", "Scale it to what the model was trained on.")
    if wanted.kind in "iub" and not np.array_equal(converted, array):
        raise InputError(
            f"The data for {spec.name!r} holds numbers that {spec.dtype} can't hold.", "Give integers within the range of that type."
        )
    return converted
