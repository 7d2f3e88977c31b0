"""All that a user can ask of a build: the command line, optimize.toml and Python's words meet here."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from optimizer.errors import InputError
from optimizer.latency import MaxLatency, latency_from_words
from optimizer.plan import Shape
from optimizer.preprocessing import InputPreprocessing, Preprocessing

Wanted = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Task = Literal["classification", "regression", "embedding"]
Objective = Literal["latency", "throughput", "size"]

_PATHS = ("calibration", "evaluation", "factory", "metric", "tokenizer", "plan", "source_python", "custom_ops")
"""Words that name files: in optimize.toml they count from its folder, on the command line from where it is called."""


@dataclass(frozen=True)
class Request:
    """What is to be built, from what, and what it must hold. Where a field is None nothing was asked."""

    model: Path
    output: Path
    targets: tuple[str, ...] = ("cpu",)
    backends: tuple[str, ...] = ()
    precision: Wanted = "auto"
    calibration: str | None = None
    evaluation: str | None = None
    random_calibration: bool = False
    task: Task | None = None
    metric: str | None = None
    max_drop: str = "1%"
    min_metric: float | None = None
    min_speedup: float | None = None
    min_int8_coverage: float | None = None
    max_latency: MaxLatency | None = None
    objective: Objective = "latency"
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    factory: str | None = None
    factory_args: Mapping[str, str] = field(default_factory=dict)
    source_python: Path | None = None
    trust: bool = False
    signature: str | None = None
    tags: tuple[str, ...] = ()
    custom_ops: Path | None = None
    plan: Path | None = None
    time_budget: float | None = None
    resume: bool = False
    threads: int | None = None
    seed: int = 0
    on_inconclusive: Literal["fail", "pass"] | None = None
    require_measured: bool = False
    ci: bool = False
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    folder: Path = field(default_factory=Path.cwd)
    """Where the user's own code and relative paths are looked up."""


def folder_of(target: str) -> str:
    """The name of the folder of one of several targets: a colon ends a path for many tools."""
    return target.replace(":", "-")


_CODE = ("factory", "metric", "tokenizer", "calibration", "evaluation")
_PROGRAMS = ("source_python", "custom_ops")
_CHOICES = {
    "precision": get_args(Wanted),
    "task": get_args(Task),
    "objective": get_args(Objective),
    "on_inconclusive": ("fail", "pass"),
}
_WORDS = {known.name for known in fields(Request)} - {"preprocessing", "folder", "model", "output"} | {"tokenizer"}
_SINGULAR = {"target": "targets", "backend": "backends", "factory_arg": "factory_args", "tag": "tags"}


def request_from_words(
    model: str | Path, output: str | Path, config: str | Path | None = None, folder: Path | None = None, **words: Any
) -> Request:
    """The Request that words make: those given here count before those in the file `config` (optimize.toml).

    `shapes` and `factory_args` are mappings or lists of `name=value`; words that are None or empty count as not given.  `tokenizer`,
    which makes inputs of text, becomes part of the preprocessing.

    Raises:
        InputError: an unknown word, a value that a word can't take, or words that contradict each other.
    """
    here = folder or Path.cwd()
    given = {
        _SINGULAR.get(name, name): value
        for name, value in words.items()
        if value is not None and value != () and value != [] and value != {}
    }
    from_file, preprocessing = _toml(Path(config)) if config is not None else ({}, Preprocessing())
    if given.get("ci") or from_file.get("ci"):
        _refuse_code_of_the_file(from_file, given, preprocessing)
    merged = {**from_file, **given}
    if unknown := set(merged) - _WORDS:
        raise InputError(f"There is no option {sorted(unknown)[0]!r}.", f"Known are: {', '.join(sorted(_WORDS))}.")
    if merged.get("ci") and merged.get("random_calibration"):
        raise InputError("Random calibration is not taken under --ci.", "Give real samples with --calibration.")
    if merged.get("ci") and merged.get("trust"):
        raise InputError("--trust is not taken under --ci.", "Convert the file once by hand, and give the CI job the ONNX model.")
    if merged.get("calibration") and merged.get("random_calibration"):
        raise InputError("Calibration data and random calibration were both asked for.", "Choose one.")
    _refuse_what_nothing_could_honour(merged)
    if "tokenizer" in merged:
        preprocessing = replace(preprocessing, tokenizer=_text("tokenizer", merged.pop("tokenizer")))
    return Request(
        model=Path(model),
        output=Path(output),
        preprocessing=preprocessing,
        folder=here,
        **{name: _READ.get(name, _as_given)(name, value) for name, value in merged.items()},
    )


def _refuse_what_nothing_could_honour(merged: Mapping[str, Any]) -> None:
    """A demand that the rest of the words leave without effect would be dropped in silence."""
    for name in ("metric", "min_metric"):
        if merged.get(name) is not None and not merged.get("evaluation"):
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} is about held-out data, and there is none.", f"Give samples with --evaluation, or leave {option} out."
            )
    if merged.get("min_int8_coverage") is not None and (precision := merged.get("precision", "auto")) not in {"auto", "int8"}:
        raise InputError(f"A share of INT8 and an engine in {precision} were both asked for.", "Choose one.")
    if merged.get("plan") is not None and merged.get("precision", "auto") != "auto":
        raise InputError("A plan and a precision were both asked for, and a plan says the precision of every layer.", "Choose one.")


def _as_given(name: str, value: Any) -> Any:
    if name in _CHOICES and value not in _CHOICES[name]:
        article = "an" if name.startswith("o") else "a"
        raise InputError(f"{value!r} is not {article} {name.replace('_', '-')}.", f"Choose one of: {', '.join(_CHOICES[name])}.")
    return value


def _several(name: str, value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(one, str) for one in values):
        raise InputError(f"{name} holds something that is no name.", "Give names.")
    return tuple(dict.fromkeys(values))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"{name.replace('_', '-')} must be a number above 0, not {value!r}.", "Leave it out, or give one.")
    return float(value)


def _share(name: str, value: Any) -> float:
    share = _number(name, value)
    if share > 1:
        raise InputError(f"{name.replace('_', '-')} is a share, so {value!r} is too much.", "Give a number up to 1: 0.9 is 90 %.")
    return share


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < (1 if name == "threads" else 0):
        raise InputError(
            f"{name} must be a whole number of at least {1 if name == 'threads' else 0}, not {value!r}.", "Leave it out, or give one."
        )
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name.replace('_', '-')} is either true or false, not {value!r}.", "Write it without quotes.")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(
            f"{name.replace('_', '-')} must be text, not {value!r}.",
            'A budget is written "1%" (of the parent\'s metric) or "1pp" (points of it).' if name == "max_drop" else "Put it in quotes.",
        )
    return value


def _pairs(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {str(key): str(one) for key, one in value.items()}
    pairs = {}
    for word in (value,) if isinstance(value, str) else value:
        key, equals, one = str(word).partition("=")
        if not equals or not key:
            raise InputError(f"{word!r} is not of the form name=value.", f"Write --{name.replace('_', '-').rstrip('s')} name=value.")
        pairs[key] = one
    return pairs


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(name: str, value: Any) -> float:
    """Seconds from `90s`, `10m` or `2h`."""
    words = str(value).strip()
    try:
        number, unit = float(words[:-1]), _UNITS[words[-1:]]
    except (KeyError, ValueError):
        number, unit = 0.0, 0.0
    if not 0 < number * unit < math.inf:
        raise InputError(f"{value!r} is no time for {name.replace('_', '-')}.", "Say how long with its unit: 90s, 10m or 2h.")
    return number * unit


def _latency(name: str, value: Any) -> MaxLatency:
    return value if isinstance(value, MaxLatency) else latency_from_words(_text(name, value))


def _shapes(name: str, value: Any) -> dict[str, Shape]:
    return {key: one if isinstance(one, Shape) else shape_from_words(str(one)) for key, one in _shape_words(name, value)}


def _shape_words(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, Mapping) else _pairs(name, value).items()


def shape_from_words(words: str) -> Shape:
    """`1x3x224x224`, or smallest:usual:largest like `1x8:1x128:1x512`.

    Raises:
        InputError: not such words, or sizes that do not grow from smallest to largest.
    """
    parts = [part.split("x") if part else [] for part in words.split(":")]
    if len(parts) not in (1, 3) or not all(size.isdigit() and int(size) > 0 for part in parts for size in part):
        raise InputError(f"{words!r} is not a shape.", "Write it like 1x3x224x224, or smallest:usual:largest.")
    sizes = [tuple(int(size) for size in part) for part in parts]
    smallest, usual, largest = sizes if len(sizes) == 3 else sizes * 3
    ranks = {len(smallest), len(usual), len(largest)}
    if len(ranks) > 1 or not all(a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True)):
        raise InputError(f"The shapes in {words!r} do not grow from smallest to largest.", "Write smallest:usual:largest of one rank.")
    return Shape(smallest, usual, largest)


def _path(_name: str, value: Any) -> Path:
    return Path(value)


_READ: Mapping[str, Callable[[str, Any], Any]] = {
    "targets": _several,
    "backends": _several,
    "min_metric": _number,
    "min_speedup": _number,
    "min_int8_coverage": _share,
    "max_latency": _latency,
    "threads": _whole,
    "seed": _whole,
    "time_budget": _seconds,
    "resume": _flag,
    "random_calibration": _flag,
    "require_measured": _flag,
    "ci": _flag,
    "max_drop": _text,
    "calibration": _text,
    "evaluation": _text,
    "metric": _text,
    "factory": _text,
    "factory_args": _pairs,
    "shapes": _shapes,
    "plan": _path,
    "source_python": _path,
    "custom_ops": _path,
    "trust": _flag,
    "signature": _text,
    "tags": _several,
}


def _toml(path: Path) -> tuple[dict[str, Any], Preprocessing]:
    """The words and the preprocessing of an optimize.toml, its relative paths counted from its own folder."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no file {path.name}.", "Give --config the path of an optimize.toml.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path.name} can't be read: {error}.", "See https://toml.io for the form.") from None
    inputs = content.pop("inputs", {})
    words = {}
    for name, value in content.items():
        word = name.replace("-", "_")
        word = _SINGULAR.get(word, word)
        words[word] = _from_folder(path.parent, value) if word in _PATHS and isinstance(value, str) else value
    if not isinstance(inputs, dict) or not all(isinstance(one, dict) for one in inputs.values()):
        raise InputError(f"[inputs] in {path.name} is not a table of tables.", "Write one [inputs.NAME] for each input.")
    return words, Preprocessing({name: _input(name, one) for name, one in inputs.items()})


def _from_folder(folder: Path, word: str) -> str:
    file = word.split(":")[0]
    return str(folder / word) if (folder / file).exists() else word


def _input(name: str, table: Mapping[str, Any]) -> InputPreprocessing:
    if unknown := set(table) - set(_INPUT):
        raise InputError(f"[inputs.{name}] has no option {sorted(unknown)[0]!r}.", f"Known are: {', '.join(sorted(_INPUT))}.")
    values = {key: _INPUT[key](f"{key} of [inputs.{name}]", value) for key, value in table.items()}
    return InputPreprocessing(**values)


def _numbers(what: str, value: Any) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not all(_is_number(number) for number in numbers):
        raise InputError(f"{what} is not a list of numbers.", "Give one number, or one a channel.")
    return tuple(float(number) for number in numbers)


def _shorter_side(what: str, value: Any) -> tuple[int, ...]:
    return (value,) if _is_whole(value) else _height_and_width(what, value)


def _square(what: str, value: Any) -> tuple[int, ...]:
    return (value, value) if _is_whole(value) else _height_and_width(what, value)


def _height_and_width(what: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != 2 or not all(_is_whole(size) for size in value):
        raise InputError(f"{what} can't be {value!r}.", "Give one whole number, or [height, width].")
    return tuple(value)


def _of_kind(fits: Callable[[Any], bool], form: str) -> Callable[[str, Any], Any]:
    def read(what: str, value: Any) -> Any:
        if not fits(value):
            raise InputError(f"{what} can't be {value!r}.", f"Give {form}.")
        return value

    return read


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_words_of_input = _of_kind(lambda value: isinstance(value, str), "text in quotes")
_number_of_input = _of_kind(_is_number, "a number")
_length = _of_kind(_is_whole, "a whole number")

_INPUT: Mapping[str, Callable[[str, Any], Any]] = {
    "layout": _words_of_input,
    "function": _words_of_input,
    "state": _words_of_input,
    "scale": _number_of_input,
    "value": _number_of_input,
    "mean": _numbers,
    "std": _numbers,
    "resize": _shorter_side,
    "crop": _square,
    "rate": _length,
    "window": _length,
    "hop": _length,
    "context": _length,
}


def _refuse_code_of_the_file(from_file: Mapping[str, Any], given: Mapping[str, Any], preprocessing: Preprocessing) -> None:
    """Under --ci a file may not bring code to run that the command line does not name itself."""
    for name in _CODE:
        if ":" in str(from_file.get(name, "")) and given.get(name) is None:
            raise InputError(
                f"Under --ci the code that optimize.toml names as {name} is not run.", f"Repeat it: --{name} {from_file[name]}"
            )
    for name in _PROGRAMS:
        if from_file.get(name) is not None and given.get(name) is None:
            raise InputError(
                f"Under --ci the program that optimize.toml names as {name} is not run.",
                f"Repeat it: --{name.replace('_', '-')} {from_file[name]}",
            )
    for name, how in preprocessing.inputs.items():
        if how.function:
            raise InputError(
                f"Under --ci the function that optimize.toml names for {name!r} is not run.", "Use layout, scale, mean and std."
            )
