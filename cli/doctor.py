"""``geolabel doctor``: what of this machine keeps geolabel from working well."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from geolabel.urls import clean

from . import options
from .commands import command
from .terminal import loading

if TYPE_CHECKING:
    from geolabel.doctor import Finding

TO_DO = 1
"""Exit code where something is to be done."""


@command(short_help="Say what of this machine is in the way, and what to do.")
@options.as_json
@options.terminal
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> int:
    """Look at this machine and this environment, and say what to do where something is wrong.

    Tried are GDAL, each PROJ with its database, PyTorch, ONNX Runtime, the GPUs, the bundled networks, memory, caches
    and the plugin of QGIS. The exit code is 0 where all is well, and 1 where something is to be done.

    \b
    geolabel doctor
    geolabel doctor --json
    """
    with loading(ctx, "trying the libraries"):
        import geolabel

        findings = geolabel.diagnose()
    well = all(finding.ok for finding in findings)
    if as_json:
        rows = [clean(asdict(finding)) for finding in findings]
        click.echo(json.dumps({"ok": well, "findings": rows}, indent=2))
    else:
        for finding in findings:
            _print(finding, max(len(one.name) for one in findings))
    return 0 if well else TO_DO


def _print(finding: Finding, width: int) -> None:
    click.echo(f"{'ok  ' if finding.ok else 'warn'}  {finding.name:<{width}}  {clean(finding.found)}")
    if finding.advice:
        click.echo(f"{'':4}  {'':<{width}}  -> {clean(finding.advice)}")
