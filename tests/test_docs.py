"""The site of the documentation: it builds without a warning and without a network, and asks no other server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parents[1]

OFFLINE = """
import socket, sys


def refuse(*arguments, **_):
    raise OSError(f"the site is built without a network: {arguments}")


socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in ("mkdocs", "material", "mkdocstrings") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    arguments = ["build", "--strict", "--quiet", "--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_the_site_builds_strictly_without_a_network(site: Path) -> None:
    assert {"index.html", "install.html", "reference/cli.html", "notebooks/01_extract.html"} <= set(pages(site))


def test_pages_load_nothing_from_other_servers(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]*?src=[\"']?(?:https?:)?//|<link[^>]*?href=[\"']?(?:https?:)?//[^>]*>"
    )
    for name, text in pages(site).items():
        assert not [found for found in loads.findall(text) if "canonical" not in found], name


def test_no_page_keeps_a_gap_that_the_code_should_fill(site: Path) -> None:
    for name, text in pages(site).items():
        assert not re.search(r"\{\{ \w+", text), name


def test_the_reference_has_every_command_and_every_public_name(site: Path) -> None:
    from geolabel import api
    from geolabel.cli.main import COMMANDS

    commands = pages(site)["reference/cli.html"]
    assert [name for name in COMMANDS if f"geolabel {name}<" not in commands] == []
    names = pages(site)["reference/python.html"]
    assert [name for name in api.__all__ if f'id="geolabel.api.{name}"' not in names] == []


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    if page.name == "experiments.md":
        pytest.skip("tells of files as they were")
    named = re.findall(r"`((?:geolabel|cli|tests|docs)/[\w/]+\.(?:py|md))`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists() and "NAME" not in name] == []


def test_the_walk_names_the_functions_that_are_there() -> None:
    text = (ROOT / "docs/development/architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\|[^|]*\| `([\w/.]+)` \| `([\w.]+)`", text, re.MULTILINE)
    assert len(steps) > 8
    for file, name in steps:
        assert f"def {name.split('.')[-1]}(" in (ROOT / file).read_text(encoding="utf-8"), (file, name)


def test_the_page_of_methods_names_functions_that_exist() -> None:
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    modules = "|".join(path.stem for path in (ROOT / "geolabel").iterdir() if path.name[0] not in "._")
    names = re.findall(rf"`((?:{modules})(?:\.\w+)+)", text)
    assert len(names) > 50
    for name in names:
        resolve_name(f"geolabel.{name}")
