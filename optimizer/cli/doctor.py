"""`optimize doctor`."""

from __future__ import annotations

import click

from optimizer.cli import _options, _show


@click.command("doctor")
@_options.as_json
def command(as_json: bool) -> int:
    """Tell which targets and backends work here, and what is missing."""
    from optimizer.verbs.doctor import doctor

    with _show.standard_output():
        found = doctor()
    if as_json:
        _show.json(found)
    else:
        cpu = found.cpu
        _show.line(f"{cpu.device}, {cpu.cores} cores, {cpu.memory / 2**30:.1f} GiB; {' '.join(cpu.features)}")
        _show.line(", ".join(f"{name} {version}" for name, version in found.versions.items()))
        works: dict[tuple[str, str], list[str]] = {}
        served = {one.target for one in found.served if one.missing is None}
        missing: dict[tuple[str, str], list[str]] = {}
        for one in found.served:
            if one.missing is None:
                works.setdefault((one.backend, "builds and runs" if one.runs_here else "builds; timed only on the target"), []).append(
                    one.target
                )
            elif one.target not in served:
                missing.setdefault((one.backend, one.missing), []).append(one.target)
        _show.table(["backend", "here", "targets"], [(*what, ", ".join(names)) for what, names in works.items()], "What works here")
        _show.table(
            ["backend", "what is missing", "targets"], [(*what, ", ".join(names)) for what, names in missing.items()], "What does not"
        )
        for extra, packages in found.extras.items():
            _show.line(f"not installed: {', '.join(packages)}; pip install 'optimize[{extra}]' brings what it needs")
    if found.problems:
        return _show.ending(2, " ".join(found.problems))
    able = len({one.target for one in found.served if one.missing is None})
    return _show.ending(0, f"engines for {able} targets can be built here")
