"""Summaries of runs as text; with ``--json`` the figures are printed instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from geolabel.io.columns import LANDSLIDES

from .terminal import duration, extent, see

Figures = Mapping[str, Any]

HOLD_CANDIDATES = (".gpkg", ".zip", ".kmz")
"""Suffixes of formats that include candidates."""

WHY = {
    "confidence": "less likely",
    "ground": "other ground",
    "masked": "cut by a mask",
    "before": "bare before",
    "slope": "too gentle",
    "excluded": "on excluded ground",
    "reviewed": "partly reviewed",
}
"""Reasons of candidates, as text."""


def of_extraction(output: str | None, figures: Figures, *, dense: bool) -> dict[str, str]:
    """Rows on the landslides of a run.

    Parameters
    ----------
    figures
        From `geolabel.extraction.result.Result.summary`.
    dense
        Whether the method scores every pixel itself, without prompts.
    """
    count, whole = figures["landslides"], figures["area_km2"] * 1e6
    found = f"{count}, {extent(figures['area_m2'], whole)} of" if count else "none in"
    rows = {"landslides": f"{found} {extent(whole)}"}
    if count and "classes" in figures:
        rows["classes"] = ", ".join(f"{name} {number}" for name, number in figures["classes"].items())
    if figures["mean_confidence"] is not None:
        rows["confidence"] = f"{figures['mean_confidence']:.2f} on average, of 0 to 1"
    if figures["candidates"]:
        why = ", ".join(f"{number} {WHY.get(reason, reason)}" for reason, number in figures.get("reasons", {}).items())
        held = output is None or output.lower().endswith(HOLD_CANDIDATES)
        where = "in the layer candidates" if held else "not in this format"
        rows["candidates"] = f"{figures['candidates']}, {why or 'less likely'}: {where}"
    rows |= _masked(figures)
    if "displacements_px" in figures:
        farthest = max(math.hypot(*moved) for moved in figures["displacements_px"])
        rows["before"] = f"displaced by {farthest:.2f} px of the working grid, which is corrected"
    if "kept" in figures:
        reviewed = "{kept} kept, {rejected} rejected; {left_out} found on that ground are left out".format(**figures)
        rows["review"] = reviewed if figures["kept"] or figures["rejected"] else "no reviews and no edits"
    rows |= _effort(figures)
    if output:
        rows["output"] = output
        if count or figures["candidates"]:
            rows["next"] = see(output)
    if not count:
        rows["try"] = "\n".join(_ways_to_more(figures, dense=dense))
    return rows


def of_place(figures: Figures, output: str | None) -> dict[str, str]:
    """Rows on one place; `figures` are those of `geolabel.explain`."""
    rows = {"verdict": figures["verdict"], "why": figures["why"]}
    if "activation" in figures:
        threshold, floor = figures["activation_threshold"], figures["activation_floor"]
        rows["activation"] = f"{figures['activation']} of 255" + (
            "" if threshold is None else f"; threshold {threshold}" + (f", floor {floor}" if floor else "")
        )
        rows["probability"] = f"{figures['probability']:.2f}; gate {figures['gate']:g}"
    rows["prompts"] = str(len(figures["prompts"]))
    masks = [
        f"of prompt {one['prompt']}: score here {one['score']:.2f}, predicted IoU {one['predicted_iou']:.2f}, "
        f"stability {one['stability']:.2f}" + (", replaced by the region of the activation" if one["followed"] else "")
        for one in figures["masks"]
    ]
    rows["masks"] = "\n".join(masks) or "none"
    rows["score"] = f"{figures['score']:.2f}; threshold {figures['score_threshold']:g}"
    known = [
        f"{one.alias}: {value:.{one.decimals or 0}f}"
        for one in LANDSLIDES
        if one.page in ("Quality", "Evidence") and one.kind == "real"
        if (value := (figures["polygon"] or {}).get(one.name)) is not None
    ]
    if known:
        rows["polygon"] = "\n".join(known)
    return rows | ({"output": output} if output else {})


def of_scores(output: str, figures: Figures) -> dict[str, str]:
    """Rows on a raster of scores; `figures` are those of `geolabel.extraction.work.Report.summary`."""
    return {
        "scored": extent(figures["area_km2"] * 1e6),
        **_masked(figures),
        **_effort(figures),
        "output": output,
        "next": f"geolabel polygonize {output} --out slides.gpkg; or open it in QGIS: 127 of 254 is the edge",
    }


def of_polygons(output: str, figures: Figures) -> dict[str, str]:
    """Rows on the polygons of a raster: number of `landslides`, and their `area_m2`."""
    if not figures["landslides"]:
        way = "a lower --threshold keeps less certain ones, --min-area 1px smaller ones; check --band"
        return {"landslides": "none", "output": output, "try": way}
    found = f"{figures['landslides']}, {extent(figures['area_m2'])}"
    return {"landslides": found, "output": output, "next": see(output)}


def of_segments(output: str, figures: Figures) -> dict[str, str]:
    """Rows on everything in a scene; `figures` are those of `geolabel.extraction.segment.Segmentation.summary`."""
    return {
        "segments": f"{figures['segments']} in {extent(figures['area_km2'] * 1e6)}",
        **_masked(figures),
        **_effort(figures),
        "output": output,
        "next": f"open {output} in QGIS",
    }


def of_estimate(figures: Figures) -> dict[str, str]:
    """Rows on the cost of a run; `figures` are those of `geolabel.extraction.estimate.estimate_scenes`."""
    named = {"scene": "scene", "scenes": "scenes", "working_grid": "grid", "grids": "grids", "device": "device"}
    rows = {label: str(figures[key]) for key, label in named.items() if key in figures}
    from geolabel.extraction.estimate import EVERYWHERE, NONE

    low, high = (duration(figures[name]) for name in (NONE, EVERYWHERE))
    per_low, per_high = (duration(figures[name.replace("seconds", "seconds_per_km2")]) for name in (NONE, EVERYWHERE))
    rows |= {
        "area": extent(figures["area_km2"] * 1e6),
        "tiles": str(figures["localizer_tiles"]),
        "time": f"{low} without a landslide, {high} with landslides everywhere; plus some seconds to start",
        "time per km2": f"{per_low} to {per_high}",
        "memory": _memory(figures["memory_mb"]),
    }
    beside = ", ".join(figures.get("not_counted", ()))
    return rows | ({"not counted": beside} if beside else {})


def _masked(figures: Figures) -> dict[str, str]:
    """Share that masks hide, if there are any."""
    return {"masked": f"{figures['masked_share']:.1%} of the scene is left out"} if "masked_share" in figures else {}


def _effort(figures: Figures) -> dict[str, str]:
    rows = {}
    if figures["gaps"]:
        rows["gaps"] = f"{figures['gaps']}: parts of the scene that were skipped, see the warnings"
    if empty := figures.get("tiles_without_data"):
        rows["no data"] = f"{empty} of {figures['tiles']} tiles"
    spent = duration(sum(figures["seconds"].values()))
    if figures["tasks_kept"]:
        rows["time"] = f"{spent}; {figures['tasks_kept']} of {figures['tasks']} tasks are from the earlier run"
    elif figures["seconds_per_km2"]:
        rows["time"] = f"{spent}, {duration(figures['seconds_per_km2'])} per km2"
    else:
        rows["time"] = spent
    peaks = figures["peak_mb"].values()
    if peaks:
        workers = f" in the largest of {len(peaks)} processes" if len(peaks) > 1 else ""
        rows["memory"] = f"{_memory(max(peaks))}{workers}"
    return rows


def _memory(megabytes: float) -> str:
    return f"{megabytes / 1024:.1f} GB"


def _ways_to_more(figures: Figures, *, dense: bool) -> list[str]:
    if figures["tiles"] and figures["tiles_without_data"] == figures["tiles"]:
        return ["no tile has valid pixels: geolabel info shows the nodata value, --nodata sets it"]
    ways = ["geolabel info shows the bands used as red, green and blue: --bands sets them"]
    unlikely = figures.get("reasons", {"confidence": figures["candidates"]}).get("confidence", 0)
    if unlikely:
        ways.append(f"--min-confidence 0 makes landslides of the {unlikely} candidates of low confidence")
    elif figures["candidates"]:
        ways.append("the column reason of the layer candidates explains why they are not landslides")
    elif dense or figures["prompts"]:
        ways.append("--score-threshold 0.3 and --min-area 10px keep less certain and smaller ones")
    else:
        ways.append("--gate 0.2 searches less likely places; the layer tiles has the probability of each tile")
    ways.append("--working-gsd: landslides that fill a tile or have few pixels are found better at another pixel size")
    return ways
