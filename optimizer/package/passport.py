"""The passport: what a loader must know before it loads, and the SHA-256 of every file beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kernels.load import Load
from optimizer.engine import Verdict
from optimizer.errors import InputError, VerificationError
from optimizer.model import Source, TensorSpec
from optimizer.plan import Knobs
from optimizer.preprocessing import Preprocessing
from optimizer.provenance import from_json, sha256_of_file, to_json

SCHEMA = "optimize.passport/1"
FILE = "passport.json"
UNSEALED = ("passport.json", "passport.sig", "attestations")
"""What the seal leaves out: the passport itself, its signature, and what `qualify` adds later."""

_AGAIN = "Build it again, or take an unchanged copy."


@dataclass(frozen=True)
class Passport:
    """What an engine is, for which target, from what, with which verdict.

    `backend` is what built it: one, or those of its regions with `+` between.  `engine` is the engine's file (None for a target that
    gets the handover alone), `timed_on` and `gated_on` name the machine or "simulation", None where it was not done.  `knobs` hold the
    streams that a loaded engine runs in, the threads of each and, where throughput was asked for, the batch that was best; `loads` are
    the load tests that the engine was put to.  `plan` is the SHA-256 of plan.json, `calibration` the one of the data, with
    `random_calibration` where numbers were made up.  `features` are those of the target that decide which kernels run there.  `files`
    maps each file to its SHA-256.
    """

    name: str
    target: str
    compute: str
    backend: str
    engine: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source: Source
    verdict: Verdict
    gated_on: str | None
    timed_on: str | None
    precision: str
    knobs: Knobs = field(default_factory=dict)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    versions: Mapping[str, str] = field(default_factory=dict)
    plan: str | None = None
    calibration: str | None = None
    random_calibration: bool = False
    notes: tuple[str, ...] = ()
    loads: tuple[Load, ...] = ()
    features: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    schema: str = SCHEMA


def seal(folder: Path, passport: Passport) -> Passport:
    """Write passport.json with the hash of every file in `folder`; nothing there may change afterwards.

    Raises:
        ValueError: the passport names an engine that is not there (an error of ours, not of a user's).
    """
    files = {name: sha256_of_file(folder / name) for name in sorted(_files(folder))}
    if passport.engine is not None and passport.engine not in files:
        raise ValueError(f"the passport names an engine {passport.engine!r} that is not in the folder")
    plan = files.get("plan.json", passport.plan)
    sealed = replace(passport, files=files, plan=plan)
    (folder / FILE).write_bytes(to_json(sealed))
    return sealed


def read(folder: Path) -> Passport:
    """The passport of an engine folder, its files not yet looked at.

    Raises:
        InputError: there is no such folder, or it is no engine folder.
        VerificationError: the passport can't be read, or the folder is a failed build's, without an engine.
    """
    if not folder.is_dir():
        raise InputError(f"There is no engine folder {folder.name}.", "Give the folder that optimize build wrote (its -o).")
    file = folder / FILE
    if not file.is_file():
        if (folder / "report.json").is_file():
            raise VerificationError(
                f"{folder.name} holds a report and no engine: nothing passed there, or it has one folder a target.",
                "See its report.json, or give the folder of one target.",
            )
        raise VerificationError(f"{folder.name} has no {FILE}, so nothing says what it is.", _AGAIN)
    try:
        passport = from_json(file.read_bytes(), Passport, f"{folder.name}/{FILE}")
    except InputError as error:
        raise VerificationError(error.reason, _AGAIN) from None
    if passport.schema != SCHEMA:
        raise VerificationError(f"{folder.name} was written by another version ({passport.schema}, not {SCHEMA}).", "Build it again.")
    return passport


def verify(folder: Path) -> Passport:
    """The passport, once every file was found to be there, unchanged, and no other beside them.

    Raises:
        InputError: there is no such folder.
        VerificationError: a file is missing, changed or not sealed; it names the file.
    """
    passport = read(folder)
    there = set(_files(folder))
    for name in sorted(passport.files.keys() - there):
        raise VerificationError(f"{name} is missing from {folder.name}.", _AGAIN)
    for name in sorted(there - passport.files.keys()):
        raise VerificationError(f"{name} in {folder.name} is not in its passport.", "Remove it: no build of ours put it there.")
    for name, digest in sorted(passport.files.items()):
        if sha256_of_file(folder / name) != digest:
            raise VerificationError(f"{name} in {folder.name} is not the file that was built: its SHA-256 differs.", _AGAIN)
    if passport.engine is not None and passport.engine not in passport.files:
        raise VerificationError(f"The engine {passport.engine} of {folder.name} is not among its sealed files.", _AGAIN)
    return passport


def _files(folder: Path) -> Iterator[str]:
    """Every file below a folder that the seal covers, as relative paths with `/`.

    Raises:
        VerificationError: a link, or something that is no plain file: what it holds can change without a trace.
    """
    for here, folders, names in os.walk(folder):
        at = Path(here).relative_to(folder)
        for name in (*folders, *names):
            path = at / name
            if path.parts[0] in UNSEALED:
                continue
            full = folder / path
            if full.is_symlink() or not (full.is_file() or full.is_dir()):
                raise VerificationError(f"{path} in {folder.name} is a link or no plain file.", _AGAIN)
            if name in names:
                yield path.as_posix()
