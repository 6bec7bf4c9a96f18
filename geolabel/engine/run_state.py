"""What the folder of a run says of it: its key, how far it is, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from geolabel.io.storage import Storage
from geolabel.parsing import parse_json

RUN = "run.json"
"""Name of the file."""

DONE = "done"
"""Records of finished tasks are of the kind ``PASS-done``."""

STOP = "stop"
"""A file of this name in the folder of a run asks its workers to begin no further task."""

FORMAT = 2
"""Format of the run folder; other versions are not resumed."""

MAX_BYTES = 16 << 20
"""Of ``run.json``, which takes a few thousand."""

MAX_DEPTH = 16
"""Levels of values in values; a key has six."""


@dataclass(frozen=True)
class State:
    """What ``run.json`` says."""

    key: Mapping[str, Any]
    """Everything that the records depend on."""
    started: str
    overwrite: bool = False
    """Whether the run was asked to replace its outputs."""
    status: str = "running"
    """``running``, ``interrupted``, ``failed``, ``finished`` or ``removing``."""
    message: str = ""
    """Why it failed."""
    passes: Mapping[str, int] = field(default_factory=dict)
    """Tasks of the passes that have begun."""
    written: Mapping[str, list[int]] = field(default_factory=dict)
    """Outputs that are whole: path to size and modification time in nanoseconds; see `Folder.writing`."""

    def dump(self) -> bytes:
        """As it is written."""
        return json.dumps({"format": FORMAT} | vars(self), indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read what `dump` wrote.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        values = parse_json(data, limit=MAX_BYTES, depth=MAX_DEPTH)
        types = {
            "key": dict,
            "started": str,
            "overwrite": bool,
            "status": str,
            "message": str,
            "passes": dict,
            "written": dict,
        }
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT or values.keys() != types.keys():
            raise ValueError("it is of another version of geolabel")
        if not all(isinstance(values[name], kind) for name, kind in types.items()):
            raise ValueError("it is damaged")
        return cls(**values)

    @classmethod
    def read(cls, folder: Storage) -> Self:
        """Read what a folder says.

        Raises
        ------
        FileNotFoundError
            If it says nothing.
        ValueError, RecursionError
            If it is anything else than what `dump` wrote.
        """
        with folder.open(RUN) as file:
            return cls.parse(file.read(MAX_BYTES + 1))


Changes = Mapping[str, tuple[Any, Any]]
"""Last names of values of a key that may change between a run and the one that resumes it, from and to what."""


def difference(old: Mapping[str, Any], new: Mapping[str, Any], allowed: Changes | None = None, limit: int = 4) -> str:
    """Say in words what differs between two run keys; empty where nothing does.

    Parameters
    ----------
    allowed
        Changes that are no difference.
    limit
        Maximum number of values that are named.
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    names = [
        name
        for name in {**before, **after}
        if before.get(name) != after.get(name)
        and (allowed or {}).get(name.rpartition(".")[2]) != (before.get(name), after.get(name))
    ]
    parts = [f"{name} was {_short(before.get(name))} and is {_short(after.get(name))} now" for name in sorted(names)]
    return "; ".join(parts[:limit]) + (f"; and {len(names) - limit} more" if len(names) > limit else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 48 else f"{text[:45]}..."
