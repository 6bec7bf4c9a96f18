"""Model cards: purpose, training data, accuracy and limitations of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geolabel.models.checkpoint import NetworkInfo
from geolabel.outputs import replacing

_PURPOSE = {
    "localizer": "Says where in an image landslides are likely: a class activation map, from which prompts are cut, "
    "and the probability of a landslide in any window, which is the gate. It learned from outlines of landslides and, "
    "in synthetic scenes, from the land cover of every pixel: not from labels of whole images alone, as localizers of "
    "the published methods do and `geolabel train localizer` makes them.",
    "segmenter": "Outlines what a box, a point or both ask for: a small network of the Segment Anything shape. It "
    "learned from masks: of landslides, and in synthetic scenes of other ground too.",
}

_LIMITS = {
    "localizer": "It learned mostly from synthetic scenes. On real ground it mistakes bare soil, quarries, river "
    "gravel and snow for slides, and misses old slides that plants have taken back. Look at what it finds.",
    "segmenter": "It outlines bare ground best, since landslides are what it saw most; it is no general replacement "
    "for the official networks. Masks have a resolution of four pixels before they are enlarged.",
}

_MEANING = {
    "score": "what states of a training are compared by",
    "map/f1": "F1 of the map's cells at the operating point",
    "map/threshold": "raw value of that point, before calibration",
    "map/hit": "share of windows with slides in which the map's maximum lies on one",
    "gate/auc": "area under the ROC curve of the highest class probability of each image",
    "gate/scale": "calibration, folded into the weights",
    "gate/shift": "calibration, folded into the bias",
    "iou/chosen": "mean IoU with the slide asked for, of the candidate that the network prefers",
    "iou/best": "mean IoU of the best candidate",
    "iou/single": "mean IoU of the single-mask token",
    "iou/error": "mean error of the predicted IoU",
    "logit/scale": "calibration of the masks' logits, folded into the weights",
}


def write_card(
    path: Path, info: NetworkInfo, *, parameters: int, measured: Sequence[str] = (), failures: Sequence[str] = ()
) -> None:
    """Write the model card of a network as Markdown.

    Parameters
    ----------
    parameters
        Number of weights.
    measured
        Sections of Markdown with figures on other data, compared with baselines.
    failures
        Lines of Markdown that show failures.
    """
    trained = info.trained
    finest, coarsest = info.gsd_range
    lines = [
        f"# The bundled {info.kind}",
        "",
        _PURPOSE[info.kind],
        "",
        f"- {parameters / 1e6:.2f} million parameters, half precision, architecture `{info.architecture['name']}`",
        f"- classes: {', '.join(info.classes)}; window {info.window} px, stride {info.stride} px",
        f"- ground sample distance {finest:g} to {coarsest:g} m; red, green, blue, stretched to 8 bits over the scene",
        *_making(trained),
        "",
        "## Data",
        "",
        *(f"- {source}" for source in trained["data"]),
        "",
        "## Figures on the scenes it was selected by",
        "",
        "| figure | value | |",
        "|---|---|---|",
        *(f"| {name} | {value:.3f} | {_MEANING[name]} |" for name, value in trained["selection"].items()),
        "",
        *measured,
        "## Limits",
        "",
        _LIMITS[info.kind],
        "",
        *failures,
    ]
    with replacing(path, overwrite=True) as part:
        part.write_text("\n".join(lines), encoding="utf-8")


def _making(trained: Mapping[str, Any]) -> list[str]:
    if "mean of" in trained:
        return [
            "- the mean, by `geolabel train average`, of weights of SHA-256",
            *(f"  - `{one}`" for one in trained["mean of"]),
        ]
    command = f"geolabel train bundled --preset {trained['preset']} --seed {trained['seed']}"
    command += f" --precision {trained['precision']}" if "precision" in trained else ""
    made = [f"- made by `{command}`, {trained['steps']} steps" + _time(trained)]
    begun = trained.get("began with")
    return [*made, f"- began with weights of SHA-256 `{begun}`"] if begun else made


def _time(trained: Mapping[str, Any]) -> str:
    return f" in {trained['minutes']:.0f} minutes" if "minutes" in trained else ""
