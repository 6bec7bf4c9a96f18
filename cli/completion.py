"""``geolabel completion``: the script by which a shell completes commands, options and values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from . import options
from .commands import command

VARIABLE = "_GEOLABEL_COMPLETE"
"""By which the shell asks geolabel for completions, as click names it."""

SHELLS = ("bash", "zsh", "fish")


@command(short_help="Print the script by which bash, zsh or fish completes commands.")
@click.argument("shell", type=click.Choice(SHELLS))
@options.terminal
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print the script by which SHELL completes commands, options and their values with the tab key.

    \b
    bash, in ~/.bashrc:                      eval "$(geolabel completion bash)"
    zsh, in ~/.zshrc, after compinit:        eval "$(geolabel completion zsh)"
    fish, once:  geolabel completion fish > ~/.config/fish/completions/geolabel.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "geolabel", VARIABLE).source())
