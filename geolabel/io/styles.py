"""How QGIS draws the layers of an inventory: QML documents, graded by confidence or score.

QGIS reads them from the table ``layer_styles`` of a GeoPackage. Colours run from pale to dark, so that they read in
print and to the colour-blind; fills let the image shine through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

REVIEW_STATES = ("unreviewed", "accepted", "rejected")
"""What a reviewer can make of a landslide or a prompt; QGIS offers them as a list."""

WARM = ("255,255,178", "254,204,92", "253,141,60", "240,59,32", "189,0,38")
COOL = ("198,240,255", "120,214,250", "52,170,235", "24,112,204", "12,58,150")
GREY = ("190,190,190", "160,160,160", "130,130,130", "95,95,95", "60,60,60")

EVEN = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Symbol:
    """One symbol of one layer, in QGIS's own words."""

    kind: str
    """``fill`` or ``marker``."""
    properties: Mapping[str, str]


@dataclass(frozen=True)
class Grade:
    """Values from `lower` to `upper` are drawn with `symbol`."""

    lower: float
    upper: float
    label: str
    symbol: Symbol


@dataclass(frozen=True)
class Style:
    """A graduated renderer over an expression of the layer's columns; null is drawn as its expression says."""

    expression: str
    grades: tuple[Grade, ...]
    review: bool = False
    """Whether the layer has a ``status`` that a person sets."""

    def qml(self) -> str:
        """The style as the document that QGIS would save."""
        root = ET.Element("qgis", version="3.22.0", styleCategories="Symbology|Fields|Forms")
        renderer = ET.SubElement(
            root,
            "renderer-v2",
            type="graduatedSymbol",
            attr=self.expression,
            graduatedMethod="GraduatedColor",
            enableorderby="0",
            forceraster="0",
            symbollevels="0",
        )
        ranges, symbols = ET.SubElement(renderer, "ranges"), ET.SubElement(renderer, "symbols")
        for number, grade in enumerate(self.grades):
            ET.SubElement(
                ranges,
                "range",
                lower=f"{grade.lower:.15f}",
                upper=f"{grade.upper:.15f}",
                label=grade.label,
                symbol=str(number),
                render="true",
            )
            _add_symbol(symbols, str(number), grade.symbol)
        if self.review:
            _add_choice(root, "status", REVIEW_STATES)
        ET.indent(root, " ")
        return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ET.tostring(root, encoding="unicode")


def _add_symbol(parent: ET.Element, name: str, symbol: Symbol) -> None:
    element = ET.SubElement(parent, "symbol", type=symbol.kind, name=name, alpha="1", clip_to_extent="1", force_rhr="0")
    layer_class = {"fill": "SimpleFill", "marker": "SimpleMarker"}[symbol.kind]
    layer = ET.SubElement(element, "layer", {"class": layer_class, "enabled": "1", "locked": "0", "pass": "0"})
    options = ET.SubElement(layer, "Option", type="Map")
    for key, value in symbol.properties.items():
        ET.SubElement(options, "Option", type="QString", name=key, value=value)


def _add_choice(root: ET.Element, field: str, values: Sequence[str]) -> None:
    configuration = ET.SubElement(ET.SubElement(root, "fieldConfiguration"), "field", name=field)
    widget = ET.SubElement(configuration, "editWidget", type="ValueMap")
    options = ET.SubElement(ET.SubElement(widget, "config"), "Option", type="Map")
    choices = ET.SubElement(options, "Option", type="List", name="map")
    for value in values:
        ET.SubElement(ET.SubElement(choices, "Option", type="Map"), "Option", type="QString", name=value, value=value)


def _filled(colour: str) -> Symbol:
    return Symbol(
        "fill",
        {
            "style": "solid",
            "color": f"{colour},120",
            "outline_style": "solid",
            "outline_color": "128,0,38,255",
            "outline_width": "0.4",
            "outline_width_unit": "MM",
            "joinstyle": "round",
        },
    )


def _outlined(colour: str, width: str, line: str) -> Symbol:
    return Symbol(
        "fill",
        {
            "style": "no",
            "color": "0,0,0,0",
            "outline_style": line,
            "outline_color": f"{colour},255",
            "outline_width": width,
            "outline_width_unit": "MM",
            "joinstyle": "miter",
        },
    )


def _hatched(colour: str) -> Symbol:
    return Symbol(
        "fill",
        {
            "style": "b_diagonal",
            "color": f"{colour},255",
            "outline_style": "solid",
            "outline_color": f"{colour},255",
            "outline_width": "0.4",
            "outline_width_unit": "MM",
        },
    )


def _dot(colour: str, shape: str = "circle", outline: str = "255,255,255,255") -> Symbol:
    return Symbol(
        "marker",
        {
            "name": shape,
            "color": f"{colour},255",
            "outline_color": outline,
            "outline_style": "solid",
            "outline_width": "0.3",
            "outline_width_unit": "MM",
            "size": "2.2",
            "size_unit": "MM",
        },
    )


def _graded(limits: Sequence[float], symbols: Sequence[Symbol]) -> tuple[Grade, ...]:
    return tuple(
        Grade(lower, upper, f"{lower:g} to {upper:g}", symbol)
        for (lower, upper), symbol in zip(pairwise(limits), symbols, strict=True)
    )


STYLES = {
    "landslides": Style(
        'coalesce("confidence", "score_mean", 1)', _graded(EVEN, [_filled(colour) for colour in WARM]), review=True
    ),
    "candidates": Style("1", (Grade(1, 1, "candidate", _outlined("128,0,38", "0.4", "dash")),), review=True),
    "rejected": Style("1", (Grade(1, 1, "rejected", _hatched("110,110,110")),), review=True),
    "segments": Style(
        'coalesce("predicted_iou", 1)', _graded(EVEN, [_outlined(colour, "0.4", "solid") for colour in COOL])
    ),
    "prompts": Style(
        'coalesce("score", 1)', _graded(EVEN, [_outlined(colour, "0.4", "dash") for colour in COOL]), review=True
    ),
    "prompt_points": Style(
        'CASE WHEN "label" = 0 THEN -1 ELSE coalesce("score", 1) END',
        (
            Grade(-1, -1, "background", _dot("20,20,20", "cross_fill")),
            *_graded(EVEN, [_dot(colour) for colour in COOL]),
        ),
    ),
    "tiles": Style(
        """CASE WHEN "status" = 'failed' THEN 2 ELSE coalesce("probability", 0) END""",
        (
            *_graded(EVEN, [_outlined(colour, "0.2", "solid") for colour in GREY]),
            Grade(2, 2, "failed", _hatched("215,25,28")),
        ),
    ),
}
"""The style of each layer of an inventory, and of the segments of a scene."""
