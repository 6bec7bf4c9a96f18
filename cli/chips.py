"""``geolabel chips``: pictures to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .packing import packing_options, run_packing


@click.command(short_help="Pack pictures for training into one file.")
@packing_options
@options.overwrite
@options.as_json
@options.terminal
def chips(pack: Path | None, **given: Any) -> None:
    r"""Pack pictures to train on into one file, for a machine that has torch and no raster library.

    \b
    geolabel chips --pack pictures.zip --data slides/ --negatives fields/
    geolabel train bundled --pack pictures.zip --out trained/
    """
    if pack is None:
        raise click.UsageError("give --pack FILE")
    run_packing(pack, **given)
