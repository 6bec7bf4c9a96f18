"""``geolabel runs``: folders of interrupted runs, and of runs that were kept."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from . import options
from .commands import complete_files, group
from .terminal import announce


@group()
def runs() -> None:
    """List, describe and delete run folders.

    A run keeps its records in a folder beside its output (or in --run-dir) until it succeeds. The same command resumes
    an interrupted run from there.
    """


@runs.command("list")
@click.argument("folder", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.as_json
@options.terminal
def list_runs(folder: Path, as_json: bool) -> None:
    """List the run folders in FOLDER, by default the current one."""
    from geolabel.engine.run_folder import find_runs, summarize
    from geolabel.errors import RunError

    rows: list[dict[str, Any]] = []
    for path in find_runs(folder):
        try:
            found = summarize(path)
        except RunError as error:
            click.echo(f"warning: {error}", err=True)
            continue
        done, total = (sum(pair[place] for pair in found.done.values()) for place in (0, 1))
        rows.append(
            {
                "folder": found.folder,
                "status": found.status,
                "started": found.started,
                "tasks_done": done,
                "tasks": total,
                "size_bytes": found.size_bytes,
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo(f"no unfinished runs in {folder}", err=True)
    for row in rows:
        size = f"{(row['size_bytes'] or 0) / 1e6:.1f} MB"
        tasks = f"{row['tasks_done']} of {row['tasks']} tasks"
        click.echo(f"{row['folder']}  {row['status']}  {tasks}  {size}  since {row['started']}")


@runs.command()
@click.argument("run", shell_complete=complete_files)
@options.as_json
@options.terminal
def show(run: str, as_json: bool) -> None:
    """Show the progress and the scenes of the run folder RUN."""
    from geolabel.engine.run_folder import summarize
    from geolabel.extraction.work import scenes_of

    found = summarize(run)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    facts: dict[str, Any] = {"folder": found.folder, "status": found.status, "started": found.started}
    facts |= {"message": found.message} if found.message else {}
    scenes = scenes_of(found.key)
    facts |= {"scene": scenes[0] if len(scenes) == 1 else f"{scenes[0]} and {len(scenes) - 1} more"} if scenes else {}
    facts |= {f"pass_{name}": f"{done} of {total} tasks" for name, (done, total) in found.done.items()}
    announce(facts, as_json=False)


@runs.command()
@click.argument("run", nargs=-1, required=True, shell_complete=complete_files)
@options.terminal
def clean(run: tuple[str, ...]) -> None:
    """Delete each run folder RUN that no process uses."""
    from geolabel.engine.run_folder import clean as clean_run

    for root in run:
        clean_run(root)
        click.echo(f"deleted {root}")
