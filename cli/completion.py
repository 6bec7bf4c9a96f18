"""``geolabel completion``: completion scripts for shells."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from . import options
from .commands import command

VARIABLE = "_GEOLABEL_COMPLETE"
"""Environment variable of the completion protocol of click."""

SHELLS = ("bash", "zsh", "fish")


@command(short_help="Print the script that completes commands in bash, zsh or fish.")
@click.argument("shell", type=click.Choice(SHELLS))
@options.terminal
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print the completion script of SHELL for commands, options and values.

    \b
    bash, in ~/.bashrc:                      eval "$(geolabel completion bash)"
    zsh, in ~/.zshrc, after compinit:        eval "$(geolabel completion zsh)"
    fish, once:  geolabel completion fish > ~/.config/fish/completions/geolabel.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "geolabel", VARIABLE).source())
