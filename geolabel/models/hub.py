"""Networks stored as folders, local or on the Hugging Face hub.

A folder is in the format of transformers and diffusers: JSON that describes the network, and weights as safetensors, so
nothing is unpickled. Models of the hub are kept in its shared cache (``HF_HOME``); ``GEOLABEL_OFFLINE`` forbids
downloads.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from geolabel.errors import Extra, WeightsError, require
from geolabel.io.downloads import offline, sha256
from geolabel.io.error_messages import in_words
from geolabel.parsing import read_json

log = logging.getLogger(__name__)

HUB_ID = re.compile(r"(?!\S*\.(bin|onnx|pth?|safetensors)$)(?P<model>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
"""``OWNER/NAME`` or ``OWNER/NAME@REVISION``; names with a suffix of weights files are paths."""

COMMIT = re.compile(r"[0-9a-f]{40}")

CONFIG = "config.json"

MAX_CONFIG_BYTES = 1 << 20
"""Maximum size of a JSON file of a folder; published ones have a few kilobytes."""

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
"""Names of the weights of a network: one file, or parts."""

PROCESSOR = ("preprocessor_config.json", "processor_config.json")
"""Files that may hold the normalisation of pixels."""

FILES = (CONFIG, *WEIGHTS, *PROCESSOR)
"""Files that are read from the folder of a network."""

VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt")
"""Files of the tokenizer of a network that reads words: the first alone, or the others."""


def parse_id(source: str | Path) -> tuple[str, str | None] | None:
    """``OWNER/NAME`` and revision of a model of the hub; None if the text is not such a name."""
    named = HUB_ID.fullmatch(str(source))
    return None if named is None else (named["model"], named["revision"])


def cache_of(model: str) -> Path:
    """Folder of a model in the hub's cache, existing or not."""
    if find_spec("huggingface_hub") is not None:
        from huggingface_hub.constants import HF_HUB_CACHE

        root = Path(HF_HUB_CACHE)
    else:
        root = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    return root / f"models--{model.replace('/', '--')}"


def cached(model: str, revision: str | None, files: Sequence[str], missing: Callable[[Path], Any]) -> Path | None:
    """The folder of a model, if it is complete in the hub's cache.

    Parameters
    ----------
    revision
        Branch, tag or commit; None for the branch ``main``.
    files
        Patterns of the required files.
    missing
        Lists what a folder lacks.
    """
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import snapshot_download

    try:
        here = Path(
            snapshot_download(repo_id=model, revision=revision, allow_patterns=list(files), local_files_only=True)
        )
    except (OSError, ValueError):  # ValueError: names that are invalid on the hub
        log.debug("%s is not in the hub's cache", model)
        return None
    return None if missing(here) else here


def snapshot(
    model: str,
    revision: str | None,
    files: Sequence[str],
    missing: Callable[[Path], Any],
    *,
    size: int,
    extra: Extra,
    option: str,
) -> Path:
    """The folder of a model of the hub, downloaded if necessary.

    Parameters
    ----------
    model, revision, files, missing
        See `cached`.
    size
        Approximate size in bytes; 0 if unknown.
    extra
        Extra of geolabel that the model needs.
    option
        Option that accepts the folder of a downloaded model, for the message.

    Raises
    ------
    GeolabelError
        If the hub's library is not installed.
    WeightsError
        If the model cannot be downloaded, or access must be requested.
    """
    here = cached(model, revision, files, missing)
    if here is not None:
        return here
    named = model if revision is None else f"{model} --revision {revision}"
    by_hand = (
        f"run hf download {named} on a machine with internet access and copy its cache here (HF_HOME names the "
        f"folder), or give the folder of a downloaded model with {option} FOLDER"
    )
    if offline():
        raise WeightsError(f"{model} is not in the hub's cache, and GEOLABEL_OFFLINE forbids downloads: {by_hand}")
    require(extra, "huggingface_hub", purpose=model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    try:
        log.warning("downloading %s from the hub%s", model, f", about {size / 1e6:.0f} MB" if size else "")
        folder = Path(snapshot_download(repo_id=model, revision=revision, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise WeightsError(
            f"{model} is gated: request access at https://huggingface.co/{model}, run hf auth login, and try again"
        ) from error
    except (OSError, ValueError) as error:  # errors of the hub and of its connection are OSErrors
        raise WeightsError(f"{model} cannot be downloaded from the hub ({in_words(error)}): {by_hand}") from error
    lacking = missing(folder)
    if lacking:
        raise WeightsError(f"{model} lacks {', '.join(lacking)} on the hub: name another model or revision")
    return folder


def fingerprint(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 over the names and the SHA-256 of files of a folder; missing ones are skipped."""
    total = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            total.update(f"{name} {sha256(folder / name)}\n".encode())
    return total.hexdigest()


@contextmanager
def without_bars(*libraries: str) -> Iterator[None]:
    """Keep libraries from writing progress bars to stderr, which the command line uses.

    Parameters
    ----------
    libraries
        ``transformers`` or ``diffusers``.
    """
    known = [import_module(f"{name}.utils.logging") for name in libraries]
    shown = [kind for kind in known if kind.is_progress_bar_enabled()]
    for kind in shown:
        kind.disable_progress_bar()
    try:
        yield
    finally:
        for kind in shown:
            kind.enable_progress_bar()


# --- folders of networks ---------------------------------------------------------------------------------------------


def weights_of(folder: Path) -> list[Path]:
    """Weights files of a folder by name; empty if there are none."""
    held = ([file for file in sorted(folder.glob(pattern)) if file.is_file()] for pattern in WEIGHTS)
    return next(filter(None, held), [])


def missing(folder: Path, *, words: bool = False) -> list[str]:
    """Files that a folder lacks to be a network.

    Parameters
    ----------
    words
        Whether the network must read words.
    """
    lacking = [] if (folder / CONFIG).is_file() else [CONFIG]
    parts = weights_of(folder)
    count = re.fullmatch(r"model-\d+-of-0*(\d+)\.safetensors", parts[0].name) if parts else None
    if not parts or (count and int(count[1]) != len(parts)):
        lacking.append(WEIGHTS[0])
    whole, *parts_of_it = ((folder / name).is_file() for name in VOCABULARY)
    if words and not (whole or all(parts_of_it)):
        lacking.append(VOCABULARY[0])
    return lacking


def find(source: str, *, words: bool = False) -> Path | None:
    """The folder of ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` if it is in the hub's cache."""
    model, revision = parse_id(source) or (source, None)
    return cached(model, revision, _files(words), partial(missing, words=words))


def fetch(source: str, *, words: bool = False, size: int = 0) -> Path:
    """The folder of ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, downloaded if necessary; raises like `snapshot`."""
    model, revision = parse_id(source) or (source, None)
    lacking, option = partial(missing, words=words), "--localizer" if words else "--sam"
    return snapshot(model, revision, _files(words), lacking, size=size, extra="sam", option=option)


def _files(words: bool) -> tuple[str, ...]:
    return (*FILES, *VOCABULARY) if words else FILES


def named(source: str, folder: Path) -> str:
    """The name of a model of the hub, with the commit of its folder if the cache records it."""
    model, _ = parse_id(source) or (source, None)
    return f"{model}@{folder.name}" if COMMIT.fullmatch(folder.name) else source


def digest(path: Path, *, words: bool = False) -> str:
    """SHA-256 of a weights file, or over the files of the folder of a network.

    Raises
    ------
    WeightsError
        If it cannot be read, or the folder is not a network.
    """
    if not path.is_dir():
        return sha256(path)
    lacking = missing(path, words=words)
    if lacking:
        raise WeightsError(
            f"{path} is not a network in the format of transformers: {', '.join(lacking)} missing; give such a folder, "
            "with weights as safetensors"
        )
    names = [CONFIG, *PROCESSOR, *(file.name for file in weights_of(path)), *(VOCABULARY if words else ())]
    return fingerprint(path, names)


def verify(folder: Path, *, words: bool = False) -> str:
    """Check a folder of the hub's cache and return its `digest`.

    The cache names weights files by the SHA-256 that the hub sent with them, which is checked. A cache without links,
    as on some Windows systems, does not; then only headers are checked.

    Raises
    ------
    WeightsError
        If a file is damaged.
    """
    total = digest(folder, words=words)
    for file in weights_of(folder):
        stated = file.resolve().name
        if re.fullmatch(r"[0-9a-f]{64}", stated) and sha256(file) != stated:
            raise WeightsError(
                f"{file} has SHA-256 {sha256(file)}, the hub sent {stated}: delete it and fetch it again"
            )
    count_parameters(folder)
    return total


def read_config(folder: Path) -> dict[str, Any]:
    """Content of the ``config.json`` of a folder, which must have a ``model_type``.

    Raises
    ------
    WeightsError
        If it is missing, damaged or larger than `MAX_CONFIG_BYTES`.
    """
    try:
        given = read_json(folder / CONFIG, limit=MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG} does not describe a network ({error}): give another folder") from error
    if not isinstance(given, dict) or not isinstance(given.get("model_type"), str):
        raise WeightsError(f"{folder / CONFIG} does not describe a network (it has no model_type): give another folder")
    return given


def count_parameters(folder: Path) -> int:
    """Number of weights in the files of a folder, from their headers.

    Raises
    ------
    WeightsError
        If one is damaged.
    """
    from safetensors import SafetensorError, safe_open

    held = 0
    for file in weights_of(folder):
        try:
            with safe_open(file, framework="np") as tensors:
                held += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} is not a complete safetensors file ({error}): fetch it again") from error
    return held


def describe(folder: Path, *, words: bool = False) -> dict[str, Any]:
    """Summary of the network in a folder: SHA-256, bytes, number of parameters, type; raises like `digest`."""
    return {
        "file": str(folder),
        "sha256": digest(folder, words=words),
        "bytes": sum(file.stat().st_size for file in weights_of(folder)),
        "parameters": count_parameters(folder),
        "kind": "localizer" if words else "segmenter",
        "architecture": read_config(folder)["model_type"],
    }
