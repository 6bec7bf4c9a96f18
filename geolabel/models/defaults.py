"""What suits a network where it is not what the papers say: numbers by its name, or of its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from geolabel.masks import Filters, Selection

BUNDLED = "bundled"
"""Name of the networks that come with the package."""


@dataclass(frozen=True)
class LocalizerDefaults:
    """Numbers for maps of a localizer."""

    activation_floor: int = 0
    """Grey value 0..255 that every pixel of a landslide has to exceed; the published method has none."""


@dataclass(frozen=True)
class SegmenterDefaults:
    """Numbers for masks of a segmenter; the defaults are those of the papers."""

    confidence: float = 0.5
    """Minimum stability times mean activation of a mask that counts: the tau of S2C, eq. 11."""
    filters: Filters = field(default_factory=Filters)
    """What counts as an answer where a grid of points asks about everything."""
    max_share: float = 0.3
    """Largest share of an image, or of a tile, that an object covers: the gate of ALPS."""
    selection: Selection = "best_iou"
    """Which candidate answers where chips are labelled by APSAM, whose paper does not say."""
    agreed: bool = False
    """Whether pixels of such chips are ignored where mask and activation disagree."""


_LOCALIZERS = {
    # Objects begin where the activation exceeds 120, and reach as far as the segmenter says, but not onto ground that
    # the localizer takes for something else: edges come from the one network, what a thing is from the other.
    BUNDLED: LocalizerDefaults(activation_floor=100),
}

_SEGMENTERS = {
    BUNDLED: SegmenterDefaults(
        # Half of its masks on chips of landslides are less stable than 0.55: times a mean activation of 0.65, next to
        # none of them reaches one half. The released code of S2C has 0 too.
        confidence=0.0,
        # It learned to outline what a box asks for, not what is under a point, and says so.
        filters=Filters(predicted_iou=0.25, stability=0.15),
        # It sees 512 px at once, a third of the pixels of the paper's images: there 0.3 leaves out most of what is
        # landslide on orthophotos of 0.2 to 0.9 m.
        max_share=0.7,
        # Students gain by what they are not told about masks of a small network.
        selection="whole",
        agreed=True,
    ),
}


def localizer_defaults(name: str | Path | None) -> LocalizerDefaults:
    """What suits a localizer, by name or file; None is the bundled one.

    A file says its floor itself, see `geolabel.models.checkpoint.NetworkInfo`. A copy of the bundled one, which does
    not, has the floor of the bundled one.

    Raises
    ------
    WeightsError
        If a file is damaged.
    """
    known = _LOCALIZERS.get(str(name or BUNDLED))
    if known is not None:
        return known
    path = Path(str(name))
    if not path.is_file():  # the error comes where it is loaded, with the names that are known
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
    """What suits a segmenter, by name or file; None is the bundled one.

    What `geolabel.adapt` made of the bundled one, in one step or several, has what suits that.

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
