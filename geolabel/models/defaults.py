"""Settings of a network that differ from those in the papers, by its name or file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from geolabel.masks import Filters, Selection

BUNDLED = "bundled"
"""Name of the networks that come with the package."""


@dataclass(frozen=True)
class LocalizerDefaults:
    """Settings for maps of a localizer."""

    activation_floor: int = 0
    """Grey value 0..255 that all pixels of a landslide must exceed; not part of the published method."""


@dataclass(frozen=True)
class SegmenterDefaults:
    """Settings for masks of a segmenter; the defaults are those of the papers."""

    confidence: float = 0.5
    """Minimum stability times mean activation of an accepted mask: the tau of S2C, eq. 11."""
    filters: Filters = field(default_factory=Filters)
    """Accepted candidates of a grid of points in everything mode."""
    max_share: float = 0.3
    """Maximum share of an image or tile that an object covers: the gate of ALPS."""
    selection: Selection = "best_iou"
    """Candidate used when APSAM labels chips, which its paper leaves open."""
    agreed: bool = False
    """Whether pixels of such chips are ignored where mask and activation disagree."""


_LOCALIZERS = {
    # Objects start where the activation exceeds 120, and extend as far as the segmenter says, but not onto ground that
    # the localizer excludes: outlines come from one network, classes from the other.
    BUNDLED: LocalizerDefaults(activation_floor=100),
}

_SEGMENTERS = {
    BUNDLED: SegmenterDefaults(
        # Half of its masks on chips of landslides have a stability below 0.55: times a mean activation of 0.65, almost
        # none of them reach one half. The released code of S2C uses 0 too.
        confidence=0.0,
        # It was trained on boxes, not on single points, and its predicted IoU says so.
        filters=Filters(predicted_iou=0.25, stability=0.15),
        # Its window is 512 px, a third of the pixels of the paper's images: there, 0.3 would exclude most landslides on
        # orthophotos of 0.2 to 0.9 m.
        max_share=0.7,
        # Students improve if uncertain pixels of a small network's masks are ignored.
        selection="whole",
        agreed=True,
    ),
}


def localizer_defaults(name: str | Path | None) -> LocalizerDefaults:
    """Settings of a localizer, by name or file; None is the bundled one.

    A file states its own floor, see `geolabel.models.checkpoint.NetworkInfo`. A copy of the bundled file, which does
    not, has the floor of the bundled network.

    Raises
    ------
    WeightsError
        If a file is damaged.
    """
    known = _LOCALIZERS.get(str(name or BUNDLED))
    if known is not None:
        return known
    path = Path(str(name))
    if not path.is_file():  # the error is raised on loading, with the known names
        return LocalizerDefaults()
    from geolabel.models.checkpoint import read_info

    floor = read_info(path).floor
    if floor is None:
        return _LOCALIZERS[BUNDLED] if _is_bundled(path) else LocalizerDefaults()
    return LocalizerDefaults(activation_floor=floor)


def _is_bundled(path: Path) -> bool:
    """Whether a file is a copy of the bundled localizer."""
    from geolabel.io.downloads import sha256
    from geolabel.models import registry

    bundled = registry.lookup(BUNDLED, "localizer")[0].path
    same_size = bundled.is_file() and bundled.stat().st_size == path.stat().st_size
    return same_size and sha256(bundled) == sha256(path)


def segmenter_defaults(name: str | Path | None) -> SegmenterDefaults:
    """Settings of a segmenter, by name or file; None is the bundled one.

    Networks that `geolabel.adapt` derived from the bundled one, in one or more steps, have its settings.

    Raises
    ------
    WeightsError
        If a file is damaged.
    """
    known = _SEGMENTERS.get(str(name or BUNDLED))
    if known is not None:
        return known
    path = Path(str(name))
    if path.suffix != ".safetensors" or not path.is_file():
        return SegmenterDefaults()
    from geolabel.models.checkpoint import read_info
    from geolabel.models.loading import ADAPTED

    adapted = read_info(path).trained.get(ADAPTED)
    of_bundled = isinstance(adapted, dict) and adapted.get("of_bundled") is True
    return _SEGMENTERS[BUNDLED] if of_bundled else SegmenterDefaults()
