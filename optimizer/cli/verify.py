"""`optimize verify`."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli import _options, _show


@click.command("verify")
@_options.engine
@click.option("--load", "try_to_load", is_flag=True, help="Load the engine as well.")
@_options.trust
@_options.as_json
def command(engine: Path, try_to_load: bool, trust: bool, as_json: bool) -> int:
    """Check that ENGINE is as it was built, and will load here.

    Reads only.
    """
    from optimizer.verbs.verify import verify

    with _show.standard_output():
        found = verify(engine, try_to_load=try_to_load, trust=trust)
    passport = found.passport
    if as_json:
        _show.json(found)
    else:
        _show.line(
            f"{passport.name}: {passport.precision} for {passport.target} by {passport.backend}, {len(passport.files)} files as built"
        )
        _show.line(f"verdict {passport.verdict}, gated on {passport.gated_on or 'nothing'}, timed on {passport.timed_on or 'nothing'}")
        for note in passport.notes:
            _show.line(f"note: {note}")
    here = (
        "loads here"
        if found.loaded
        else f"will not load here: {found.unloadable}"
        if found.unloadable
        else "nothing speaks against loading it here"
    )
    return _show.ending(0, f"{engine.name} is what its passport says; {here}")
