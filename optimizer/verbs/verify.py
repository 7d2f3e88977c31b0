"""`verify`: is an engine folder what its passport says, and will it load here?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optimizer.errors import UnavailableError
from optimizer.package.load import load, unloadable
from optimizer.package.passport import Passport
from optimizer.package.passport import verify as read_and_verify


@dataclass(frozen=True)
class Verification:
    """A folder whose every file is as it was built. `unloadable` is why it won't load here, None where nothing is known to
    prevent it; `loaded` says that it was tried."""

    passport: Passport
    unloadable: str | None
    loaded: bool = False


def verify(folder: Path, *, try_to_load: bool = False, trust: bool = False) -> Verification:
    """Check every hash of an engine folder, reading only; with `try_to_load` load the engine as well, `trust` as in `load`.

    Raises:
        InputError: there is no such folder.
        VerificationError: a file is missing, changed or not sealed.
        UnavailableError: it was to be loaded, and can't be here.
    """
    passport = read_and_verify(folder)
    try:
        why_not = unloadable(passport)
    except UnavailableError as error:
        why_not = f"{error.reason} {error.remedy}"
    if try_to_load:
        load(folder, trust).close()
    return Verification(passport, why_not, loaded=try_to_load)
