"""QGIS styles (QML) of the layers that geolabel writes: symbols, field names and a form for the review.

QGIS reads them from the table ``layer_styles`` of a GeoPackage. Outlines run from pale to dark with the confidence, so
that they are legible in print and for the colour-blind, on a dark line that stands out from any ground; fills are
transparent. A style cannot keep a layer from being loaded, but it can leave its symbols unticked in the list of
layers, as it does for prompts and tiles.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd

from geolabel.io.columns import COLUMNS, Kind, Page

VERSION = "3.22.0"
"""Version of QGIS whose format these documents have: an older one warns of them."""

REVIEW_STATES = ("unreviewed", "accepted", "rejected")
"""Decisions about a landslide or a prompt; QGIS offers them as a list."""

WINDOW_STATES = ("unreviewed", "reviewed")
"""Status of a window: whether all of it was looked at."""

WARM = ("255,255,178", "254,204,92", "253,141,60", "240,59,32", "189,0,38")
COOL = ("198,240,255", "120,214,250", "52,170,235", "24,112,204", "12,58,150")
GREY = ("190,190,190", "160,160,160", "130,130,130", "95,95,95", "60,60,60")

COLOURS = ("213,94,0", "0,114,178", "204,121,167", "230,159,0", "86,180,233", "0,0,0")
"""Colours of classes, in order and repeated: the palette of Okabe and Ito (2008), which suits the colour-blind."""

GREEN, DARK, MIDDLE = "0,158,115", "30,30,30", "120,120,120"

LIMITS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Limits of the classes of a share."""

PAGES: tuple[Page, ...] = ("Review", "Size", "Quality", "Evidence", "Origin")
"""Pages of the form, in their order."""

REVIEW_FIRST = ("id", "prompt", "window", "rank", "status", "notes", "event_date", "class")
"""Order of the fields that a reviewer fills in; it differs from that of the file."""


@dataclass(frozen=True)
class Symbol:
    """One symbol, in the terms of QGIS."""

    kind: str
    """``fill`` or ``marker``."""
    layers: tuple[tuple[str, Mapping[str, str]], ...]
    """Classes of its layers, from the lowest, and their properties."""


@dataclass(frozen=True)
class Rule:
    """Features for which a condition holds are drawn with `symbol`, or by the rules below this one."""

    label: str
    symbol: Symbol | None = None
    condition: str = ""
    """An expression of QGIS; empty for all features, ``ELSE`` for those that match no sibling rule."""
    below: tuple[Rule, ...] = ()
    ticked: bool = True
    """Whether it is shown when the layer is loaded."""


@dataclass(frozen=True)
class Style:
    """A style for a layer with certain columns."""

    rules: tuple[Rule, ...]
    columns: Mapping[str, Kind]
    title: str
    """Expression of QGIS for the display name of a feature."""
    label: str | None = None
    """Column to label each feature with, if any."""

    def qml(self) -> str:
        """The style as the document that QGIS would save."""
        root = ET.Element("qgis", version=VERSION, styleCategories="AllStyleCategories")
        self.add_to(root)
        return document(root)

    def add_to(self, element: ET.Element) -> None:
        """Add the style to a document of a style, or to a layer of a project."""
        _add_renderer(element, self.rules)
        if self.label is not None:
            element.set("labelsEnabled", "1")
            _add_labels(element, self.label)
        _add_fields(element, self.columns)
        _add_form(element, self.columns)
        ET.SubElement(element, "previewExpression").text = self.title


def document(root: ET.Element) -> str:
    """A document of QGIS, with the doctype of QGIS."""
    ET.indent(root, " ")
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ET.tostring(root, encoding="unicode")


# --- symbols ---------------------------------------------------------------------------------------------------------


def _add_renderer(root: ET.Element, rules: Sequence[Rule]) -> None:
    settings = {"type": "RuleRenderer", "symbollevels": "0", "forceraster": "0", "enableorderby": "0"}
    renderer = ET.SubElement(root, "renderer-v2", settings)
    tree = ET.SubElement(renderer, "rules", key=_key("root"))
    symbols: list[Symbol] = []
    for rule in rules:
        _add_rule(tree, rule, symbols, "")
    drawn = ET.SubElement(renderer, "symbols")
    for number, symbol in enumerate(symbols):
        _add_symbol(drawn, str(number), symbol)


def _key(path: str) -> str:
    return f"{{{uuid.uuid5(uuid.NAMESPACE_URL, path)}}}"  # the same style gives the same bytes


def _add_rule(parent: ET.Element, rule: Rule, symbols: list[Symbol], path: str) -> None:
    path = f"{path}/{rule.label}"
    values = {"key": _key(path), "label": rule.label, "filter": rule.condition}
    values |= {} if rule.ticked else {"checkstate": "0"}
    if rule.symbol is not None:
        values["symbol"] = str(len(symbols))
        symbols.append(rule.symbol)
    element = ET.SubElement(parent, "rule", {name: value for name, value in values.items() if value})
    for below in rule.below:
        _add_rule(element, below, symbols, path)


def _add_symbol(parent: ET.Element, name: str, symbol: Symbol) -> None:
    element = ET.SubElement(parent, "symbol", type=symbol.kind, name=name, alpha="1", clip_to_extent="1", force_rhr="0")
    for layer_class, properties in symbol.layers:
        layer = ET.SubElement(element, "layer", {"class": layer_class, "enabled": "1", "locked": "0", "pass": "0"})
        options = ET.SubElement(layer, "Option", type="Map")
        for key, value in properties.items():
            ET.SubElement(options, "Option", type="QString", name=key, value=value)


def _line(colour: str, width: float, style: str = "solid") -> tuple[str, Mapping[str, str]]:
    values = {"line_color": colour, "line_style": style, "line_width": f"{width}", "line_width_unit": "MM"}
    return "SimpleLine", values | {"joinstyle": "round", "capstyle": "round"}


def _fill(colour: str, style: str = "solid") -> tuple[str, Mapping[str, str]]:
    return "SimpleFill", {"style": style, "color": colour, "outline_style": "no"}


def _cased(colour: str, width: float = 0.5, fill: str = "0") -> Symbol:
    """An outline in a colour on a slightly wider dark line, with a fill of an opacity of 0 to 255."""
    casing = _line("0,0,0,150", width + 0.4)
    return Symbol("fill", (_fill(f"{colour},{fill}"), casing, _line(f"{colour},255", width)))


def _outlined(colour: str, width: float, style: str = "solid") -> Symbol:
    return Symbol("fill", (_line(f"{colour},255", width, style),))


def _crossed(colour: str) -> Symbol:
    return Symbol("fill", (_fill(f"{colour},170", "diagonal_x"), _line(f"{colour},255", 0.3, "dash")))


def _hatched(colour: str) -> Symbol:
    return Symbol("fill", (_fill(f"{colour},255", "b_diagonal"), _line(f"{colour},255", 0.4)))


def _dot(colour: str, shape: str = "circle", outline: str = "255,255,255,255") -> Symbol:
    values = {
        "name": shape,
        "color": f"{colour},255",
        "outline_color": outline,
        "outline_style": "solid",
        "outline_width": "0.3",
        "outline_width_unit": "MM",
        "size": "2.2",
        "size_unit": "MM",
    }
    return Symbol("marker", (("SimpleMarker", values),))


def _add_labels(root: ET.Element, column: str) -> None:
    """Label each feature with a column in dark on white, even where labels or features overlap."""
    settings = ET.SubElement(ET.SubElement(root, "labeling", type="simple"), "settings", calloutType="simple")
    font = {"fontSize": "10", "fontSizeUnit": "Point", "fontWeight": "75", "textColor": f"{DARK},255"}
    text = ET.SubElement(settings, "text-style", {"fieldName": column, "isExpression": "0"} | font)
    halo = {"bufferSize": "0.8", "bufferSizeUnits": "MM", "bufferColor": "255,255,255,255"}
    ET.SubElement(text, "text-buffer", {"bufferDraw": "1"} | halo)
    ET.SubElement(settings, "placement", placement="10", dist="0.5", distUnits="MM")  # outside polygons
    ET.SubElement(settings, "rendering", displayAll="1", obstacle="0")


# --- fields and form -------------------------------------------------------------------------------------------------


def _add_fields(root: ET.Element, columns: Mapping[str, Kind]) -> None:
    widgets = ET.SubElement(root, "fieldConfiguration")
    for name, kind in columns.items():
        widget = ET.SubElement(ET.SubElement(widgets, "field", name=name), "editWidget", type=_widget(name, kind))
        config = ET.SubElement(ET.SubElement(widget, "config"), "Option", type="Map")
        if name == "status" and _is_reviewed(columns):
            choices = ET.SubElement(config, "Option", type="List", name="map")
            for value in WINDOW_STATES if "window" in columns else REVIEW_STATES:
                one = ET.SubElement(choices, "Option", type="Map")
                ET.SubElement(one, "Option", type="QString", name=value, value=value)
        for key, (form, value) in _settings(name, kind).items():
            ET.SubElement(config, "Option", type=form, name=key, value=value)
    aliases, editable = ET.SubElement(root, "aliases"), ET.SubElement(root, "editable")
    defaults = ET.SubElement(root, "defaults")
    for number, name in enumerate(columns):
        alias = COLUMNS[name].alias if name in COLUMNS else name
        ET.SubElement(aliases, "alias", index=str(number), field=name, name=alias)
        ET.SubElement(editable, "field", name=name, editable=str(int(not _is_fixed(name, columns))))
    if _is_reviewed(columns):
        ET.SubElement(defaults, "default", field="status", expression=f"'{REVIEW_STATES[0]}'", applyOnUpdate="0")


def _is_reviewed(columns: Mapping[str, Kind]) -> bool:
    """Whether the layer has a ``status`` that a person sets, unlike that of tiles."""
    return "status" in columns and "tile" not in columns


def _is_fixed(name: str, columns: Mapping[str, Kind]) -> bool:
    """Whether a column follows from the run, so that it is read-only in the form."""
    return "tile" in columns or (name in COLUMNS and not COLUMNS[name].edited)


def _widget(name: str, kind: Kind) -> str:
    if name == "status":
        return "ValueMap"
    # the spin box of whole numbers does not show those of 64 bits
    return {"real": "Range", "date": "DateTime", "datetime": "DateTime", "bool": "CheckBox", "binary": "Binary"}.get(
        kind, "TextEdit"
    )


def _settings(name: str, kind: Kind) -> dict[str, tuple[str, str]]:
    """Settings of a widget by name, as type and value."""
    if name == "notes":
        return {"IsMultiline": ("bool", "true"), "UseHtml": ("bool", "false")}
    if kind == "date":
        form = "yyyy-MM-dd"
        shown = {"display_format": ("QString", form), "field_format": ("QString", form)}
        return shown | {"calendar_popup": ("bool", "true"), "allow_null": ("bool", "true")}
    if kind == "real":
        decimals = COLUMNS[name].decimals if name in COLUMNS else None
        digits = {} if decimals is None else {"Precision": ("int", str(decimals))}
        limits = {"Min": ("double", "-1e15"), "Max": ("double", "1e15"), "Step": ("double", "0.1")}
        return digits | limits | {"AllowNull": ("bool", "true"), "Style": ("QString", "SpinBox")}
    return {}


def _add_form(root: ET.Element, columns: Mapping[str, Kind]) -> None:
    """Pages of the form, and the order of the table, in which the fields of the reviewer come first."""
    known = [name for name in columns if name in COLUMNS]
    pages = {page: [name for name in known if COLUMNS[name].page == page] for page in PAGES}
    pages["Review"].sort(key=REVIEW_FIRST.index)
    pages["Review"] += [name for name in columns if name not in COLUMNS]
    ET.SubElement(root, "editorlayout").text = "tablayout"
    form = ET.SubElement(root, "attributeEditorForm")
    numbers = {name: str(number) for number, name in enumerate(columns)}
    for page, names in pages.items():
        if names:
            box = ET.SubElement(
                form, "attributeEditorContainer", name=page, columnCount="1", groupBox="0", showLabel="1"
            )
            for name in names:
                ET.SubElement(box, "attributeEditorField", name=name, index=numbers[name], showLabel="1")
    table = ET.SubElement(root, "attributetableconfig", actionWidgetStyle="dropDown", sortOrder="0", sortExpression="")
    order = ET.SubElement(table, "columns")
    for name in [name for names in pages.values() for name in names]:
        ET.SubElement(order, "column", type="field", name=name, hidden="0", width="-1")


# --- the layers ------------------------------------------------------------------------------------------------------


def style_of(layer: str, features: pd.DataFrame, columns: Mapping[str, Kind]) -> Style:
    """The style of a layer by its name, with classes for the values that its features have.

    Parameters
    ----------
    columns
        All columns of the layer, in order; those that geolabel does not know are a person's.
    """
    return Style(_LAYERS[layer](features), columns, _title(columns), "rank" if "rank" in columns else None)


def _title(columns: Mapping[str, Kind]) -> str:
    if {"id", "class"} <= columns.keys():
        return """concat(coalesce("class", 'landslide'), ' ', "id")"""
    return next(f'"{name}"' for name in ("id", "prompt", "tile", "change", "window") if name in columns)


def _graded(features: pd.DataFrame, name: str, symbols: Sequence[Symbol]) -> tuple[Rule, ...]:
    """A rule for each class of a column from 0 to 1 that has a feature, and one for features without a value."""
    values = pd.to_numeric(features[name]).to_numpy(float) if name in features else np.zeros(0)
    counts, _ = np.histogram(values[np.isfinite(values)], LIMITS)
    rules = []
    for lower, upper, symbol, count in zip(LIMITS[:-1], LIMITS[1:], symbols, counts, strict=True):
        condition = f'"{name}" >= {lower:g} AND "{name}" {"<=" if upper == LIMITS[-1] else "<"} {upper:g}'
        if count:
            rules.append(Rule(f"{lower:g} to {upper:g}", symbol, condition))
    return tuple(reversed(rules))


def _reviewed(*rest: Rule) -> tuple[Rule, ...]:
    """Rules for decided features, followed by the rules for the others."""
    accepted = Rule("accepted", _cased(GREEN, 0.8, "50"), "lower(\"status\") = 'accepted'")
    return accepted, Rule("rejected", _crossed(MIDDLE), "lower(\"status\") = 'rejected'"), *rest


def _landslides(features: pd.DataFrame) -> tuple[Rule, ...]:
    known = [name for name in ("confidence", "score_mean") if name in features and features[name].notna().any()]
    symbols = [_cased(colour, fill="30") for colour in WARM]
    classes = sorted(set(features["class"].dropna().astype(str))) if "class" in features else []
    if len(classes) > 1:
        return _reviewed(Rule("class, not reviewed", None, "ELSE", _classes(classes)))
    if not known:
        return _reviewed(Rule("not reviewed", symbols[-1], "ELSE"))
    grades = _graded(features, known[0], symbols)
    title = {"confidence": "confidence, not reviewed", "score_mean": "mean score, not reviewed"}[known[0]]
    unknown = Rule("unknown, or drawn by hand", _cased("255,255,255"), "ELSE")
    return _reviewed(Rule(title, None, "ELSE", (*grades, unknown)))


def _classes(names: Sequence[str]) -> tuple[Rule, ...]:
    """A rule for each class, and one for features without one."""
    rules = [
        Rule(name, _cased(COLOURS[number % len(COLOURS)], fill="30"), f'"class" = {_quoted(name)}')
        for number, name in enumerate(names)
    ]
    return (*rules, Rule("unknown, or drawn by hand", _cased("255,255,255"), "ELSE"))


def _quoted(text: str) -> str:
    """A text as a literal in an expression of QGIS."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _prompts(features: pd.DataFrame) -> tuple[Rule, ...]:
    drawn = Rule("drawn or changed by a person", _outlined(GREEN, 0.5), '"origin" = \'person\' OR "origin" IS NULL')
    rejected = Rule("rejected", _crossed(MIDDLE), "lower(\"status\") = 'rejected'")
    grades = _graded(features, "score", [_outlined(colour, 0.4, "dash") for colour in COOL])
    score = Rule("score", None, "ELSE", (*grades, Rule("unknown", _outlined(COOL[-1], 0.4, "dash"), "ELSE")))
    return (Rule("prompts: tick to show", None, "", (rejected, drawn, score), ticked=False),)


def _tiles(features: pd.DataFrame) -> tuple[Rule, ...]:
    failed = Rule("failed", _hatched("215,25,28"), "\"status\" = 'failed'")
    grades = _graded(features, "probability", [_outlined(colour, 0.3) for colour in GREY])
    probability = Rule("probability", None, "ELSE", (*grades, Rule("not asked about", _outlined(GREY[0], 0.2), "ELSE")))
    return (Rule("tiles: tick to show", None, "", (failed, probability), ticked=False),)


def _segments(features: pd.DataFrame) -> tuple[Rule, ...]:
    grades = _graded(features, "predicted_iou", [_outlined(colour, 0.4) for colour in COOL])
    return (Rule("predicted IoU", None, "", (*grades, Rule("unknown", _outlined(COOL[-1], 0.4), "ELSE"))),)


def _changes(_: pd.DataFrame) -> tuple[Rule, ...]:
    return (
        Rule("added", _cased(GREEN, fill="60"), "\"change\" = 'added'"),
        Rule("removed", _crossed("189,0,38"), "\"change\" = 'removed'"),
        Rule("changed", _cased(WARM[1], fill="40"), "ELSE"),
    )


def _windows(_: pd.DataFrame) -> tuple[Rule, ...]:
    """Windows in their order of review, the first ones thickest; reviewed ones are thin."""
    return (
        Rule("reviewed", _outlined(MIDDLE, 0.3, "dash"), "lower(\"status\") = 'reviewed'"),
        Rule("look here first: 1 to 5", _cased(COOL[1], 0.9), '"rank" <= 5'),
        Rule("then 6 to 20", _cased(COOL[1], 0.5), '"rank" <= 20'),
        Rule("then the rest", _outlined(COOL[2], 0.4), "ELSE"),
    )


_LAYERS: Mapping[str, Callable[[pd.DataFrame], tuple[Rule, ...]]] = {
    "landslides": _landslides,
    "candidates": lambda _: _reviewed(Rule("candidate", _outlined(WARM[0], 0.5, "dash"), "ELSE")),
    "rejected": lambda _: (Rule("rejected", _crossed(MIDDLE)),),
    "prompts": _prompts,
    "prompt_points": lambda _: (
        Rule(
            "points of prompts: tick to show",
            None,
            "",
            (Rule("outside", _dot(DARK, "cross_fill"), '"label" = 0'), Rule("inside", _dot(COOL[-2]), "ELSE")),
            ticked=False,
        ),
    ),
    "tiles": _tiles,
    "masked": lambda _: (Rule("left out by masks", _hatched(MIDDLE)),),
    "segments": _segments,
    "changes": _changes,
    "review": _windows,
    "review_sample": lambda _: (
        Rule("reviewed", _outlined(MIDDLE, 0.3, "dash"), "lower(\"status\") = 'reviewed'"),
        Rule("sample, around a polygon", _cased(COOL[2], 0.5), '"polygon" IS NOT NULL'),
        Rule("sample, outside polygons: draw what is missed", _cased(WARM[1], 0.7), "ELSE"),
    ),
    "truth": lambda _: (Rule("landslide", _cased(WARM[-1], fill="60")),),
}
"""Rules of every layer of an inventory, of the segments of a scene, and of the truth of a synthetic one."""

STYLED = frozenset(_LAYERS)
"""Names of layers that have a style."""
