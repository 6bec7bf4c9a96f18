"""``geolabel models``: published networks, and the contents of weights files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options
from .commands import group, option
from .terminal import announce

if TYPE_CHECKING:
    from geolabel.models.registry import Published


@group()
def models() -> None:
    """List, download, check and describe networks.

    Downloads are kept in the user's cache folder, or in GEOLABEL_CACHE. With GEOLABEL_OFFLINE=1 nothing is downloaded.
    """


@models.command("list")
@options.as_json
@options.terminal
def list_models(as_json: bool) -> None:
    """List the networks and whether they are downloaded."""
    from geolabel.models.registry import PUBLISHED

    rows = [_row(network) for network in PUBLISHED]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        shown = [row | {"size": _megabytes(row["size"]), "input": _pixels(row["input"])} for row in rows]
        _print_table(["name", "role", "size", "input", "licence", "state", "file"], shown)


@models.command()
@click.argument("name")
@options.as_json
@options.terminal
@click.pass_context
def fetch(ctx: click.Context, name: str, as_json: bool) -> None:
    """Download the network NAME, check it, and keep it in the cache folder."""
    from geolabel.models import registry

    rows = []
    for network in registry.lookup(name):
        show = sys.stderr.isatty() and not ctx.ensure_object(options.Session).quiet
        with closing(_DownloadBar(name)) if show and not registry.find(network) else nullcontext() as bar:
            path = registry.fetch(network, progress=bar)
        rows.append({"name": name, "role": network.role, "file": str(path), "sha256": registry.verify(network)})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            announce(row, as_json=False)


@models.command()
@click.argument("name", required=False)
@options.as_json
@options.terminal
def verify(name: str | None, as_json: bool) -> int:
    """Check the files of the network NAME, or of all downloaded networks; exit code 1 if one is damaged."""
    from geolabel.errors import WeightsError
    from geolabel.models import registry

    asked = registry.lookup(name) if name else [p for p in registry.PUBLISHED if p.path.is_file() or registry.find(p)]
    rows = []
    for network in asked:
        row: dict[str, Any] = {"name": network.name, "role": network.role, "ok": True}
        try:
            row["sha256"] = registry.verify(network)
        except WeightsError as error:
            row |= {"ok": False, "sha256": None, "message": str(error)}
            click.echo(f"geolabel: {error}", err=True)
        rows.append(row)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        shown = [row | {"state": "ok" if row["ok"] else "failed", "sha256": row["sha256"] or ""} for row in rows]
        _print_table(["name", "role", "state", "sha256"], shown)
    return 0 if all(row["ok"] for row in rows) else 1


@models.command()
@click.argument("name", metavar="NAME|FILE|FOLDER")
@options.as_json
@options.terminal
def info(name: str, as_json: bool) -> None:
    """Describe the network NAME, or that of FILE or FOLDER."""
    from geolabel.models import loading, registry

    if Path(name).exists():
        described = [loading.describe(Path(name))]
    else:
        described = [_describe(network) for network in registry.lookup(name)]
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    for number, values in enumerate(described):
        if number:
            click.echo()
        announce(values, as_json=False)


@models.command()
@click.argument("name", metavar="[NAME|FILE]", default="bundled")
@option(
    "--onnx",
    "out",
    group="output",
    required=True,
    is_flag=False,
    flag_value="landslides.onnx",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="[FILE]",
    help="File to write, in the format of Deepness and GeoDeep. Without a name: landslides.onnx.",
)
@option(
    "--tile-size",
    group="method",
    type=click.IntRange(min=32),
    default=512,
    show_default=True,
    metavar="PX",
    help="Side of the tiles of the other program.",
)
@option(
    "--gsd",
    group="method",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    show_default=True,
    metavar="M",
    help="Pixel size that the other program resamples to.",
)
@options.overwrite
@options.as_json
@options.terminal
def export(name: str, out: Path, tile_size: int, gsd: float, overwrite: bool, as_json: bool) -> None:
    """Write the localizer NAME, or that of FILE, for other programs: Deepness in QGIS, GeoDeep and WebODM.

    The exported network gives the map of the localizer with its threshold, without segmenter, gate, confidence and
    stretch of the scene: give the other program a well-stretched 8-bit RGB image. geolabel extract gives better
    polygons.

    \b
    geolabel models export --onnx
    geolabel models export my-localizer.safetensors --onnx mine.onnx --gsd 1
    """
    from geolabel.extraction.request import ContourMethod
    from geolabel.models import registry
    from geolabel.models.exports import export_onnx
    from geolabel.outputs import check_target

    path = Path(name) if Path(name).is_file() else registry.fetch(registry.lookup(name, "localizer")[0])
    check_target(out, overwrite=overwrite, suffixes=(".onnx",), inputs=(path,))
    threshold = ContourMethod().activation_threshold
    export_onnx(path, out, threshold=threshold, tile=tile_size, gsd=gsd, overwrite=overwrite)
    announce({"output": out, "localizer": path, "tile_px": tile_size, "gsd_m": gsd}, as_json=as_json)


@models.command()
@click.argument("name")
@option(
    "-o",
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write to; it may exist.",
)
@options.overwrite
@options.as_json
@options.terminal
def stac(name: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write a STAC item for each network of NAME, or for that of FILE, with a copy of its weights.

    The items have the machine learning model extension (MLM). geolabel review stac links to them.

    \b
    geolabel models stac bundled --out handover
    geolabel models stac student.safetensors --out handover
    """
    from geolabel.models.stac import network_items

    written = network_items(name, out, overwrite=overwrite)
    announce({kind: str(path) for kind, path in written.items()}, as_json=as_json)


def _describe(network: Published) -> dict[str, Any]:
    from geolabel.models import hub, loading, registry

    values = {"name": network.name, "role": network.role, "summary": network.summary, "licence": network.licence}
    if network.url is not None:
        values["url"] = network.url
    if network.hub is not None:
        values["hub"] = network.hub
    path = registry.find(network)
    if path is None:
        return values | {"state": _state(network), "bytes": network.size, "sha256": network.sha256}
    if network.hub is not None:
        values["hub"] = hub.named(network.hub, path)
    return values | {"state": _state(network)} | loading.describe(path, words=network.words)


def _row(network: Published) -> dict[str, Any]:
    path = network.path
    size = network.size or (path.stat().st_size if path.is_file() else None)
    return {
        "name": network.name,
        "role": network.role,
        "size": size,
        "input": network.window,
        "licence": network.licence,
        "state": _state(network),
        "file": str(path),
    }


def _state(network: Published) -> str:
    from geolabel.models import registry

    if registry.find(network) is not None:
        return "here"
    if network.path.is_file():
        return "damaged"
    return "missing" if network.bundled else "not fetched"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f} MB"


def _pixels(side: int | None) -> str:
    return "" if side is None else f"{side} px"


def _print_table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    # Plain columns: paths and hashes are not truncated to the terminal's width, so that they can be copied.
    lines = [list(columns), *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


class _DownloadBar:
    """A bar on stderr with pooch's progress interface."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._display = Progress(*columns, console=Console(stderr=True))
        self._task = self._display.add_task(name, total=None)
        self._display.start()

    @property
    def total(self) -> float | None:
        """Total bytes."""
        return self._display.tasks[0].total

    @total.setter
    def total(self, size: float) -> None:
        self._display.update(self._task, total=size)

    def update(self, size: float) -> None:
        """Add `size` bytes."""
        self._display.advance(self._task, size)

    def reset(self) -> None:
        """Start again from 0."""
        self._display.reset(self._task)

    def close(self) -> None:
        """Keep the bar on screen."""
        self._display.stop()
