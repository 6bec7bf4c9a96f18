"""Columns of the layers that geolabel writes, one row each, with all their properties.

A new attribute of landslides is a row of `LANDSLIDES`, and the function that measures it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from geolabel.masks import FULL

Kind = Literal["int", "real", "text", "date", "datetime", "bool", "binary"]
"""Type of the values of a column."""

Page = Literal["Review", "Size", "Quality", "Evidence", "Origin"]
"""Pages of the form in QGIS."""

Merged = Literal["largest", "measured", "mean", "maximum", "sum", "numbers", "scenes", "shared"]
"""How a value is computed when polygons of several scenes are merged into one.

``largest``: that of the largest polygon; ``measured``: measured again on the new outline; ``mean``: weighted by area;
``maximum``; ``sum``; ``numbers``: all numbers of their lists, ascending; ``scenes``: all names of their lists;
``shared``: the value if all share it, else null.
"""


Statistic = Literal["mean", "maximum"]
"""Statistics of the pixels of a polygon."""


@dataclass(frozen=True)
class Of:
    """A statistic of a layer of integers, over the pixels of a polygon."""

    layer: str
    """``score``, or one of `geolabel.mosaic.Layers.attributes`."""
    statistic: Statistic
    unit: int
    """Value of the layer that is 1 in the column."""


@dataclass(frozen=True)
class Column:
    """One column of a layer."""

    name: str
    kind: Kind
    alias: str
    """Name in QGIS, with the unit."""
    meaning: str
    decimals: int | None = None
    """Decimal places; None for values without any."""
    page: Page = "Origin"
    merged: Merged = "largest"
    edited: bool = False
    """Whether a person fills it in; all others follow from the outline and the run."""
    of: Of | None = None
    """The layer that it summarises, if any; other columns are measured, counted or filled in by name."""


LANDSLIDES = (
    Column("id", "int", "ID", "Number of the polygon; landslides and candidates are numbered together", page="Review"),
    Column("class", "text", "Class", "What it is", page="Review", edited=True),
    Column("area_m2", "real", "Area (m²)", "Area on the ellipsoid, without holes", 0, "Size", "measured"),
    Column(
        "perimeter_m",
        "real",
        "Perimeter (m)",
        "Length of the outline on the ellipsoid, holes included",
        1,
        "Size",
        "measured",
    ),
    Column(
        "length_m",
        "real",
        "Length (m)",
        "Longer side of the smallest rectangle around it, in any direction",
        1,
        "Size",
        "measured",
    ),
    Column(
        "width_m",
        "real",
        "Width (m)",
        "Shorter side of the smallest rectangle around it, in any direction",
        1,
        "Size",
        "measured",
    ),
    Column("elongation", "real", "Length / width", "Length over width", 2, "Size", "measured"),
    Column(
        "lon",
        "real",
        "Longitude (°)",
        "Longitude of a point inside it, degrees, in the datum of the scene",
        6,
        "Size",
        "measured",
    ),
    Column(
        "lat",
        "real",
        "Latitude (°)",
        "Latitude of a point inside it, degrees, in the datum of the scene",
        6,
        "Size",
        "measured",
    ),
    Column(
        "confidence",
        "real",
        "Confidence (0-1)",
        "Probability that at least half of it is landslide; null if unknown",
        2,
        "Quality",
    ),
    Column(
        "score_mean",
        "real",
        "Mean score (0-1)",
        "Mean score of its pixels; 0.5 is the edge that the segmenter draws",
        2,
        "Quality",
        "mean",
        of=Of("score", "mean", FULL),
    ),
    Column(
        "score_max",
        "real",
        "Highest score (0-1)",
        "Highest score of its pixels",
        2,
        "Quality",
        "maximum",
        of=Of("score", "maximum", FULL),
    ),
    Column(
        "predicted_iou",
        "real",
        "Predicted IoU (0-1)",
        "Quality that the segmenter predicts of its masks",
        2,
        "Quality",
        "mean",
    ),
    Column(
        "stability", "real", "Stability (0-1)", "How little its masks change with the threshold", 2, "Quality", "mean"
    ),
    Column(
        "activation_share",
        "real",
        "Outlined by activation (0-1)",
        "Share of its pixels that the activation outlined, since the mask of the segmenter disagreed with it",
        2,
        "Quality",
        "mean",
    ),
    Column(
        "activation_mean",
        "real",
        "Mean activation (0-1)",
        "How strongly the localizer responds to its pixels",
        2,
        "Quality",
        "mean",
        of=Of("activation", "mean", 255),
    ),
    Column(
        "slope_mean_deg",
        "real",
        "Mean slope (°)",
        "Mean slope of the ground under it, by the height model of --dem",
        1,
        "Evidence",
        "mean",
    ),
    Column(
        "slope_max_deg", "real", "Steepest slope (°)", "Steepest slope of the ground under it", 1, "Evidence", "maximum"
    ),
    Column(
        "relief_m",
        "real",
        "Relief (m)",
        "Difference of the highest and the lowest ground under it",
        1,
        "Evidence",
        "maximum",
    ),
    Column(
        "aspect_deg",
        "real",
        "Aspect (°)",
        "Mean direction down the slope, clockwise from the north of the grid",
        0,
        "Evidence",
    ),
    Column(
        "h_over_l",
        "real",
        "Relief / length (H/L)",
        "Relief over the horizontal length along the aspect, the tangent of the travel angle (Fahrböschung); null on "
        "level ground",
        2,
        "Evidence",
    ),
    Column(
        "upslope_curvature",
        "real",
        "Curvature of the head (1/m)",
        "Mean curvature of the highest fifth of its relief, over one cell of the height model: positive on a ridge or "
        "a convex edge, negative in a hollow",
        4,
        "Evidence",
    ),
    Column(
        "change_z",
        "real",
        "Change (robust z-score)",
        "How much greenness, brightness and texture changed since the scene before, in units of what the scene itself "
        "changed",
        2,
        "Evidence",
        "mean",
    ),
    Column(
        "activation_before",
        "real",
        "Mean activation before (0-1)",
        "How strongly the localizer responds to its pixels in the scene before",
        2,
        "Evidence",
        "mean",
    ),
    Column(
        "activity",
        "text",
        "Activity",
        "new: its ground changed and did not look like a landslide before; reactivated: it changed and did; null where "
        "the scene before does not say",
        page="Evidence",
        merged="shared",
    ),
    Column(
        "masked_edge",
        "real",
        "Outline along a mask (0-1)",
        "Share of its outline, by pixels, along ground that --mask leaves out",
        2,
        "Evidence",
        "mean",
    ),
    Column(
        "evidence",
        "real",
        "Evidence (0-1)",
        "Mean probability that its pixels are landslide, given the scene before and the heights",
        2,
        "Evidence",
        "mean",
    ),
    Column(
        "reason",
        "text",
        "Why a candidate",
        "confidence: below the minimum; ground: cut out of a polygon by evidence; masked: --mask cuts a third of its "
        "outline; before: bare before the event, and unchanged; slope: gentler than --min-slope; excluded: on polygons "
        "of --exclude; reviewed: it shares ground with reviewed polygons; null for landslides",
        page="Evidence",
        merged="shared",
    ),
    Column("n_prompts", "int", "Number of prompts", "Prompts that it was made from", merged="sum"),
    Column(
        "prompts", "text", "Prompts", "Numbers of the prompts that it was made from, a list in JSON", merged="numbers"
    ),
    Column("gsd_m", "real", "Pixel size (m)", "Metres per pixel of the grid that was worked on", 3),
    Column("source", "text", "Scene", "The scene that it was found in; of several, a list in JSON", merged="scenes"),
    Column(
        "event_date",
        "date",
        "Date of the event",
        "Date of the event or the scene, if known",
        page="Review",
        merged="shared",
        edited=True,
    ),
    Column(
        "event_after",
        "date",
        "Event after",
        "Date of the image before the event that it is not on, or of --event-after",
        merged="shared",
    ),
    Column("event_before", "date", "Event before", "Date of the scene, or of --event-before", merged="shared"),
    Column("status", "text", "Review", "unreviewed, accepted or rejected", page="Review", edited=True),
    Column("notes", "text", "Notes", "Remarks of the reviewer", page="Review", edited=True),
)
"""Attributes of a landslide, in the order of the file."""

OTHERS = (
    Column("n_tiles", "int", "Number of tiles", "Tiles that the segment was seen in"),
    Column(
        "prompt", "int", "Prompt", "Number of the prompt; its box and its points share it", page="Review", edited=True
    ),
    Column("landslides", "text", "Landslides", "Numbers of the landslides and candidates made from it, a list in JSON"),
    Column("origin", "text", "Asked by", "localizer, or person for what was drawn or changed by hand"),
    Column("score", "real", "Score (0-1)", "How sure the localizer was of the place", 2, "Quality", edited=True),
    Column("label", "int", "Inside (1) or outside (0)", "1: the point is in the landslide; 0: it is not", edited=True),
    Column("tile", "int", "Tile", "Number of the tile"),
    Column("probability", "real", "Probability (0-1)", "Probability that the tile shows a landslide", 2),
    Column("message", "text", "Message", "Why the tile could not be worked on"),
)
"""Columns of segments, prompts and tiles that landslides lack."""

WINDOWS = (
    Column("window", "int", "Window", "Number of the window", page="Review"),
    Column("rank", "int", "Order", "Order in which to look at the windows, from 1", page="Review"),
    Column(
        "status",
        "text",
        "Review",
        "reviewed where a person has looked at the whole window, else unreviewed",
        page="Review",
        edited=True,
    ),
    Column("notes", "text", "Notes", "Remarks of the reviewer", page="Review", edited=True),
    Column("polygon", "int", "Polygon", "Number of the polygon that the window is about; null outside polygons"),
    Column("stratum", "text", "Stratum", "What the window is a sample of", page="Quality"),
    Column("reason", "text", "Reason", "Why to look here", page="Quality"),
    Column(
        "value",
        "real",
        "Value (0-1)",
        "How much a look is expected to teach: uncertainty x size x novelty",
        3,
        "Quality",
    ),
)
"""Columns of the layers ``review`` and ``review_sample``: windows for a person to look at."""

_COMPARED: tuple[tuple[str, Kind, str, int | None], ...] = (
    ("id", "int", "ID", None),
    ("layer", "text", "Layer", None),
    ("status", "text", "Review", None),
    ("class", "text", "Class", None),
    ("area_m2", "real", "Area (m²)", 0),
)

CHANGES = (
    Column("change", "text", "Change", "added, removed or changed"),
    Column("what", "text", "What changed", "outline, layer, status or class, several separated by commas"),
    Column("iou", "real", "IoU of the outlines (0-1)", "Intersection over union of the old and the new outline", 3),
    *(
        Column(f"{side}_{name}", kind, f"{alias}, {side}", f"{alias} in the {side} inventory", decimals)
        for side in ("old", "new")
        for name, kind, alias, decimals in _COMPARED
    ),
)
"""Columns of the layer ``changes``: what differs between two inventories."""

COLUMNS: Mapping[str, Column] = {column.name: column for column in (*WINDOWS, *LANDSLIDES, *OTHERS, *CHANGES)}
"""Every column that geolabel writes, by its name."""


def kinds(*names: str) -> dict[str, Kind]:
    """Columns of a layer, in the order of the file, and their kinds."""
    return {name: COLUMNS[name].kind for name in names}


LANDSLIDE_COLUMNS = kinds(*(column.name for column in LANDSLIDES))

MEASURED = tuple(column.name for column in LANDSLIDES if column.merged == "measured")
"""Columns that are measured on an outline, see `geolabel.geodesy.Sizes`."""

TERRAIN = ("slope_mean_deg", "slope_max_deg", "relief_m", "aspect_deg", "h_over_l", "upslope_curvature")
"""Columns that follow from a height model."""

CHANGE = ("change_z", "activation_before")
"""Columns that follow from a scene before the event."""

ACTIVITIES = ("reactivated", "new")
"""Values of the column ``activity``."""

SEEN = ("evidence",)
"""Column of the evidence head."""

MASKED = ("masked_edge",)
"""Columns that follow from masks."""

SEGMENT_COLUMNS = kinds("id", *MEASURED, "predicted_iou", "stability", "n_tiles", "gsd_m", "source")

BOX_COLUMNS = kinds("prompt", "landslides", "origin", "class", "score", "status")

POINT_COLUMNS = kinds("prompt", "landslides", "label", "origin", "class", "score")
"""A point repeats the attributes of its prompt, which may have no box."""

TILE_COLUMNS = kinds("tile", "status", "probability", "message")

WINDOW_COLUMNS = kinds(*(column.name for column in WINDOWS))

CHANGE_COLUMNS = kinds(*(column.name for column in CHANGES))

TRUTH_COLUMNS = kinds("id", "area_m2")
"""Columns of the landslides of a synthetic scene."""

MASKED_COLUMNS = kinds("id")
"""Columns of the layer ``masked``: ground that masks leave out."""

DERIVED = frozenset(column.name for column in LANDSLIDES if not column.edited) | {"n_tiles"}
"""Columns of polygons that follow from the outline and the run. All others are for a person to fill in or to add."""

NAME_LENGTH = 10
"""Maximum length of a column name in a Shapefile."""


def spelled(name: str, columns: Iterable[object]) -> str | None:
    """The column of that name, in upper or lower case; the exact name comes first, None if there is none."""
    like = [str(column) for column in columns if str(column).lower() == name]
    return name if name in like else like[0] if like else None


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names of columns with ten characters at most, no two of which are the same in any case of letters.

    Longer ones first lose the vowels inside their words, and then their end.

    Examples
    --------
    >>> short_names(["area_m2", "activation_share", "activation_shares"])
    {'area_m2': 'area_m2', 'activation_share': 'actvtn_shr', 'activation_shares': 'actvtn_sh2'}
    """
    found: dict[str, str] = {}
    for name in sorted(names, key=len):  # short names keep their form
        short = name if len(name) <= NAME_LENGTH else re.sub(r"(?<=[^\W_])[aeiou]", "", name)[:NAME_LENGTH]
        number, taken = 1, {other.lower() for other in found.values()}
        while short.lower() in taken:
            number += 1
            short = f"{short[: NAME_LENGTH - len(str(number))]}{number}"
        found[name] = short
    return {name: found[name] for name in names}
