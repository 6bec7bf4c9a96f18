"""Run the command line of geolabel as a subprocess: version, progress, result and cancellation.

Needs only the standard library. With ``GEOLABEL_PROGRESS=json`` geolabel writes its progress to stderr as JSON
objects, one a line; other lines are for people. With ``--json`` it writes its result to stdout.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

GAPS, NOTHING, INTERRUPTED = 3, 4, 130
"""Exit codes: finished without a part of the scene; nothing to write or a difference; interrupted."""

FOREIGN = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_DATA", "PROJ_LIB")
"""Variables that QGIS sets for its own Python and libraries, and that would mislead those of another environment."""

PASSES = {
    "extract": ("localize", "prompt", "segment", "merge"),
    "segment": ("segment", "look", "match", "outline"),
}
"""Names of the passes of commands that have several, in order."""

POLL_S = 0.2
"""Seconds between checks for cancellation."""

GRACE_S = 20.0
"""Seconds for geolabel to end by itself and save what the same command resumes from."""

ASKING_S = 120.0
"""Seconds for an answer to ``--version``: the first one may load much from disk."""


class ProgramError(Exception):
    """The command cannot be run, or failed; the message says what to do."""


class Canceled(Exception):  # noqa: N818 - not an error
    """The user has stopped the command."""


class Done(NamedTuple):
    """The result of a finished command."""

    code: int
    result: Any
    """Its JSON output; None if there is none."""


def share_done(command: str, name: str, done: int, total: int | None) -> float | None:
    """Share of a command that is done, 0 to 1: all passes have the same weight, and a command without `PASSES` has one.

    Parameters
    ----------
    command
        Such as ``extract``.
    name, done, total
        A record of progress. The name is that of a pass, with ``2/3`` after it for the second of three grids.

    Returns
    -------
    None if the name is none of the passes, or the total is not known.
    """
    step, _, grid = name.partition(" ")
    passes = PASSES.get(command, (step,))
    if step not in passes or total is None:
        return None
    inside = (passes.index(step) + (done / total if total else 1)) / len(passes)
    number, _, count = grid.partition("/")
    if number.isdecimal() and count.isdecimal():
        return (int(number) - 1 + inside) / int(count)
    return inside


def version_of(command: str) -> str:
    """Ask a command for its version.

    Raises
    ------
    ProgramError
        If it is not geolabel's.
    """
    path = Path(command) if command else None
    if path is None or not path.is_absolute() or not path.is_file():
        raise ProgramError(
            f"{command or 'no command'}: give the whole path of the command geolabel of the environment where it is "
            "installed, such as /home/me/geolabel/.venv/bin/geolabel, in Settings > Options > Processing > Providers > "
            "geolabel"
        )
    try:
        done = subprocess.run(  # noqa: S603 - a program that the user names, without a shell
            [command, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(command),
            timeout=ASKING_S,
            check=False,
            **_flags(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProgramError(f"{command} cannot be run: {error}") from error
    words: list[str] = done.stdout.decode("utf-8", "replace").split()
    if done.returncode or words[:2] != ["geolabel,", "version"] or len(words) != 3:
        raise ProgramError(f"{command} is not the command geolabel: it answers --version with {' '.join(words[:9])!r}")
    return words[2]


def environment(command: str) -> dict[str, str]:
    """Variables for a command: those of this process without those meant for QGIS."""
    known = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    known["PATH"] = os.pathsep.join([str(Path(command).parent), known.get("PATH", "")])
    known["PYTHONIOENCODING"] = "utf-8"
    known["GEOLABEL_PROGRESS"] = "json"
    return known


def run(
    command: str,
    arguments: list[str],
    *,
    is_canceled: Callable[[], bool],
    on_progress: Callable[[str, int, int | None], None],
    on_message: Callable[[str], None],
) -> Done:
    """Run a command until it ends.

    Parameters
    ----------
    is_canceled
        Called a few times a second; if it returns True, the command and all processes that it started are ended.
    on_progress
        Called with the name of the step, the number of steps done, and their total.
    on_message
        Called with each other line of stderr.

    Raises
    ------
    Canceled
        If it was stopped.
    ProgramError
        If it cannot be started, or fails; with its own message.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - as above
            [command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(command),
            **_flags(),
        )
    except OSError as error:
        raise ProgramError(f"{command} cannot be run: {error}") from error
    lines: queue.Queue[str] = queue.Queue()
    written: list[bytes] = []
    readers = [
        threading.Thread(target=_read_lines, args=(process.stderr, lines), daemon=True),
        threading.Thread(target=_read_all, args=(process.stdout, written), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        failure = _follow(process, lines, readers, is_canceled, on_progress, on_message)
    except BaseException:
        end(process)
        raise
    code = process.wait()
    if code == INTERRUPTED:
        raise Canceled
    if code not in (0, GAPS, NOTHING):
        raise ProgramError(failure or f"{command} ended with the code {code} and said nothing")
    return Done(code, _parsed(b"".join(written)))


def _follow(
    process: subprocess.Popen[bytes],
    lines: queue.Queue[str],
    readers: list[threading.Thread],
    is_canceled: Callable[[], bool],
    on_progress: Callable[[str, int, int | None], None],
    on_message: Callable[[str], None],
) -> str:
    """Pass on the output of a command until it ends; returns its last error message."""
    failure, ended = "", False
    while not ended:
        if is_canceled():
            raise Canceled
        # its child processes may keep its streams open: a last read is enough
        ended = process.poll() is not None
        if ended:
            for reader in readers:
                reader.join(POLL_S * 10)
        try:
            while True:
                line = lines.get(timeout=0 if ended else POLL_S)
                record = _progress(line)
                if record is not None:
                    on_progress(*record)
                elif line.startswith("geolabel: "):
                    failure = line[len("geolabel: ") :]
                elif line:
                    on_message(line)
                if is_canceled():
                    raise Canceled
        except queue.Empty:
            pass
    return failure


def end(process: subprocess.Popen[bytes]) -> None:
    """End a command and its child processes: first with a signal that lets it clean up, if the system has one."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        # CREATE_NEW_PROCESS_GROUP blocks Ctrl-C, and a run that is killed can be resumed too
        words = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(words, capture_output=True, check=False, **_flags())  # noqa: S603 - of Windows
    else:
        _signal(process, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and its children: its group has its number, and exists as long as one of them."""
    if sys.platform != "win32":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def _flags() -> dict[str, Any]:
    """Flags to start a process in a new group, without a window."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    else:  # noqa: RET505 - type checkers know the branch of each system
        return {"start_new_session": True}


def _read_lines(stream: Any, lines: queue.Queue[str]) -> None:
    with stream:
        for line in stream:
            lines.put(line.decode("utf-8", "replace").rstrip())


def _read_all(stream: Any, written: list[bytes]) -> None:
    with stream:
        written.extend(iter(lambda: stream.read(1 << 16), b""))


def _progress(line: str) -> tuple[str, int, int | None] | None:
    """A record of progress; None for another line."""
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
        name, done, total = record["progress"], record["done"], record["total"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(name), int(done), None if total is None else int(total)


def _parsed(written: bytes) -> Any:
    text = written.decode("utf-8", "replace").strip()
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise ProgramError(f"geolabel answered with no JSON: {text[:200]}") from error
