"""`optimize`: finds a command by its file, and turns whatever happens into an exit code whose name is on the last line.

Nothing heavy is imported here or at the top of a command, so that `--help` answers at once.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from optimizer.cli import _show
from optimizer.errors import OptimizeError

_DEFAULT = "build"
_INTERRUPTED = 130


class _Commands(click.Group):
    """The commands are the files of this folder; a word that is none of them is a model to build."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        return sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py") if file.stem != "main")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"optimizer.cli.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = self.list_commands(ctx)
        if args and args[0] not in {*names, "--help", "-h", "--version"}:
            close = difflib.get_close_matches(args[0], names, n=1, cutoff=0.75)
            if close and not Path(args[0]).exists():
                raise click.UsageError(f"There is no command or model {args[0]!r}. Did you mean {close[0]}?", ctx)
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


def _version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"optimize {version('optimize')}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def commands() -> None:
    """A compiler for trained models in which nothing degrades in silence.

    optimize MODEL -o OUT is optimize build MODEL -o OUT.

    Exit codes: 0 PASS, 1 internal error, 2 wrong usage or input, 3 FAIL, 4 INCONCLUSIVE, 5 target, backend or precision not
    available, 6 verification failed.
    """


def main() -> NoReturn:
    """The console script."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that lacks a letter of a layer's name gets it spelled out, not an exception.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line; the exit code. Every way it can end has told its name on the last line of standard error."""
    ci = "--ci" in arguments
    try:
        code = commands.main(list(arguments), prog_name="optimize", standalone_mode=False)
    except OptimizeError as error:
        return _show.ending(error.exit_code, f"{error.reason} {error.remedy}", error.title, ci=ci)
    except click.UsageError as error:
        if error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
        return _show.ending(2, error.format_message(), ci=ci)
    except click.ClickException as error:
        return _show.ending(2, error.format_message(), ci=ci)
    except (click.Abort, KeyboardInterrupt):
        return _show.ending(_INTERRUPTED, "stopped, nothing was left behind")
    except SystemExit:
        # click's way to end where standard output goes to a pipe that nobody reads any more.
        return _show.ending(_INTERRUPTED, "standard output was closed before everything was told")
    except Exception as error:
        traceback.print_exc()
        return _show.ending(1, f"{type(error).__name__}: {error}. Please report this with the lines above.", ci=ci)
    return code if isinstance(code, int) else 0


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM and a closed terminal end as Ctrl-C does: whoever is at work cleans up."""
    raise KeyboardInterrupt
