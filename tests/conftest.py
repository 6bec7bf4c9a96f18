"""What holds for all tests: one thread per library, no settings of the developer's own, and markers that may skip."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Before numpy or torch are imported: two processes of tests on two cores would only get in each other's way, and the
# last digits of a network's output depend on the number of threads.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

for _name in [name for name in os.environ if name.startswith("GEOLABEL_")]:
    del os.environ[_name]

# A machine that is busy with something else has to fail no test.
settings.register_profile("geolabel", deadline=None)
settings.load_profile("geolabel")


@pytest.fixture(autouse=True)
def nothing_stays():
    """What ``-q`` and ``--threads`` asked of one test is forgotten before the next."""
    yield
    logging.getLogger("geolabel").setLevel(logging.NOTSET)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Real imagery beside the project."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = dict(_reasons_to_skip(config, {mark.name for item in items for mark in item.iter_markers()}))
    for item in items:
        for name, why in reasons.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=why))


def _reasons_to_skip(config: pytest.Config, used: set[str]):
    if not config.getoption("--slow"):
        yield "slow", "takes minutes: run with --slow"
    if not SHARED.is_dir():
        yield "shared", f"needs real imagery in {SHARED}"
    if "nginx" in used and shutil.which("nginx") is None:
        yield "nginx", "needs nginx: apt-get install nginx-light"
    if "chromium" in used and not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        yield "chromium", "needs a browser: apt-get install chromium"
    if "qgis" in used and not _has_qgis():
        yield "qgis", "needs QGIS with its Python: apt-get install qgis python3-qgis"
    if "gpu" in used and not _has_gpu():
        yield "gpu", "needs a CUDA device"


def _has_qgis() -> bool:
    python = Path("/usr/bin/python3")  # QGIS is none of the environment's: Debian's Python has it
    return bool(shutil.which("qgis_process")) and python.exists() and not _status([python, "-c", "import qgis.core"])


def _status(command: list[str | Path]) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
