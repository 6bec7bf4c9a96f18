"""Pages that the site has besides those of this folder: files of the repository, notebooks, and the command line.

A page of this folder links to such a file by its path (``../CHANGELOG.md``), so that the link also leads there in a
checkout; the site has the link lead to the page that shows the file.
"""

from __future__ import annotations

import ast
import base64
import inspect
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from geolabel.cli.commands import TITLES, Option, Topic
from geolabel.cli.main import cli
from geolabel.settings import settings_of

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

SHOWN = {
    "CITATION.cff": "CITATION.cff",
    "CHANGELOG.md": "development/changelog.md",
    "CONTRIBUTING.md": "development/contributing.md",
    "LICENSE": "LICENSE.txt",
    "geolabel/weights/evidence.md": "model-cards/evidence.md",
    "geolabel/weights/failures.jpg": "model-cards/failures.jpg",
    "geolabel/weights/lite0.md": "model-cards/lite0.md",
    "geolabel/weights/localizer.md": "model-cards/localizer.md",
    "geolabel/weights/localizer-weak.md": "model-cards/localizer-weak.md",
    "geolabel/weights/segmenter.md": "model-cards/segmenter.md",
}
"""Files of the repository, and where the site has them; notebooks are added."""

SHOWN |= {
    f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}

SOURCES = {shown: source for source, shown in SHOWN.items()}


# --- hooks of MkDocs -------------------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    from mkdocs.structure.files import File

    for source, shown in SHOWN.items():
        path = ROOT / source
        if path.suffix == ".ipynb":
            text, pictures = notebook_page(path)
            files.append(File.generated(config, shown, content=text))
            for name, data in pictures.items():
                files.append(File.generated(config, f"notebooks/{name}", content=data))
        else:
            files.append(File.generated(config, shown, content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Fill in the figures, and have links to files of the repository lead to their pages."""
    markdown = re.sub(r"^\{\{ (\w+)(?: (\w+))? \}\}$", filled, markdown, flags=re.MULTILINE)
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if source in SHOWN and target.startswith("docs/"):
            shown = target.removeprefix("docs/")
        elif target in SHOWN:
            shown = SHOWN[target]
        else:
            return match[0]
        return f"]({posixpath.relpath(shown, posixpath.dirname(here) or '.')}{match[2] or ''})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", moved, markdown)


# --- what pages take from the code -----------------------------------------------------------------------------------


def filled(match: re.Match[str]) -> str:
    """Return what stands for a line such as ``{{ measured }}``."""
    return FILLED[match[1]](*(part for part in match.groups()[1:] if part))


def measured() -> str:
    """Return the accuracy of the bundled networks, as a table."""
    from geolabel.models.measured_accuracy import of_bundled

    return of_bundled().markdown()


def columns(name: str) -> str:
    """Return a table of the columns of a layer."""
    from geolabel.io import columns as module

    lines = ["| column | type | meaning |", "|---|---|---|"]
    for column, kind in getattr(module, name).items():
        about = module.COLUMNS[column]
        lines.append(f"| `{column}` | {kind} | {about.alias}: {about.meaning} |")
    return "\n".join(lines)


def api() -> str:
    """Return mkdocstrings' blocks of all public names, functions first, and the settings of records that have some."""
    from geolabel import api as module

    blocks: list[str] = []
    for name in sorted(module.__all__, key=lambda name: (name[0].isupper(), name)):
        blocks.append(f"::: geolabel.api.{name}\n    options:\n      heading: geolabel.{name}")
        record = getattr(module, name) if name[0].isupper() else None
        blocks += [setting_table(record)] if is_dataclass(record) and settings_of(record) else []
    return "\n\n".join(blocks)


def methods() -> str:
    """Return the settings of each method."""
    from geolabel.methods import METHODS

    blocks: list[str] = []
    for name, method in METHODS.items():
        blocks.append(f"### {method.home}")
        blocks += ["Over scenes, `Scenes`:", setting_table(method.for_scenes)]
        if method.for_chips is not None:
            blocks += [f"Over folders of images, `Settings`, the options of `geolabel label --method {name}`:"]
            blocks += [setting_table(method.for_chips)]
    return "\n\n".join(blocks)


def setting_table(record: type) -> str:
    """Return a table of the settings of a record."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    defaults = {one.name: one.default for one in fields(record)}
    for name, known in settings_of(record).items():
        lines.append(f"| `{name}` | `{defaults[name]!r}` | {escaped(known.help)} |")
    return "\n".join(lines)


def packages() -> str:
    """Return a table of the packages, with the first lines of what they say of themselves."""
    lines = ["| package | modules | lines | holds |", "|---|---|---|---|"]
    folders = {"geolabel": ROOT / "geolabel", "geolabel.cli": ROOT / "cli"}
    for name, top in folders.items():
        for marker in sorted(top.rglob("__init__.py")):
            inner = ".".join([name, *marker.parent.relative_to(top).parts])
            modules = [path for path in marker.parent.glob("*.py") if path != marker]
            length = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in [marker, *modules])
            says = " ".join(docstring(marker).split("\n\n")[0].split())
            lines.append(f"| `{inner}` | {len(modules)} | {length} | {escaped(says)} |")
    return "\n".join(lines)


def benchmarks() -> str:
    """Return what every benchmark says of itself."""
    texts = {path.name: docstring(path) for path in sorted((ROOT / "tests" / "benchmarks").glob("*.py"))}
    return "\n\n".join(f"## {name}\n\n```text\n{text}\n```" for name, text in texts.items() if text)


def docstring(path: Path) -> str:
    """Return the docstring of a module."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


# --- notebooks -------------------------------------------------------------------------------------------------------


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and the pictures in it by their names."""
    lines: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        lines += [source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```", ""]
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                lines += [f"![Output of the cell above]({name})", ""]
            elif "<table" in (html := "".join(data.get("text/html", ()))) and "xr-wrap" not in html:
                lines += ['<div class="output" markdown="0">', html, "</div>", ""]
            elif text := "".join(output.get("text", data.get("text/plain", ()))).rstrip():
                lines += [f"```text\n{text}\n```", ""]
    return "\n".join(lines), pictures


# --- the command line ------------------------------------------------------------------------------------------------


def commands() -> str:
    """Return the reference of all commands, from the commands themselves."""
    context = click.Context(cli, info_name="geolabel", auto_envvar_prefix="GEOLABEL")
    parts: list[str] = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        parts += command_page(command, name, context)
    return "\n".join(parts)


def command_page(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    """Yield the reference of one command, and of its subcommands."""
    context = click.Context(command, info_name=name, parent=parent)
    depth = "##" if parent.parent is None else "###"
    yield f"{depth} {context.command_path}\n"
    yield f"{prose(command.help or '')}\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from command_page(found, inner, context)
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```\n"
    shown = [one for one in command.params if isinstance(one, Option) and not one.hidden]
    for topic in get_args(Topic):
        if rows := [row(one, context) for one in shown if one.group == topic]:
            yield f"| {TITLES[topic]} | |\n|---|---|"
            yield "\n".join(rows) + "\n"


def row(option: Option, context: click.Context) -> str:
    """Return one line of a table of options."""
    record = option.get_help_record(context)
    assert record is not None
    names, text = (part.replace("|", "\\|").replace("\n", " ") for part in record)
    return f"| `{names}`{' †' if option.rare else ''} | {escaped(text)} |"


def prose(text: str) -> str:
    """Return a help text as Markdown: paragraphs after a backspace keep their lines."""
    parts = []
    for part in inspect.cleandoc(text).split("\n\n"):
        kept = part.startswith("\b")
        body = inspect.cleandoc(part.replace("\b", ""))
        parts.append(f"```text\n{body}\n```" if kept else escaped(body))
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Return text without characters that Markdown takes for its own."""
    return re.sub(r"([*_<\[\]])", r"\\\1", text)


FILLED: dict[str, Callable[..., str]] = {
    "api": api,
    "benchmarks": benchmarks,
    "columns": columns,
    "commands": commands,
    "measured": measured,
    "methods": methods,
    "packages": packages,
}
"""Functions by the words that stand for their results."""
