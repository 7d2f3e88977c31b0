"""The way of the data, from a file to a sealed engine folder: import, fuse, calibrate, search, time, gate, report, package."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.targets import target_from_name
from optimizer.delivery import Folders, deliver
from optimizer.errors import InputError, OptimizeError
from optimizer.package import Workspace
from optimizer.package.load import LoadedEngine, load
from optimizer.preparation import Prepared, prepare
from optimizer.process import check_house
from optimizer.progress import Track, silent
from optimizer.provenance import to_json
from optimizer.report.report import Failure, Report, Reports, portable, reports_from, worst
from optimizer.request import Request, folder_of


@dataclass(frozen=True)
class Outcome:
    """What a build came to: its report (of several targets: one each), the exit code, and where it lies."""

    report: Report | Reports
    folder: Path

    @property
    def exit_code(self) -> int:
        return self.report.exit_code

    @property
    def headline(self) -> str:
        return self.report.headline

    def engine(self) -> LoadedEngine:
        """The engine that was built, loaded.

        Raises:
            VerificationError: nothing was shipped.
            UnavailableError: it can't run here.
        """
        return load(self.folder, trust=True)  # we have just built it


def build(request: Request, track: Track = silent) -> Outcome:
    """Build what `request` asks for into its output folder, which is written as a whole or not at all.

    Several targets go to a folder each; one that fails leaves the rest, unless all fail.

    Raises:
        OptimizeError: nothing could be built; nothing is left on disk.
    """
    check_house()
    with Workspace(request.output, reads=_files(request), resume=request.resume) as workspace:
        scratch = workspace.scratch
        only = target_from_name(request.targets[0]) if len(request.targets) == 1 else None
        prepared = prepare(request, scratch, workspace.kept, track)
        report: Report | Reports
        if only is not None:
            report = deliver(prepared, only, Folders(workspace.folder, scratch, workspace.kept, request.output), 1, track)
        else:
            report = _several(prepared, Folders(workspace.folder, scratch, workspace.kept, request.output), track)
        workspace.commit()
    return Outcome(report, workspace.output)


def _several(prepared: Prepared, folders: Folders, track: Track) -> Reports:
    """One folder a target below `folder`, and a report above them that sums up."""
    results: dict[str, Report | Failure] = {}
    errors: list[OptimizeError] = []
    for done, name in enumerate(prepared.request.targets):
        own = folders.of(folder_of(name))
        try:
            target = target_from_name(name)
            own.whole.mkdir()
            own.scratch.mkdir()
            results[name] = deliver(prepared, target, own, len(prepared.request.targets) - done, track)
        except OptimizeError as error:
            errors.append(error)
            reason, remedy = (
                portable(words, (folders.whole, folders.scratch, prepared.request.folder)) for words in (error.reason, error.remedy)
            )
            results[name] = Failure(error.title, reason, remedy, error.exit_code)
            shutil.rmtree(own.whole, ignore_errors=True)
    if len(errors) == len(results):
        code = worst([error.exit_code for error in errors])
        raise next(error for error in errors if error.exit_code == code)
    report = reports_from(results)
    (folders.whole / "report.json").write_bytes(to_json(report))
    return report


def _files(request: Request) -> Sequence[Path]:
    """What a build reads, so that OUT can't be laid over it.

    Raises:
        InputError: the system takes no such path.
    """
    data = (word.split(":")[0] for word in (request.calibration, request.evaluation) if word)
    named = (request.model, *(request.folder / word for word in data if word), *([request.plan] if request.plan else []))
    try:
        return [path for path in named if path.exists()]
    except OSError as error:
        raise InputError(f"A path that was given can't be used: {error.strerror}.", "Look at the paths of model, data and plan.") from None
