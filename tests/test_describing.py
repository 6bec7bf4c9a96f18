"""Descriptions of other files, built at random, reach no canary: see `describing.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

OURS = {"SceneError", "TileError", "VectorError", "ChipError", "OptionError"}


def cases(folder: Path, first: int, stop: int, *bare: str) -> list[list[str]]:
    """Kind, outcome and canaries of every case."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("describing.py")),
        str(folder),
        str(first),
        str(stop),
        *bare,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("end ")]
    assert len(found) == stop - first, f"case {first + len(found)} ended with {done.returncode}: {done.stderr[-3000:]}"
    return found


def check(found: list[list[str]]) -> None:
    for number, (kind, outcome, canaries) in enumerate(found):
        assert canaries == "silent", f"case {number}, {kind}: {canaries}"
        assert outcome in OURS | {"result"}, f"case {number}, {kind}: {outcome}"
    for kind in ("beside", "coco", "list", "stac", "vrt"):
        ends = {outcome == "result" for name, outcome, _ in found if name.rstrip("23") == kind}
        assert ends == {True, False}, f"all cases of {kind} end alike: they are too wild, or too tame"


def test_no_description_reaches_a_canary(tmp_path: Path) -> None:
    check(cases(tmp_path, 0, 200))


def test_left_to_gdal_they_reach_all_of_them(tmp_path: Path) -> None:
    """Canaries that never sing would prove nothing."""
    sung = {canary for *_, canaries in cases(tmp_path, 0, 110, "bare") for canary in canaries.split(",")}
    assert sung == {"silent", "file", "server", "written"}


@pytest.mark.slow
def test_thousands_of_descriptions_reach_no_canary(tmp_path: Path) -> None:
    check(cases(tmp_path, 0, 5000))
