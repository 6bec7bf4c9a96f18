"""SQLite files of others, opened to be read: nothing in them takes longer than it may."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from geolabel.parsing import check_regular

MAX_STEPS, STEPS = 100_000_000, 1_000_000
"""Instructions of SQLite that all queries of a file may take, and those after which they are counted: some seconds."""


@contextmanager
def reading_database(path: str | Path) -> Iterator[sqlite3.Connection]:
    """Open a database to read it, with what a write-ahead log beside it holds.

    What takes more than `MAX_STEPS` ends in an error: what calls itself a table may be a view that never ends.

    Raises
    ------
    sqlite3.Error
        If it cannot be opened, or a query takes too long.
    """
    try:
        check_regular(path)
    except OSError as error:
        raise sqlite3.OperationalError(error.strerror) from error
    with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.set_progress_handler(iter([0] * (MAX_STEPS // STEPS)).__next__, STEPS)
        yield connection
