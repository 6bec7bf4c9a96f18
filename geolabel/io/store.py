"""Records of a run: named arrays, each record written once, whole or not at all."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.errors import OutputError
from geolabel.types import AnyArray


@dataclass(frozen=True)
class Store:
    """A folder of records, each known by a kind and a number.

    The store holds no open file, so it travels to any worker that sees its folder. Records are ``.npz`` files without
    compression, which are written as fast as the disk takes them and carry a checksum per array.
    """

    root: Path
    """Created when the first record is written."""

    def path(self, kind: str, index: int) -> Path:
        """Where a record is kept."""
        return self.root / kind / f"{index:08d}.npz"

    def has(self, kind: str, index: int) -> bool:
        """Whether the record has been written."""
        return self.path(kind, index).exists()

    def write(self, kind: str, index: int, arrays: Mapping[str, AnyArray]) -> None:
        """Write a record under a name of its own and move it into place.

        Raises
        ------
        OutputError
            If the folder cannot be written to.
        """
        target = self.path(kind, index)
        part = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as file:
                part = Path(file.name)
                entries: dict[str, Any] = dict(arrays)
                np.savez(file, **entries)
            part.replace(target)
        except OSError as error:
            raise OutputError(f"record {target} could not be written: {error.strerror or error}") from error
        finally:
            if part is not None:
                part.unlink(missing_ok=True)

    def read(self, kind: str, index: int, *names: str) -> dict[str, AnyArray]:
        """Read a record, or only the arrays of these names.

        Raises
        ------
        OutputError
            If the record is missing or not as it was written.
        """
        path = self.path(kind, index)
        try:
            # opened here, since np.load leaves a file open that turns out to be no archive
            with path.open("rb") as file, np.load(file, allow_pickle=False) as record:
                return {name: record[name] for name in names or record.files}
        except FileNotFoundError as error:
            raise OutputError(f"record {path} is missing: run again from the start") from error
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise OutputError(f"record {path} is damaged ({error}): delete {self.root} and run again") from error

    def remove(self) -> None:
        """Delete every record, and the folders that are empty then; files that the store did not write stay."""
        for pattern in ("*/*.npz", "*/*.part"):
            for record in self.root.glob(pattern):
                record.unlink(missing_ok=True)
        if not self.root.is_dir():
            return
        for folder in (*(entry for entry in self.root.iterdir() if entry.is_dir()), self.root):
            if not any(folder.iterdir()):
                folder.rmdir()
