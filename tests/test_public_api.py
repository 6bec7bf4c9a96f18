"""The front door: what `geolabel` exports, and that opening it costs nothing."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import geolabel
from geolabel import api
from geolabel.cli.main import COMMANDS, cli
from geolabel.errors import GeolabelError

HEAVY = ("torch", "rasterio", "geopandas", "pyogrio", "xarray", "dask", "scipy", "numpy", "matplotlib")


def test_all_is_sorted_and_complete():
    assert api.__all__ == sorted(api._HOMES)
    assert geolabel.__all__ == ["__version__", *api.__all__]
    assert set(geolabel.__all__) <= set(dir(geolabel))
    assert set(api.__all__) <= set(dir(api))


@pytest.mark.parametrize("name", sorted(api._HOMES))
def test_every_name_is_the_one_of_its_home(name: str):
    assert getattr(geolabel, name) is getattr(api, name)
    assert getattr(geolabel, name).__module__ == api._HOMES[name]
    assert getattr(sys.modules[api._HOMES[name]], name) is getattr(geolabel, name)


def test_type_checkers_see_the_names_that_resolve():
    tree = ast.parse(Path(api.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
    seen = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}
    assert seen == api._HOMES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'landslide'"):
        geolabel.landslide  # noqa: B018
    assert issubclass(geolabel.GeolabelError, GeolabelError)


@pytest.mark.parametrize(
    "work",
    [
        "import geolabel",
        "import geolabel.api",
        "from geolabel.cli.main import run; assert run(['--help']) == 0",
        "from geolabel.cli.main import run; assert run(['--version']) == 0",
        "from geolabel.cli.main import run; assert run(['extract', '--help']) == 0",
    ],
)
def test_nothing_heavy_is_imported(work: str):
    script = f"import sys\n{work}\nprint('heavy:', *sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]


def test_help_answers_at_once():
    """In processor time, which a busy machine does not change."""
    command = [sys.executable, "-c", "from geolabel.cli.main import main; main()", "--help"]
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.5


def test_help_lists_every_command():
    from click.testing import CliRunner

    done = CliRunner().invoke(cli, ["--help"])
    assert done.exit_code == 0
    listed = done.stdout.split("Commands:")[1].split()
    assert [word for word in listed if word in COMMANDS] == list(COMMANDS)
