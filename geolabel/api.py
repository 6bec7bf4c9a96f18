"""The public functions, one per command of the command line, and their argument and result records.

Names resolve on first use, so importing this module loads neither torch nor a raster library. ``geolabel`` has the same
names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geolabel.adaptation.adapt import Adaptation as Adaptation
    from geolabel.adaptation.adapt import adapt as adapt
    from geolabel.adaptation.estimate import estimate_adaptation as estimate_adaptation
    from geolabel.datasets.chips import ChipDataset as ChipDataset
    from geolabel.datasets.chips import read_chips as read_chips
    from geolabel.datasets.pseudo_labels import PseudoLabels as PseudoLabels
    from geolabel.doctor import Finding as Finding
    from geolabel.doctor import diagnose as diagnose
    from geolabel.engine.run_folder import RunFolderOptions as RunFolderOptions
    from geolabel.errors import GeolabelError as GeolabelError
    from geolabel.evaluation.chip_scores import score_chips as score_chips
    from geolabel.evaluation.evaluate import evaluate as evaluate
    from geolabel.extraction.estimate import estimate as estimate
    from geolabel.extraction.explain import explain as explain
    from geolabel.extraction.extract import extract as extract
    from geolabel.extraction.polygonize import polygonize as polygonize
    from geolabel.extraction.predict import predict as predict
    from geolabel.extraction.request import Networks as Networks
    from geolabel.extraction.request import Parameters as Parameters
    from geolabel.extraction.request import Reading as Reading
    from geolabel.extraction.segment import GridPrompts as GridPrompts
    from geolabel.extraction.segment import segment as segment
    from geolabel.extraction.work import Report as Report
    from geolabel.labeling.cut_chips import cut_chips as cut_chips
    from geolabel.labeling.synthesize import synthesize as synthesize
    from geolabel.methods import label as label
    from geolabel.parsing import Measure as Measure
    from geolabel.qgis.install import install_plugin as install_plugin
    from geolabel.qgis.install import uninstall_plugin as uninstall_plugin
    from geolabel.qgis.project import write_project as write_project
    from geolabel.review.difference import diff as diff
    from geolabel.review.estimate import estimate_review as estimate_review
    from geolabel.review.exporting import export as export
    from geolabel.review.merging import merge as merge
    from geolabel.review.next_windows import next_windows as next_windows
    from geolabel.review.sample import sample_review as sample_review
    from geolabel.review.stac import stac_item as stac_item
    from geolabel.review.summary import summarize as summarize
    from geolabel.viewing.page import view as view

_HOMES = {
    "Adaptation": "geolabel.adaptation.adapt",
    "ChipDataset": "geolabel.datasets.chips",
    "Finding": "geolabel.doctor",
    "GeolabelError": "geolabel.errors",
    "GridPrompts": "geolabel.extraction.segment",
    "Measure": "geolabel.parsing",
    "Networks": "geolabel.extraction.request",
    "Parameters": "geolabel.extraction.request",
    "PseudoLabels": "geolabel.datasets.pseudo_labels",
    "Reading": "geolabel.extraction.request",
    "Report": "geolabel.extraction.work",
    "RunFolderOptions": "geolabel.engine.run_folder",
    "adapt": "geolabel.adaptation.adapt",
    "cut_chips": "geolabel.labeling.cut_chips",
    "diagnose": "geolabel.doctor",
    "diff": "geolabel.review.difference",
    "estimate": "geolabel.extraction.estimate",
    "estimate_adaptation": "geolabel.adaptation.estimate",
    "estimate_review": "geolabel.review.estimate",
    "export": "geolabel.review.exporting",
    "evaluate": "geolabel.evaluation.evaluate",
    "explain": "geolabel.extraction.explain",
    "extract": "geolabel.extraction.extract",
    "install_plugin": "geolabel.qgis.install",
    "label": "geolabel.methods",
    "merge": "geolabel.review.merging",
    "next_windows": "geolabel.review.next_windows",
    "polygonize": "geolabel.extraction.polygonize",
    "predict": "geolabel.extraction.predict",
    "read_chips": "geolabel.datasets.chips",
    "sample_review": "geolabel.review.sample",
    "score_chips": "geolabel.evaluation.chip_scores",
    "segment": "geolabel.extraction.segment",
    "stac_item": "geolabel.review.stac",
    "summarize": "geolabel.review.summary",
    "synthesize": "geolabel.labeling.synthesize",
    "uninstall_plugin": "geolabel.qgis.install",
    "view": "geolabel.viewing.page",
    "write_project": "geolabel.qgis.project",
}

__all__ = [
    "Adaptation",
    "ChipDataset",
    "Finding",
    "GeolabelError",
    "GridPrompts",
    "Measure",
    "Networks",
    "Parameters",
    "PseudoLabels",
    "Reading",
    "Report",
    "RunFolderOptions",
    "adapt",
    "cut_chips",
    "diagnose",
    "diff",
    "estimate",
    "estimate_adaptation",
    "estimate_review",
    "evaluate",
    "explain",
    "export",
    "extract",
    "install_plugin",
    "label",
    "merge",
    "next_windows",
    "polygonize",
    "predict",
    "read_chips",
    "sample_review",
    "score_chips",
    "segment",
    "stac_item",
    "summarize",
    "synthesize",
    "uninstall_plugin",
    "view",
    "write_project",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
