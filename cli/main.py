"""The ``geolabel`` command: import the subcommand, and turn errors into one line and an exit code."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module

import click

from geolabel import __version__
from geolabel.errors import GeolabelError, OptionError
from geolabel.urls import without_secrets

from .commands import Group
from .options import Session
from .streams import open_streams

COMMANDS = (
    "extract",
    "predict",
    "explain",
    "segment",
    "label",
    "clusters",
    "polygonize",
    "evaluate",
    "review",
    "qgis",
    "adapt",
    "synthesize",
    "info",
    "models",
    "runs",
    "chips",
    "train",
    "bench",
    "study",
    "doctor",
    "completion",
)
"""Subcommands in the order of ``geolabel --help``; each is in the module of its name."""

INTERRUPTED = 130


class _LazyGroup(Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Name the subcommands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one subcommand; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"geolabel.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"auto_envvar_prefix": "GEOLABEL", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="geolabel")
def cli() -> None:
    """Find landslides in georeferenced scenes and write them as polygons.

    \b
    geolabel extract scene.tif --out slides.gpkg
    geolabel COMMAND --help

    Every option can also be set by an environment variable: GEOLABEL_EXTRACT_TILE_SIZE is --tile-size of
    extract.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 ok, 1 error, 2 usage, 3 finished with gaps, 130 interrupted."""
    stdout = open_streams()
    code = run(arguments)
    sys.stdout.flush()
    if stdout is not None and stdout.failure is not None:
        click.echo(f"geolabel: stdout cannot be written: {stdout.failure.strerror}", err=True)
        code = code or 1
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    session = Session()
    try:
        code = cli.main(args=arguments, prog_name="geolabel", standalone_mode=False, obj=session)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        reason = str(error.__cause__ or error)  # click replaces the exception that was raised
        click.echo(f"geolabel: {reason or 'interrupted; no output was written'}", err=True)
        return INTERRUPTED
    except GeolabelError as error:
        _print_error(session, "; ".join([str(error), *getattr(error, "__notes__", [])]))
        return 2 if isinstance(error, OptionError) else 1
    except Exception as error:  # noqa: BLE001  # last resort: a traceback is only shown with --debug
        reason = str(error).splitlines()[0] if str(error) else "no message"
        _print_error(session, f"unexpected {type(error).__name__}: {reason} (--debug shows where)")
        return 1
    return code if isinstance(code, int) else 0


def _print_error(session: Session, message: str) -> None:
    """Print one line on the current exception; with ``--debug``, its traceback first."""
    if session.debug:
        click.echo(without_secrets(traceback.format_exc()), err=True)
    click.echo(f"geolabel: {without_secrets(message)}", err=True)
