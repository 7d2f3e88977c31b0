"""From raw data to what the model takes: part of the model's meaning, so it travels in the passport.

Training-serving skew is the commonest way a good engine gives bad answers; hence one description, used for calibration, for
the gate and by `run_raw`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.images import sized
from optimizer.model import TensorSpec
from optimizer.provenance import told

Function = Callable[[NDArray[Any]], NDArray[Any]]
"""A user's own preprocessing of one input, raw batch to prepared batch."""


@dataclass(frozen=True)
class InputPreprocessing:
    """One input: images resized and cropped, then (raw * scale - mean) / std by channel, then from the data's layout to the model's.

    `layout` names the data's axes (`NHWC`, `NTC` ...); the model's own comes from its declared shape.  `function` is a
    reference to code of the user's (`file.py:function`) that takes the place of scale, mean and std.  `resize` and `crop` are what
    `optimizer.images.sized` says, for data that lies as NHWC unless `layout` says otherwise.

    `state` names the output that this input carries on: zeros at the start of a sequence, then what that output gave for the
    sample before.  `value` is a number that the input always has.  Data need not hold such inputs.

    `rate`, `window`, `hop` and `context` say how sound files become samples (`optimizer.readers.sound`): samples a second, then
    lengths in samples.  `run_raw` takes one such window, in -1 to 1.
    """

    layout: str | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    function: str | None = None
    state: str | None = None
    resize: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    value: float | None = None
    rate: int | None = None
    window: int | None = None
    hop: int | None = None
    context: int = 0

    def __post_init__(self) -> None:
        if self.layout is not None and (not self.layout.startswith("N") or len(set(self.layout)) != len(self.layout)):
            raise InputError(
                f"The layout {self.layout!r} is not a list of different axes that begins with N.", 'Write it like layout = "NHWC".'
            )
        if any(value == 0 for value in self.std):
            raise InputError("A std of 0 would divide by zero.", "Give the standard deviation of each channel, or leave std out.")
        if self.function and (self.scale != 1.0 or self.mean or self.std):
            raise InputError("An input has both a function and scale, mean or std.", "Do all of it in the function, or none.")
        self._check_sizes()

    def __str__(self) -> str:
        """What was asked for, in the words of optimize.toml."""
        asked = {known.name: getattr(self, known.name) for known in fields(self) if getattr(self, known.name) != known.default}
        return ", ".join(f"{name} = {value}" for name, value in asked.items()) or "as it is"

    def _check_sizes(self) -> None:
        lengths = (*self.resize, *self.crop, *(one for one in (self.rate, self.window, self.hop) if one is not None))
        if any(size < 1 for size in lengths) or self.context < 0:
            raise InputError("A size in optimize.toml is below 1.", "Give resize, crop, rate, window and hop as whole numbers from 1 on.")
        if (self.resize or self.crop) and not {"H", "W"} <= set(self.axes or ""):
            raise InputError(
                f"The layout {self.layout!r} of an input with resize or crop names no H and W.", 'Write it like layout = "NHWC".'
            )
        if (self.hop or self.context) and self.window is None:
            raise InputError(
                "hop and context say where windows start, and there is no window.", "Set window, or leave hop and context out."
            )
        if self.window is not None and self.context >= self.window:
            raise InputError("The context of a window is the whole window.", "Set context to less than window.")

    @property
    def axes(self) -> str | None:
        """The data's layout: `layout`, NHWC for images to be resized or cropped, None where it is as the model has it."""
        return self.layout or ("NHWC" if self.resize or self.crop else None)

    @property
    def given(self) -> bool:
        """Whether the input is known without data: a state, or always one value."""
        return self.state is not None or self.value is not None


@dataclass(frozen=True)
class Preprocessing:
    """What happens to each input before the model sees it; inputs that are not named are taken as they are.

    `tokenizer` is a reference to code of the user's (`file.py:function`): text to a dict of arrays by input name.
    """

    inputs: Mapping[str, InputPreprocessing] = field(default_factory=dict)
    tokenizer: str | None = None

    def of(self, name: str) -> InputPreprocessing:
        """What happens to the input called `name`."""
        return self.inputs.get(name, _AS_IT_IS)

    def wanted(self, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """The inputs that data must hold: not those that carry a state or always have one value."""
        return tuple(spec for spec in inputs if not self.of(spec.name).given)

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
        return Preprocessing({**self.inputs, **named}, self.tokenizer and told(self.tokenizer, folder))

    def sized(self, raw: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """`raw` with its images resized and cropped: the step after which images of one data set have one size.

        Raises:
            InputError: an array is no batch of images; UnavailableError: resizing needs Pillow, which is not installed.
        """
        return {name: _sized(array, self.of(name)) for name, array in raw.items()}

    def apply(
        self, raw: Mapping[str, NDArray[Any]], inputs: tuple[TensorSpec, ...], functions: Mapping[str, Function] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Prepared arrays by input name for raw ones with a batch axis first; `functions` holds the users' own, by input.

        Raises:
            InputError: an input is missing, or does not fit the model in shape or type.
        """
        return self.apply_to_sized(self.sized(raw), inputs, functions)

    def apply_to_sized(
        self, raw: Mapping[str, NDArray[Any]], inputs: tuple[TensorSpec, ...], functions: Mapping[str, Function] | None = None
    ) -> dict[str, NDArray[Any]]:
        """`apply` for arrays that went through `sized` already."""
        prepared = {}
        for spec in inputs:
            if spec.name in raw:
                prepared[spec.name] = _one(raw[spec.name], spec, self.of(spec.name), (functions or {}).get(spec.name))
            elif not self.of(spec.name).given:
                raise InputError(
                    f"The data has no array for the model's input {spec.name!r}.", f"It has: {', '.join(sorted(raw)) or 'nothing'}."
                )
        return {spec.name: prepared[spec.name] if spec.name in prepared else self._given(spec, inputs, prepared) for spec in inputs}

    def _given(self, spec: TensorSpec, inputs: tuple[TensorSpec, ...], prepared: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """An input that needs no data; free dimensions have the size that they have in the other inputs, else 1."""
        known: dict[int | str, int] = {}
        for other in inputs:
            if other.name in prepared:
                known |= zip(other.shape, prepared[other.name].shape, strict=False)
        shape = [size if isinstance(size, int) else known.get(size, 1) for size in spec.shape]
        return as_model_takes(np.full(shape, self.of(spec.name).value or 0), spec)


_AS_IT_IS = InputPreprocessing()


def _sized(array: NDArray[Any], how: InputPreprocessing) -> NDArray[Any]:
    return sized(array, how.axes, how.resize, how.crop) if how.axes and (how.resize or how.crop) else array


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
            array -= _along_channel(how.mean, array, how.axes, spec)
        if how.std:
            array /= _along_channel(how.std, array, how.axes, spec)
    if how.axes is not None:
        array = _to_model_layout(array, how.axes, spec)
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
        elif len(array.shape) == len(spec.shape) == 4 and isinstance(spec.shape[2], int):
            hint += " Images are brought to a size by resize and crop of this input in optimize.toml, like resize = 256, crop = 224."
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
