"""Keep a run alive if standard streams are closed, full, or without a reader."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


class _Forgiving(io.FileIO):
    """A file descriptor whose write errors are dropped, so that work in progress is finished."""

    failure: OSError | None = None
    """The error, unless the reader has closed the pipe, as ``| head -1`` does."""

    def write(self, data: Any, /) -> int:
        """Write, or drop the data."""
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return memoryview(data).nbytes
        except OSError as error:
            self.failure = error
            return memoryview(data).nbytes


def open_streams() -> _Forgiving | None:
    """Make the standard streams of this process usable, however it was started.

    A closed stream is redirected to nowhere: otherwise the first file opened would take its number, and receive what
    libraries print.

    Returns
    -------
    The writer behind stdout; None if it cannot fail.
    """
    stdout = None
    for number in range(3):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif number and not stream.isatty():
            stream.flush()
            raw = _Forgiving(number, "w", closefd=False)
            # a character missing in the encoding, such as on a pipe in Windows, must not end the run
            errors = "backslashreplace" if stream.errors == "strict" else stream.errors
            text = io.TextIOWrapper(
                io.BufferedWriter(raw), encoding=stream.encoding, errors=errors, line_buffering=name == "stderr"
            )
            setattr(sys, name, text)
            stdout = raw if name == "stdout" else stdout
    return stdout


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
