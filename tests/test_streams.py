"""The command line with streams that are closed, full, or that nobody reads."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shells close streams there in other ways")
GEOLABEL = f"'{sys.executable}' -c 'from geolabel.cli.main import main; main()'"


def shell(words: str, folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, cwd=folder, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("ending", [">&- 2>&- <&-", "2>/dev/full", "2>&1 | head -0"])
def test_an_error_ends_as_it_would(tmp_path: Path, ending: str):
    assert shell(f"set -o pipefail; {GEOLABEL} info nothing.tif {ending}", tmp_path) == (1, "", "")


def test_nobody_needs_to_read_to_the_end(tmp_path: Path):
    assert shell(f"set -o pipefail; {GEOLABEL} models list | head -1 | cut -c 1-4", tmp_path)[::2] == (0, "")


def test_a_result_that_is_lost_is_an_error(tmp_path: Path):
    code, _, said = shell(f"{GEOLABEL} models list > /dev/full", tmp_path)
    assert (code, said) == (1, "geolabel: stdout cannot be written: No space left on device\n")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path):
    (tmp_path / "a.py").write_text(
        "import os, sys\nfrom geolabel.cli.streams import open_streams\nopen_streams()\nfile = open('a.txt', 'w')\n"
        "os.write(1, b'lost')\nos.write(2, b'lost')\nprint('lost', file=sys.stderr)\nfile.write('kept')\n"
    )
    assert shell(f"'{sys.executable}' a.py >&- 2>&- <&-", tmp_path) == (0, "", "")
    assert (tmp_path / "a.txt").read_text() == "kept"


def test_a_character_that_the_encoding_lacks_is_no_error(tmp_path: Path):
    (tmp_path / "a.py").write_text(
        "from geolabel.cli.streams import open_streams\nopen_streams()\nprint('\u5c71.gpkg')\n", encoding="utf-8"
    )
    assert shell(f"PYTHONIOENCODING=cp1252 '{sys.executable}' a.py | cat", tmp_path) == (0, "\\u5c71.gpkg\n", "")
