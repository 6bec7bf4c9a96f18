"""Records of a run: named arrays, each record written once, completely or not at all.

A record is a safetensors file: a JSON header, and the arrays as in memory. The format has no checksums, so its metadata
holds one per array. NumPy's own format is not used: its header is a Python literal, whose parser sometimes fails with
several threads (CPython 3.11, gh-106905).
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

import numpy as np

from geolabel.errors import OutputError
from geolabel.io.storage import FolderStorage, Storage, storage_at
from geolabel.parsing import parse_json
from geolabel.types import AnyArray

SUFFIX = ".safetensors"

KINDS = {
    "BOOL": "|b1",
    "U8": "|u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "I8": "|i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
"""Names of dtypes in the format and in NumPy."""

NAMES = {kind: name for name, kind in KINDS.items()}

CHECKSUMS = "crc32"
"""Metadata key for the checksum of each array, in JSON."""

OWN_NAME = re.compile(r"[^/]+/\d{8}\.safetensors")
"""Name of a record, relative to the root."""

OWN_PART = re.compile(r"[^/]+/[0-9a-f]{32}\.part")
"""Name of a record that is being written, relative to the root."""

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""Errors when reading a damaged record."""


@dataclass(frozen=True)
class Store:
    """A folder of records, each identified by kind and number.

    The store keeps no file open, so it can be pickled to any worker that sees its folder, which may be a URL supported
    by fsspec. Records are not compressed, so that writing is as fast as the disk.
    """

    root: Path | str
    """Created with the first record."""
    part: str = ""
    """Prefix of the kinds of records, if a run has several parts in one folder."""

    @property
    def storage(self) -> Storage:
        """The folder."""
        return _storage(self.root)

    def name(self, kind: str, index: int) -> str:
        """Path of a record, relative to the root."""
        return f"{self.part}{kind}/{index:08d}{SUFFIX}"

    def has(self, kind: str, index: int) -> bool:
        """Whether the record has been written."""
        return self.storage.exists(self.name(kind, index))

    def write(self, kind: str, index: int, arrays: Mapping[str, AnyArray]) -> None:
        """Write a record under a temporary name and move it into place.

        Raises
        ------
        OutputError
            If the folder cannot be written to.
        """
        name = self.name(kind, index)
        try:
            plain = {key: _plain(array) for key, array in arrays.items()}
            self.storage.write(name, lambda file: _write(file, plain))
        except OSError as error:
            raise OutputError(
                f"record {self.root}/{name} could not be written: {error.strerror or error}; "
                "mend that, and the same command resumes from here"
            ) from error

    def read(self, kind: str, index: int, *names: str) -> dict[str, AnyArray]:
        """Read a record, or only the named arrays.

        Raises
        ------
        OutputError
            If the record is missing or damaged.
        """
        name = self.name(kind, index)
        try:
            with self.storage.open(name) as file:
                entries = _entries(file)
                return {array: entries[array].read(file) for array in names or entries}
        except FileNotFoundError as error:
            raise OutputError(f"record {self.root}/{name} is missing: run again from the start") from error
        except DAMAGE as error:
            raise OutputError(
                f"record {self.root}/{name} is damaged ({error}): delete {self.root} and run again"
            ) from error

    def whole(self, kind: str, index: int) -> bool:
        """Whether the record has its full size; its content is checked when it is read."""
        try:
            with self.storage.open(self.name(kind, index)) as file:
                return bool(_entries(file))
        except DAMAGE:
            return False

    def count(self, kind: str) -> int:
        """Number of records of a kind."""
        return sum(name.startswith(f"{self.part}{kind}/") and name.endswith(SUFFIX) for name in self.storage.names())

    def owns(self, name: str) -> bool:
        """Whether a file in the folder is a record, or an unfinished one.

        The name is not enough, since a person's networks may have a similar one. In a local folder the content is
        checked; in other stores, where the file would have to be fetched, the name decides.
        """
        if OWN_PART.fullmatch(name):
            return True
        if not OWN_NAME.fullmatch(name):
            return False
        if not isinstance(self.storage, FolderStorage):
            return True
        try:
            with self.storage.open(name) as file:
                _entries(file)
        except DAMAGE:
            return False
        return True

    def remove(self) -> None:
        """Delete every record, and then empty folders; other files are kept."""
        for name in list(self.storage.names()):
            if self.owns(name):
                self.storage.remove(name)
        self.storage.prune()


def _write(file: IO[bytes], arrays: Mapping[str, AnyArray]) -> None:
    """Write a record; the arrays are written from memory without a copy."""
    header: dict[str, Any] = {"__metadata__": {CHECKSUMS: json.dumps({k: _checksum(v) for k, v in arrays.items()})}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype.str], "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the first array to 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        file.write(_bytes(array))


def _plain(array: AnyArray) -> AnyArray:
    """The array as stored: contiguous, little-endian."""
    array = np.asarray(array)
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)


def _checksum(array: AnyArray) -> int:
    """Checksum of the bytes of a contiguous array, its dtype and its shape."""
    described = zlib.crc32(f"{array.dtype.str} {array.shape}".encode())
    return zlib.crc32(_bytes(array), described)


def _bytes(array: AnyArray) -> memoryview:
    """The bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


@dataclass(frozen=True)
class _Entry:
    """Position of an array in a record."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int
    checksum: int

    def read(self, file: BufferedIOBase) -> AnyArray:
        data = np.empty(self.stop - self.start, np.uint8)
        file.seek(self.start)
        if file.readinto(data.data) != data.size:
            raise ValueError(f"it ends inside {self.name}")
        array = data.view(self.dtype).reshape(self.shape)
        if _checksum(array) != self.checksum:
            raise ValueError(f"{self.name} does not have its checksum")
        return array


def _entries(file: BufferedIOBase) -> dict[str, _Entry]:
    """Positions of the arrays in a record; refuses a file that they do not fill exactly, before memory is allocated."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    begin = 8 + int.from_bytes(file.read(8), "little")
    if not 8 < begin <= size:
        raise ValueError("it has no header")
    header = parse_json(file.read(begin - 8))
    sums = parse_json(header.pop("__metadata__")[CHECKSUMS])
    entries = {}
    end = begin
    for name, said in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = np.dtype(KINDS[said["dtype"]]), tuple(said["shape"])
        start, stop = (begin + offset for offset in said["data_offsets"])
        numbers = all(isinstance(n, int) and n >= 0 for n in shape)
        if not (numbers and start == end and stop - start == math.prod(shape) * dtype.itemsize and stop <= size):
            raise ValueError(f"{name} claims {shape} x {dtype} in {stop - start} of {size - begin} bytes")
        entries[name] = _Entry(name, dtype, shape, start, stop, sums[name])
        end = stop
    if end != size:
        raise ValueError(f"it has {size} bytes, and {end} are accounted for")
    return entries


@lru_cache(maxsize=32)
def _storage(root: Path | str) -> Storage:
    return storage_at(root)
