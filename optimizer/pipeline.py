"""The way of the data, from a file to a sealed engine folder: import, fuse, calibrate, search, time, gate, report, package."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.targets import target_from_name
from optimizer.delivery import deliver
from optimizer.errors import OptimizeError
from optimizer.package import Workspace
from optimizer.package.load import LoadedEngine, load
from optimizer.preparation import Prepared, prepare
from optimizer.process import check_house
from optimizer.progress import Track, silent
from optimizer.provenance import to_json
from optimizer.report.report import Failure, Report, Reports, reports_from
from optimizer.request import Request


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
        return load(self.folder)


def build(request: Request, track: Track = silent) -> Outcome:
    """Build what `request` asks for into its output folder, which is written as a whole or not at all.

    Several targets go to a folder each; one that fails leaves the rest, unless all fail.

    Raises:
        OptimizeError: nothing could be built; nothing is left on disk.
    """
    check_house()
    with Workspace(request.output, reads=_files(request)) as workspace:
        scratch = workspace.scratch
        only = target_from_name(request.targets[0]) if len(request.targets) == 1 else None
        prepared = prepare(request, scratch, track)
        report: Report | Reports
        if only is not None:
            report = deliver(prepared, only, workspace.folder, scratch, track)
        else:
            report = _several(prepared, workspace.folder, scratch, track)
        workspace.commit()
    return Outcome(report, workspace.output)


def _several(prepared: Prepared, folder: Path, scratch: Path, track: Track) -> Reports:
    """One folder a target below `folder`, and a report above them that sums up."""
    results: dict[str, Report | Failure] = {}
    errors: list[OptimizeError] = []
    for name in prepared.request.targets:
        own, work = folder / name, scratch / name
        try:
            target = target_from_name(name)
            own.mkdir()
            work.mkdir()
            results[name] = deliver(prepared, target, own, work, track)
        except OptimizeError as error:
            errors.append(error)
            results[name] = Failure(error.title, error.reason, error.remedy, error.exit_code)
            shutil.rmtree(own, ignore_errors=True)
    if len(errors) == len(results):
        raise errors[0]
    report = reports_from(results)
    (folder / "report.json").write_bytes(to_json(report))
    return report


def _files(request: Request) -> Sequence[Path]:
    """What a build reads, so that OUT can't be laid over it."""
    named = (request.model, *(request.folder / word.split(":")[0] for word in (request.calibration, request.evaluation) if word))
    return [path for path in named if path.exists()]
