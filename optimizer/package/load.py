"""Loading an engine folder: verified first, then run with the preprocessing that it was calibrated and gated with."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from kernels.cpus import lacking
from kernels.targets import target_from_name
from optimizer.backends import backend, open_engine
from optimizer.engine import LIBRARY, Arrays, Engine
from optimizer.errors import InputError, UnavailableError, VerificationError
from optimizer.model import TensorSpec
from optimizer.package.passport import Passport, verify
from optimizer.plan import AND

_MOST_STREAMS = 1024


class LoadedEngine:
    """An engine ready to run, from one thread or from many, as many calls at once as it has streams; also a context that closes it."""

    def __init__(self, passport: Passport, engine: Engine) -> None:
        self.passport = passport
        self._engine = engine

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.passport.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.passport.outputs

    @property
    def peak_bytes(self) -> int | None:
        return self._engine.peak_bytes

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Every output by name, for what the model takes: preprocessed, every input by name.

        Raises:
            InputError: an input is missing or unknown, or differs from its TensorSpec in type or shape.
        """
        return self._engine.run(feeds)

    def run_raw(self, raw: Arrays) -> dict[str, NDArray[Any]]:
        """Every output by name, for a batch as the data set holds it (uint8 NHWC images, say).

        Raises:
            InputError: an input is missing, does not fit, or is prepared by a function of the user's that is not in the engine.
        """
        unknown = sorted(raw.keys() - {spec.name for spec in self.inputs})
        if unknown:
            raise InputError(f"The engine has no input {unknown[0]!r}.", f"Its inputs are: {_names(self.inputs)}.")
        return self.run(self.passport.preprocessing.apply(raw, self.inputs))

    def close(self) -> None:
        """Give the engine's memory back; it can't run afterwards."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load(folder: Path, trust: bool = False) -> LoadedEngine:
    """The engine in a folder, every file of it verified before anything is loaded; `trust` lets it run a library that it brings.

    Raises:
        InputError: there is no such folder, or it brings native code and is not trusted.
        VerificationError: the folder is not what its passport says.
        UnavailableError: the engine is for hardware or software that is not here, or the folder holds a handover alone.
    """
    passport = verify(folder)
    streams = passport.knobs.get("streams", 1)
    if isinstance(streams, bool) or not isinstance(streams, int) or not 0 < streams <= _MOST_STREAMS:
        raise VerificationError(f"The passport of {folder.name} asks for {streams!r} streams.", "Build it again.")
    if any(Path(name).name == LIBRARY for name in passport.files) and not trust:
        raise InputError(
            f"{folder.name} brings {LIBRARY}, a library of operators: native code, which runs as soon as it is loaded.",
            "If you know who built it, load it with --trust (in Python: trust=True).",
        )
    why_not = unloadable(passport)
    if why_not is not None:
        raise UnavailableError(f"{folder.name} can't be loaded here: {why_not}.", _remedy(passport))
    return LoadedEngine(passport, open_engine(passport.backend, folder, passport.knobs))


def unloadable(passport: Passport) -> str | None:
    """Why an engine can't be loaded on this machine, None where nothing speaks against it.

    One that was built for another CPU may be loaded where that changes no numbers.
    """
    if passport.engine is None:
        return f"it holds a handover for {passport.target} and no engine of ours"
    target = target_from_name(passport.target)
    modules = [backend(name) for name in passport.backend.split(AND)]
    reason = next((why for module in modules if (why := module.missing(target)) is not None), None)
    if reason is not None:
        return reason
    if target.kind == "cpu":
        return lacking(passport.features, passport.precision)
    return None if all(module.capability(target).runs_here for module in modules) else f"this machine has no {passport.target}"


def _remedy(passport: Passport) -> str:
    """What to do about an engine that can't be loaded here."""
    if passport.features and lacking(passport.features, passport.precision):
        return f"Load it on a CPU with {' '.join(passport.features)}, or build it for this one: --target cpu."
    return f"Load it on a machine with {passport.target}."


def _names(inputs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(spec.name for spec in inputs)
