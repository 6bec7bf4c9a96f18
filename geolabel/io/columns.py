"""The columns of the layers that geolabel writes: what they hold, what they are called in QGIS, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["int", "real", "text", "date", "datetime", "bool"]
"""What a column of a GeoPackage holds."""

LANDSLIDE_COLUMNS: dict[str, Kind] = {
    "id": "int",
    "class": "text",
    "area_m2": "real",
    "perimeter_m": "real",
    "length_m": "real",
    "width_m": "real",
    "elongation": "real",
    "lon": "real",
    "lat": "real",
    "confidence": "real",
    "score_mean": "real",
    "score_max": "real",
    "predicted_iou": "real",
    "stability": "real",
    "activation_mean": "real",
    "n_prompts": "int",
    "prompts": "text",
    "gsd_m": "real",
    "source": "text",
    "event_date": "date",
    "status": "text",
    "notes": "text",
}
"""Attributes of a landslide and their kinds, in the order of the file."""

BOX_COLUMNS: dict[str, Kind] = {
    "prompt": "int",
    "landslides": "text",
    "origin": "text",
    "class": "text",
    "score": "real",
    "status": "text",
}

POINT_COLUMNS: dict[str, Kind] = {
    "prompt": "int",
    "landslides": "text",
    "label": "int",
    "origin": "text",
    "class": "text",
    "score": "real",
}
"""A point repeats what is said of its prompt, which may have no box."""

TILE_COLUMNS: dict[str, Kind] = {"tile": "int", "status": "text", "probability": "real", "message": "text"}

DERIVED = frozenset({*LANDSLIDE_COLUMNS, "n_tiles"}) - {"class", "event_date", "status", "notes"}
"""Columns of polygons that follow from the outline and the run. All others are for a person to fill in or to add."""


@dataclass(frozen=True)
class About:
    """What a column is called, and what it means."""

    alias: str
    """With the unit."""
    meaning: str
    decimals: int | None = None
    """Digits after the point that are worth reading; None for what has none."""


ABOUT: Mapping[str, About] = {
    "id": About("ID", "Number of the polygon; landslides and candidates are numbered together"),
    "class": About("Class", "What it is"),
    "area_m2": About("Area (m²)", "Area on the ellipsoid, without holes", 0),
    "perimeter_m": About("Perimeter (m)", "Length of the outline on the ellipsoid, holes included", 1),
    "length_m": About("Length (m)", "Longer side of the smallest rectangle around it, in any direction", 1),
    "width_m": About("Width (m)", "Shorter side of the smallest rectangle around it, in any direction", 1),
    "elongation": About("Length / width", "Length over width", 2),
    "lon": About("Longitude (°)", "Longitude of a point inside it, degrees, in the datum of the scene", 6),
    "lat": About("Latitude (°)", "Latitude of a point inside it, degrees, in the datum of the scene", 6),
    "confidence": About("Confidence (0-1)", "Probability that at least half of it is landslide; null if unknown", 2),
    "score_mean": About("Mean score (0-1)", "Mean score of its pixels; 0.5 is the edge that the segmenter draws", 2),
    "score_max": About("Highest score (0-1)", "Highest score of its pixels", 2),
    "predicted_iou": About("Predicted IoU (0-1)", "Quality that the segmenter predicts of its masks", 2),
    "stability": About("Stability (0-1)", "How little its masks change with the threshold", 2),
    "activation_mean": About("Mean activation (0-1)", "How strongly the localizer responds to its pixels", 2),
    "n_prompts": About("Number of prompts", "Prompts that it was made from"),
    "prompts": About("Prompts", "Numbers of the prompts that it was made from, a list in JSON"),
    "gsd_m": About("Pixel size (m)", "Metres per pixel of the grid that was worked on", 3),
    "source": About("Scene", "The scene that it was found in; of several, a list in JSON"),
    "event_date": About("Date of the event", "Date of the event or the scene, if known"),
    "status": About("Review", "unreviewed, accepted or rejected"),
    "notes": About("Notes", "Remarks of the reviewer"),
    "prompt": About("Prompt", "Number of the prompt; its box and its points share it"),
    "landslides": About("Landslides", "Numbers of the landslides and candidates made from it, a list in JSON"),
    "origin": About("Asked by", "localizer, or person for what was drawn or changed by hand"),
    "score": About("Score (0-1)", "How sure the localizer was of the place", 2),
    "label": About("Inside (1) or outside (0)", "1: the point is in the landslide; 0: it is not"),
    "tile": About("Tile", "Number of the tile"),
    "probability": About("Probability (0-1)", "Probability that the tile shows a landslide", 2),
    "message": About("Message", "Why the tile could not be worked on"),
    "n_tiles": About("Number of tiles", "Tiles that the segment was seen in"),
}
"""Of every column that geolabel writes."""
