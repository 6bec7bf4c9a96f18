"""Commands with their options in groups, and with suggestions for misspelled words.

Every option has a group; `rare` ones are shown by ``--help-all`` only::

    @command()
    @option("--tile-size", group="machine", rare=True, help="Side of the tiles.")
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from geolabel.errors import GeolabelError, MemoryLimitError, memory_wanted, ran_out_of_memory
from geolabel.settings import Topic

F = TypeVar("F", bound=Callable[..., Any])

TITLES: dict[Topic, str] = {
    "input": "Input",
    "output": "Output",
    "evidence": "Evidence: an earlier image, heights, excluded ground",
    "sensitivity": "Sensitivity: how much is found",
    "shape": "Shape of the polygons",
    "method": "Method and networks",
    "machine": "Machine",
    "messages": "Help and messages",
}

HELP_ALL = "--help-all"

EVERY_OPTION = "geolabel.every_option"
"""Key in a context's ``meta``: whether the help shows rare options too."""

TERM_COLUMN = 26
"""Maximum width of a term with its help on the same line; the help of a wider one starts on the next line."""


FILES = re.compile("FILE|FOLDER")
"""Words in the metavar of an option that takes a file or a folder, alone or among other values."""


def complete_files(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Let the shell complete file names."""
    return [CompletionItem(incomplete, type="file")]


class Option(click.Option):
    """An option in a group of the help; its environment variable is named after the option, not after the parameter."""

    def __init__(self, *names: Any, group: Topic, rare: bool = False, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.group = group
        self.rare = rare
        if self.metavar is None and isinstance(self.type, click.IntRange | click.FloatRange) and not self.count:
            self.metavar = "N"  # click's default is INTEGER RANGE, and the help shows the range as well

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete values, and file names if the option accepts both."""
        found = super().shell_complete(ctx, incomplete)
        return found or (complete_files(ctx, self, incomplete) if FILES.search(self.metavar or "") else [])

    def variable(self, ctx: click.Context) -> str:
        """GEOLABEL_COMMAND_OPTION."""
        return f"{ctx.auto_envvar_prefix}_{max(self.opts, key=len).removeprefix('--').replace('-', '_').upper()}"

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Look up GEOLABEL_COMMAND_OPTION."""
        return os.environ.get(self.variable(ctx)) or None


def option(*names: str, group: Topic, rare: bool = False, **settings: Any) -> Callable[[F], F]:
    """Add an option to a command.

    Parameters
    ----------
    group
        Group in the help.
    rare
        Whether it is shown by ``--help-all`` only.
    settings
        Arguments of ``click.option``.
    """
    return click.option(*names, cls=Option, group=group, rare=rare, **settings)


def _show_every_option(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[EVERY_OPTION] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


class Command(click.Command):
    """A command with its options in groups, and ``--help-all``."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._help_all = Option(
            [HELP_ALL],
            group="messages",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            allow_from_autoenv=False,
            callback=_show_every_option,
            help="Show every option and exit.",
        )

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All parameters, including the help options."""
        return [*super().get_params(ctx), self._help_all]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises
        ------
        MemoryLimitError
            For errors of other libraries when memory runs out; it names the options that help.
        """
        from .terminal import warn  # imported here, as it needs the options, and these this module

        warn(ctx, self._misspelled(ctx))
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(error, GeolabelError) or not ran_out_of_memory(error):
                raise
            names = {name for one in self.params if isinstance(one, click.Option) for name in one.opts}
            smaller = " or ".join(name for name in SMALLER if name in names)
            way = f"give a smaller {smaller}, or close other programs" if smaller else "close other programs"
            raise MemoryLimitError(f"memory ran out{memory_wanted(error)}: {way}") from error

    def _misspelled(self, ctx: click.Context) -> list[str]:
        prefix = f"{ctx.auto_envvar_prefix}_"
        known = {
            one.variable(ctx) if isinstance(one, Option) else f"{prefix}{str(one.name).upper()}" for one in self.params
        }
        said = []
        for name in sorted(name for name in os.environ if name.startswith(prefix) and name not in known):
            close = get_close_matches(name, known, n=1)
            said.append(
                f"{name} names no option of {ctx.command_path} and is ignored"
                + (f": did you mean {close[0]}?" if close else "")
            )
        return said

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options group by group."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option) and not one.hidden]
        rare = [one for one in options if getattr(one, "rare", False)]
        every = ctx.meta.get(EVERY_OPTION, False)
        shown = [one for one in options if (every or one not in rare) and (rare or one is not self._help_all)]
        for topic in get_args(Topic):
            rows = [one.get_help_record(ctx) for one in shown if getattr(one, "group", "messages") == topic]
            if found := [row for row in rows if row is not None]:
                with formatter.section(TITLES[topic]):
                    formatter.write_dl(found, col_max=TERM_COLUMN)
        if rare and not every:
            formatter.write_paragraph()
            more = "1 more option" if len(rare) == 1 else f"{len(rare)} more options"
            formatter.write_text(f"{more}, seldom needed: {ctx.command_path} {HELP_ALL}")


SMALLER = ("--batch", "--crops", "--tile-size", "--block-size", "--size", "--workers", "--bounds")
"""Options that reduce the memory of a command."""


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand for the first word.

        Raises
        ------
        click.UsageError
            If there is none; the message suggests similar names.
        """
        word = str(args[0])
        if word.startswith("-") or ctx.resilient_parsing or self.get_command(ctx, word) is not None:
            return super().resolve_command(ctx, args)
        raise click.UsageError(f"no command is called {word!r}: {self._advice(ctx, word)}", ctx)

    def _advice(self, ctx: click.Context, word: str) -> str:
        names = self.list_commands(ctx)
        if "extract" in names and (Path(word).exists() or Path(word).suffix.lower() in (".tif", ".tiff", ".vrt")):
            return f"to find landslides in that file, give {ctx.command_path} extract {word} --out slides.gpkg"
        close = get_close_matches(word.lower(), names, n=3)
        return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


def command(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Turn a function into a command with grouped options."""
    return click.command(name, cls=Command, **settings)


def group(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Group]:
    """Turn a function into a group of commands."""
    return click.group(name, cls=settings.pop("cls", Group), **settings)
