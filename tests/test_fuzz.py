"""Files that were changed at random end in a result or in one of geolabel's errors: see `fuzzing.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="limits on memory are those of Unix")

KINDS = {"tiff": 600, "gpkg": 400, "geojson": 400, "safetensors": 400, "records": 400}
"""Kinds of file, and cases of each that the slow test tries."""

FEW = {"tiff": 12, "gpkg": 8, "geojson": 10, "safetensors": 8, "records": 6}
"""Cases of the quick sample."""

OURS = {"SceneError", "TileError", "VectorError", "WeightsError", "OutputError", "RunError", "OptionError"}


def outcomes(folder: Path, kinds: dict[str, int]) -> dict[str, list[str]]:
    """Outcome of every case; a process that ends early takes the case that it was at with it, and no other."""
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for attempt in range(20):
        left = [f"{kind}:{len(found[kind])}:{count}" for kind, count in kinds.items() if len(found[kind]) < count]
        if not left:
            break
        command = [sys.executable, str(Path(__file__).with_name("fuzzing.py")), str(folder / str(attempt)), *left]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for _, kind, _, outcome in (line.split() for line in done.stdout.splitlines() if line.startswith("end ")):
            found[kind].append(outcome)
        if done.returncode:
            kind = next(kind for kind, count in kinds.items() if len(found[kind]) < count)
            found[kind].append(f"case {len(found[kind])} of {kind} ended with {done.returncode}: {done.stderr}")
    return found


def check(found: dict[str, list[str]]) -> None:
    for kind, ends in found.items():
        strange = [end for end in ends if end not in OURS | {"result"}]
        assert not strange, f"{len(strange)} of {len(ends)} cases of {kind}:\n" + "\n".join(strange[:3])
        assert {"result"} < set(ends), f"all cases of {kind} end alike: the changes are too strong, or too weak"


def test_a_few_changed_files(tmp_path: Path) -> None:
    check(outcomes(tmp_path, FEW))


@pytest.mark.slow
def test_thousands_of_changed_files(tmp_path: Path) -> None:
    check(outcomes(tmp_path, KINDS))
