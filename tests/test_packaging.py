"""What is shipped: the packages, their data, one version, and a README whose commands exist."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import geolabel
from geolabel.cli.main import cli
from geolabel.evaluation.examples import SAMPLE, SAMPLE_SIZE, SYNTHETIC_GSD
from geolabel.models.measured_accuracy import of_bundled

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = {"geolabel": ROOT / "geolabel", "geolabel.cli": ROOT / "cli"}


def packages_on_disk() -> dict[str, Path]:
    found = {}
    for name, top in FOLDERS.items():
        for marker in top.rglob("__init__.py"):
            inner = marker.parent.relative_to(top).parts
            found[".".join([name, *inner])] = marker.parent
    return found


def shipped_files() -> set[str]:
    """Paths in the wheel of every file in the source folders that is not left over from running."""
    names = set()
    for package, top in FOLDERS.items():
        for path in top.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                names.add(f"{package.replace('.', '/')}/{path.relative_to(top).as_posix()}")
    return names


def requirements() -> list[tuple[str, Requirement]]:
    project = PROJECT["project"]
    groups = {"base": project["dependencies"], **project["optional-dependencies"]}
    return [(group, Requirement(text)) for group, texts in groups.items() for text in texts]


def test_the_list_of_packages_is_what_lies_on_disk():
    assert PROJECT["tool"]["setuptools"]["packages"] == sorted(packages_on_disk())


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert version("geolabel") == geolabel.__version__ == citation["version"]
    assert PROJECT["project"]["license"] == citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert re.search(r"^## (Unreleased|" + re.escape(geolabel.__version__) + r"\b)", changelog(), re.MULTILINE)


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("group", "needed"), requirements(), ids=str)
def test_requirements_have_a_lower_bound_and_no_other(group: str, needed: Requirement):
    if needed.name == "geolabel":
        return
    assert [specifier.operator for specifier in needed.specifier] == [">="]


def test_torch_may_be_as_old_as_machines_have_it():
    bound = next(iter(next(needed for _, needed in requirements() if needed.name == "torch").specifier))
    assert Version(bound.version) <= Version("2.6")


def test_every_bound_has_its_reason():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    bounds = [line for line in lines if re.match(r'\s+"[A-Za-z][^"]*>=', line)]
    assert len(bounds) > 30
    assert not [line for line in bounds if "#" not in line]


def test_the_wheel_holds_everything(tmp_path: Path):
    source = tmp_path / "source"
    for name in ("geolabel", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*build, "--wheel-dir", tmp_path, source], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        entry = wheel.read(f"geolabel-{geolabel.__version__}.dist-info/entry_points.txt").decode()
    assert {name for name in names if ".dist-info/" not in name} == shipped_files()
    assert {"geolabel/py.typed", "geolabel/cli/main.py", "geolabel/weights/localizer.safetensors"} <= names
    assert any(name.endswith("/LICENSE") for name in names)
    assert "geolabel = geolabel.cli.main:main" in entry


def test_the_bundled_networks_are_small():
    files = [*(ROOT / "geolabel" / "weights").glob("*.safetensors")]
    assert {file.stem for file in files} == {"lite0", "localizer", "localizer-weak", "segmenter"}
    assert sum(file.stat().st_size for file in files) <= 25e6


# Other packages


CONDA_NAMES = {
    "dask[distributed]": ("dask-core", "distributed"),
    "geopandas": ("geopandas-base",),
    "matplotlib": ("matplotlib-base",),
    "Pillow": ("pillow",),
    "torch": ("pytorch",),
}
"""What packages are called there where it is something else."""


def test_the_conda_recipe_asks_for_the_same():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    expected = []
    for needed in map(Requirement, PROJECT["project"]["dependencies"]):
        name = f"{needed.name}[{','.join(needed.extras)}]" if needed.extras else needed.name
        expected += [f"{other} {needed.specifier}" for other in CONDA_NAMES.get(name, (name,))]
    run = recipe["requirements"]["run"]
    assert run[0] == "python >=${{ python_min }}"
    assert sorted(run[1:]) == sorted(expected)
    assert f">={recipe['context']['python_min']}" == PROJECT["project"]["requires-python"]
    assert recipe["context"]["version"] == geolabel.__version__
    (setuptools,) = PROJECT["build-system"]["requires"]
    assert recipe["requirements"]["host"][-1].replace(" ", "") == setuptools


def test_the_image_is_built_from_files_that_are_here():
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if re.match("COPY (?!--from)", line) for word in line.split()[1:-1]]
    assert {"geolabel", "cli", "pyproject.toml", PROJECT["project"]["readme"], "LICENSE"} == {*copied}
    assert all((ROOT / name).exists() for name in copied)
    (python,) = [line.split("=")[1] for line in lines if line.startswith("ARG PYTHON=")]
    assert Version(python) >= Version(PROJECT["project"]["requires-python"].removeprefix(">="))


# The README


PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}


def line_of(name: str) -> str:
    """The one command line between the markers of `name`."""
    (found,) = re.findall(rf"^<!-- line: {name} -->\n```sh\n(.*)\n```\n<!-- end -->$", README, re.MULTILINE)
    return found


def commands() -> list[str]:
    """Every call of geolabel in the blocks of shell commands of README and docs."""
    blocks = [block for text in PAGES.values() for block in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)]
    calls = [
        call.strip()
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        for call in line.split("&&")
    ]
    return [call.removeprefix(".venv/bin/") for call in calls if re.match(r"(\.venv/bin/)?geolabel ", call)]


@pytest.mark.parametrize("call", commands())
def test_the_commands_of_the_readme_parse(call: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("geolabel.cli.inputs.check_exists", lambda *_: None)  # the files of its examples are not here
    context = click.Context(cli, info_name="geolabel")
    words = shlex.split(call)[1:]
    command: click.Command = cli
    while isinstance(command, click.Group) and words != ["--help"]:
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found
    if words != ["--help"]:
        command.make_context(command.name, words, parent=context)


def test_the_readme_names_only_options_that_exist():
    options = {name for command in cli.list_commands(click.Context(cli)) for name in _option_names(command)}
    named = {name for text in PAGES.values() for name in re.findall(r"`(--[a-z0-9-]+)[ `,]", text)}
    assert len(named) > 10
    assert named <= options | {"--help", "--help-all"}


def _option_names(name: str) -> set[str]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    inner = command.commands.values() if isinstance(command, click.Group) else [command]
    parameters = [parameter for each in inner for parameter in each.params]
    return {option for one in parameters for option in (*one.opts, *one.secondary_opts)}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 140


def test_both_lines_stand_alone():
    for name in ("sample", "tests"):
        steps = [shlex.split(step) for step in line_of(name).split("&&")]
        assert steps[0] == ["python3", "-m", "venv", ".venv"]
        assert all(step[0].startswith(".venv/bin/") or step[0] == "mkdir" for step in steps[1:])
    assert ".venv/bin/geolabel extract" in line_of("sample")
    assert line_of("tests").split("&&")[-1].split()[0] == ".venv/bin/pytest"


def test_ci_runs_the_line_of_the_readme(tmp_path: Path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    text = README.replace(line_of("tests"), "python3 -c 'print(6 * 7)' && false")
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["+ python3 -c 'print(6 * 7)' && false", "42"]
    assert done.returncode == 1


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    targets = re.findall(r"\]\(([^)\s#:]*)(#[^)\s]+)?\)", PAGES[page])
    assert targets or page != "README.md"
    for target, anchor in targets:
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor[1:] in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_readme_shows_the_figures_of_the_networks_that_ship():
    (table,) = re.findall(r"^<!-- measured -->\n(.*?)\n<!-- end -->$", README, re.MULTILINE | re.DOTALL)
    assert table == of_bundled().markdown(), "put the table of geolabel.models.measured_accuracy there"


def test_the_sample_of_the_readme_is_the_one_that_the_bench_reports_on():
    assert f"--size {SAMPLE_SIZE} --gsd {SYNTHETIC_GSD} --seed {SAMPLE}" in line_of("sample")


def test_all_methods_are_cited():
    cited = [reference["title"] for reference in yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]]
    assert len(cited) == 6
    text = " ".join(PAGES["docs/index.md"].split())
    assert not [title for title in cited if title not in text]
