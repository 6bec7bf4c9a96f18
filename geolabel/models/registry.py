"""The registry of networks known by name: roles, files, hashes, and their location.

Downloaded files are kept in a cache folder (`cache_folder`), folders in the hub's (`geolabel.models.hub`), and
``GEOLABEL_OFFLINE`` forbids downloads. The command line imports this module for its help, so its imports are light.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from geolabel.errors import WeightsError
from geolabel.io.downloads import cache_folder
from geolabel.models import hub

Role = Literal["localizer", "segmenter"]

SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True)
class Published:
    """A network known by name."""

    name: str
    role: Role
    filename: str
    summary: str
    licence: str
    url: str | None = None
    """URL of a file; None for networks that ship with geolabel, and for models of the hub."""
    size: int | None = None
    """Bytes of the published file; approximate for a model of the hub, four for each parameter."""
    sha256: str | None = None
    """SHA-256 of the published file."""
    hub: str | None = None
    """``OWNER/NAME`` of a model of the hub, which is stored as a folder."""
    window: int | None = None
    """Side in pixels of a segmenter's images."""

    @property
    def bundled(self) -> bool:
        """Whether the network ships with geolabel."""
        return self.url is None and self.hub is None

    @property
    def words(self) -> bool:
        """Whether the network takes classes in words, as all localizers of the hub do."""
        return self.hub is not None and self.role == "localizer"

    @property
    def path(self) -> Path:
        """Path of the file or folder, existing or not."""
        if self.hub is not None:
            return hub.find(self.hub, words=self.words) or hub.cache_of(self.hub)
        if self.bundled:
            return Path(str(resources.files("geolabel.weights") / self.filename))
        return cache_folder() / self.filename


def _official(name: str, filename: str, size: int, digest: str) -> Published:
    summary = f"Segment Anything, ViT-{name[-1].upper()} encoder"
    return Published(name, "segmenter", filename, summary, "Apache-2.0", SAM_URL + filename, size, digest, window=1024)


def _hub(name: str, model: str, parameters: int, summary: str) -> Published:
    return Published(name, "segmenter", "", summary, "Apache-2.0", size=4 * parameters, hub=model, window=1024)


def _sam3(role: Role, summary: str) -> Published:
    model, licence = "facebook/sam3", "SAM License, on request"
    return Published("sam3", role, "", summary, licence, size=4 * 859_921_848, hub=model, window=1008)


def _sam2(size: str, parameters: int) -> Published:
    return _hub(f"sam2.1-{size}", f"facebook/sam2.1-hiera-{size}", parameters, f"Segment Anything 2.1, Hiera {size}")


def _sam_hq(size: str, parameters: int) -> Published:
    summary = f"Segment Anything in High Quality, ViT {size}"
    return _hub(f"sam-hq-{size}", f"syscv-community/sam-hq-vit-{size}", parameters, summary)


PUBLISHED = (
    Published(
        "bundled",
        "localizer",
        "localizer.safetensors",
        "class activation, learned from masks and land cover",
        "Apache-2.0",
    ),
    Published(
        "bundled-weak",
        "localizer",
        "localizer-weak.safetensors",
        "class activation, learned from labels of whole images",
        "Apache-2.0",
    ),
    Published(
        "bundled",
        "segmenter",
        "segmenter.safetensors",
        "a small Segment Anything, learned from masks",
        "Apache-2.0",
        window=512,
    ),
    _official(
        "vit_b", "sam_vit_b_01ec64.pth", 375042383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    _official(
        "vit_l", "sam_vit_l_0b3195.pth", 1249524607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    _official(
        "vit_h", "sam_vit_h_4b8939.pth", 2564550879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
    Published(
        "mobile-sam",
        "segmenter",
        "mobile_sam.pt",
        "MobileSAM, TinyViT encoder",
        "Apache-2.0",
        "https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
        40_728_226,
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        window=1024,
    ),
    _sam2("tiny", 38_962_498),
    _sam2("small", 46_060_354),
    _sam2("base-plus", 80_850_178),
    _sam2("large", 224_446_642),
    _sam_hq("base", 94_806_832),
    _sam_hq("large", 313_676_336),
    _sam_hq("huge", 642_686_256),
    _hub("edgetam", "yonigozlan/EdgeTAM-hf", 13_912_306, "EdgeTAM, RepViT encoder"),
    _sam3("localizer", "Segment Anything 3, the detector: what words say"),
    _sam3("segmenter", "Segment Anything 3, the tracker"),
)


def names(role: Role) -> tuple[str, ...]:
    """Names of the published networks of a role."""
    return tuple(p.name for p in PUBLISHED if p.role == role)


def lookup(name: str, role: str | None = None) -> tuple[Published, ...]:
    """Published networks with a name, and a role if given.

    Raises
    ------
    WeightsError
        If there is none.
    """
    found = tuple(p for p in PUBLISHED if p.name == name and role in (None, p.role))
    if not found:
        known = dict.fromkeys(p.name for p in PUBLISHED if role in (None, p.role))
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? Known" if close else "known"
        raise WeightsError(
            f"no {role or 'network'} is called {name!r}: {hint} are {', '.join(known)}; or give a file or a folder"
        )
    return found


def find(network: Published) -> Path | None:
    """Return the path of a published network if its file exists with the right size, or its folder is complete."""
    if network.hub is not None:
        return hub.find(network.hub, words=network.words)
    path = network.path
    if not path.is_file() or (network.size is not None and path.stat().st_size != network.size):
        return None
    return path


def fetch(network: Published, *, progress: Any = None) -> Path:
    """Return the path of a published network, downloaded if necessary.

    Parameters
    ----------
    progress
        See `geolabel.io.downloads.download`.

    Raises
    ------
    WeightsError
        If it cannot be downloaded.
    """
    from geolabel.io.downloads import download, offline

    path = find(network)
    if path is not None:
        return path
    if network.hub is not None:
        return hub.fetch(network.hub, words=network.words, size=network.size or 0)
    if network.url is None or network.size is None or network.sha256 is None:
        raise WeightsError(f"{network.path} is missing: install geolabel again, or run geolabel train bundled")
    by_hand = f"give the file with --sam {network.name} --sam-checkpoint FILE"
    if offline():
        raise WeightsError(
            f"{network.name} is not in {cache_folder()}, and GEOLABEL_OFFLINE forbids downloads: unset it, or get "
            f"{network.url} on a machine with internet access, and {by_hand}"
        )
    download(
        network.url,
        network.path,
        size=network.size,
        sha256_expected=network.sha256,
        progress=progress,
        otherwise=f"try again later, or get it on a machine with internet access, and {by_hand}",
    )
    return network.path


def verify(network: Published) -> str:
    """Check the file of a published network and return its SHA-256.

    Networks that ship with geolabel have no published hash (the package manager has it); they are loaded with each
    engine instead. For models of the hub see `hub.verify`.

    Raises
    ------
    WeightsError
        If the file, or a graph beside it, is missing or wrong.
    """
    from geolabel.io.downloads import sha256

    path = network.path
    if network.hub is not None and find(network):
        return hub.verify(path, words=network.words)
    if not path.is_file():
        raise WeightsError(f"{network.name} is not in {path.parent}: run geolabel models fetch {network.name}")
    digest = sha256(path)
    if network.sha256 is None:
        from geolabel.models.checkpoint import load_own
        from geolabel.models.on_onnx import OnnxEverything, OnnxMaps, OnnxSam

        load_own(path, network.role)
        for kind in (OnnxMaps,) if network.role == "localizer" else (OnnxSam, OnnxEverything):
            kind(path)
    elif digest != network.sha256:
        raise WeightsError(
            f"{path} has SHA-256 {digest}, the published {network.name} has {network.sha256}: "
            f"delete the file and run geolabel models fetch {network.name}"
        )
    return digest
