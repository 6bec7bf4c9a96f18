"""What the trainings on chips share: what they know of pixel sizes, and what stops them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geolabel.errors import OutputError, WeightsError

ANY_GSD = (0.01, 1000.0)
"""What a network of images of unknown gsd is taken to know."""

WRITERS = ("PytorchStreamWriter", "inline_container")
"""Where torch's errors come from when a state does not fit on the disk: by the first or the last of its parts."""


@contextmanager
def saving_to(folder: Path) -> Iterator[None]:
    """Say in words what a training that saves its states to a folder stumbles over.

    Raises
    ------
    OutputError
        If the disk is full, or cannot be written to.
    WeightsError
        If the folder holds the state of another network.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} could not be written to ({error}): is the disk full?") from error
    except RuntimeError as error:  # torch says so when a state does not fit on the disk, or to the network
        if any(writer in str(error) for writer in WRITERS):
            raise OutputError(f"{folder} could not be written to ({error}): is the disk full?") from error
        if "state_dict" in str(error):
            raise WeightsError(f"{folder} holds the state of another training: give another folder, or its own options "
                               "to resume") from error  # fmt: skip
        raise
