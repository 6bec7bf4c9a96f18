"""SQLite files from untrusted sources, with a limit on the work of a query."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from geolabel.parsing import check_regular
from geolabel.urls import database_uri

MAX_STEPS, STEPS = 100_000_000, 1_000_000
"""Maximum SQLite instructions of all queries of a file, and the interval at which they are counted: a few seconds."""


@contextmanager
def reading_database(path: str | Path) -> Iterator[sqlite3.Connection]:
    """Open a database for reading, including the content of its write-ahead log.

    More than `MAX_STEPS` is an error: an apparent table may be a view that never ends.

    Raises
    ------
    sqlite3.Error
        If it cannot be opened, or a query takes too long.
    """
    try:
        check_regular(path)
    except OSError as error:
        raise sqlite3.OperationalError(error.strerror) from error
    with closing(sqlite3.connect(database_uri(Path(path).absolute(), "ro"), uri=True)) as connection:
        limit_steps(connection)
        yield connection


def limit_steps(connection: sqlite3.Connection) -> None:
    """Make a connection fail once it has executed more than `MAX_STEPS`."""
    connection.set_progress_handler(iter([0] * (MAX_STEPS // STEPS)).__next__, STEPS)


def quoted(name: str) -> str:
    """A name of a table or column, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'
