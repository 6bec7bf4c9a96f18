"""Records of a run: named arrays, each record written once, whole or not at all."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.errors import OutputError
from geolabel.io.places import Place, place
from geolabel.types import AnyArray

DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What reading a record raises that is not as it was written."""


@dataclass(frozen=True)
class Store:
    """A folder of records, each known by a kind and a number.

    The store holds no open file, so it travels to any worker that sees its folder, which may be a URL of any store that
    fsspec knows. Records are ``.npz`` files without compression, which are written as fast as the disk takes them and
    carry a checksum per array.
    """

    root: Path | str
    """Created when the first record is written."""
    part: str = ""
    """What the kinds of records begin with, where a run has several parts in one folder."""

    @property
    def place(self) -> Place:
        """The folder."""
        return _place(self.root)

    def name(self, kind: str, index: int) -> str:
        """Where a record is kept, below the root."""
        return f"{self.part}{kind}/{index:08d}.npz"

    def has(self, kind: str, index: int) -> bool:
        """Whether the record has been written."""
        return self.place.exists(self.name(kind, index))

    def write(self, kind: str, index: int, arrays: Mapping[str, AnyArray]) -> None:
        """Write a record under a name of its own and move it into place.

        Raises
        ------
        OutputError
            If the folder cannot be written to.
        """
        name = self.name(kind, index)
        entries: dict[str, Any] = dict(arrays)
        try:
            self.place.write(name, lambda file: np.savez(file, **entries))
        except OSError as error:
            raise OutputError(
                f"record {self.root}/{name} could not be written: {error.strerror or error}; "
                "mend that, and the same command goes on from here"
            ) from error

    def read(self, kind: str, index: int, *names: str) -> dict[str, AnyArray]:
        """Read a record, or only the arrays of these names.

        Raises
        ------
        OutputError
            If the record is missing or not as it was written.
        """
        name = self.name(kind, index)
        try:
            # opened here, since np.load leaves a file open that turns out to be no archive
            with self.place.open(name) as file, np.load(file, allow_pickle=False) as record:
                wanted = names or record.files
                _check_sizes(record.zip, wanted)
                return {array: record[array] for array in wanted}
        except FileNotFoundError as error:
            raise OutputError(f"record {self.root}/{name} is missing: run again from the start") from error
        except DAMAGE as error:
            raise OutputError(
                f"record {self.root}/{name} is damaged ({error}): delete {self.root} and run again"
            ) from error

    def whole(self, kind: str, index: int) -> bool:
        """Whether the record is there to its last byte; those in between are checked when it is read."""
        try:
            with self.place.open(self.name(kind, index)) as file:
                return zipfile.is_zipfile(file)
        except OSError:
            return False

    def count(self, kind: str) -> int:
        """Number of records of a kind."""
        return sum(name.startswith(f"{self.part}{kind}/") and name.endswith(".npz") for name in self.place.names())

    def owns(self, name: str) -> bool:
        """Whether a file in the folder is a record, or a part of one."""
        return name.count("/") == 1 and name.endswith((".npz", ".part"))

    def remove(self) -> None:
        """Delete every record, and the folders that are empty then; files that the store did not write stay."""
        for name in list(self.place.names()):
            if self.owns(name):
                self.place.remove(name)
        self.place.prune()


def _check_sizes(archive: zipfile.ZipFile, names: Iterable[str]) -> None:
    """Refuse arrays that claim more than the record holds, before memory is taken for them."""
    for entry in (archive.getinfo(f"{name}.npy") for name in names):
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0) or entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is not as NumPy writes it")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            claimed = file.tell() + math.prod(shape) * dtype.itemsize
            if not claimed == entry.file_size == entry.compress_size:
                raise ValueError(f"{entry.filename} claims {shape} x {dtype} in {entry.file_size} bytes")


@lru_cache(maxsize=32)
def _place(root: Path | str) -> Place:
    return place(root)
