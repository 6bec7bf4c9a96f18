"""Runs that left a folder: find them, say what is known of them, clear them away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geolabel.engine.lock import LOCK, holder
from geolabel.engine.run_folder import Folder
from geolabel.engine.run_key import RUN, State
from geolabel.engine.task_records import DONE
from geolabel.errors import RunError
from geolabel.io.storage import is_url, storage_at
from geolabel.io.store import SUFFIX, Store


@dataclass(frozen=True)
class Summary:
    """What can be said of a run from its folder."""

    folder: str
    status: str
    """``running``, ``interrupted``, ``failed``, ``finished``, or ``dead``: ended without a word."""
    started: str
    message: str
    done: Mapping[str, tuple[int, int]]
    """Tasks done and tasks in all, by pass."""
    key: Mapping[str, Any]
    size_bytes: int | None
    """None where the store does not say."""


def summarize(root: str | Path) -> Summary:
    """Read what a folder says of its run.

    Raises
    ------
    RunError
        If it is no folder of a run.
    """
    here = storage_at(root)
    try:
        state = State.read(here)
    except FileNotFoundError as error:
        raise RunError(f"{root} is no folder of a run: it has no {RUN}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{root}/{RUN} cannot be read: {error}") from error
    names = list(here.names())
    alive = LOCK in names and holder(here, watch=False) is not None
    counted = {
        name: (sum(n.startswith(f"{name}-{DONE}/") and n.endswith(SUFFIX) for n in names), total)
        for name, total in state.passes.items()
        if isinstance(total, int)
    }
    size = None
    if not is_url(root):
        size = sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())
    status = "running" if alive else "dead" if state.status == "running" else state.status
    return Summary(str(root), status, state.started, state.message, counted, state.key, size)


def scenes_of(key: Mapping[str, Any]) -> list[str]:
    """The scenes that the key of a run names."""
    scene = key.get("scene")
    if isinstance(scene, Mapping):
        said = scene.get("uri", scene.get("key"))
        return [str(said)] if said is not None else [name for part in scene.values() for name in _uri(part)]
    return [name for part in key.values() if isinstance(part, Mapping) for name in scenes_of(part)]


def _uri(part: Any) -> list[str]:
    return [str(part["uri"])] if isinstance(part, Mapping) and "uri" in part else []


def find_runs(where: Path) -> list[Path]:
    """Folders of runs in a folder, or that folder itself."""
    if (where / RUN).is_file():
        return [where]
    return sorted(path.parent for path in where.glob(f"*/{RUN}"))


def clean(root: str | Path) -> None:
    """Delete the folder of a run that is not going on.

    Raises
    ------
    RunError
        If it is going on, or the folder is none of a run.
    """
    summarize(root)
    folder = Folder(Store(root))
    other = holder(folder.storage)
    if other is not None:
        raise RunError(f"{root} is in use by process {other.pid} on {other.host.split()[0]}: end that run first")
    folder.storage.remove(LOCK)
    folder.remove()
