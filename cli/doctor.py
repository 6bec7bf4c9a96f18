"""``geolabel doctor``: check the machine and the environment."""

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
"""Exit code if a check fails."""


@command(short_help="Check this machine and environment, and advise.")
@options.as_json
@options.terminal
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> int:
    """Check this machine and environment, and advise how to fix problems.

    The checks cover GDAL, each PROJ with its database, PyTorch, ONNX Runtime, GPUs, bundled networks, memory, caches
    and the QGIS plugin. The exit code is 0 if all is well, and 1 otherwise.

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
