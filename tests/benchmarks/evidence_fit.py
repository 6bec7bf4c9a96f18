"""Fit the heads that cut ground out of polygons by what is known beside the scene, and their confidence.

    python tests/benchmarks/evidence_fit.py DATA --folder DIR --out geolabel/weights/evidence.json --overwrite

Pixels of polygons are looked at in synthetic pairs with heights (seeds from 930000, every third with heights in cells
of 20 m), in pairs half of whose landslides were there before (seeds from 936000), and in real ground with real
landslides pasted on it (tests/benchmarks/pasted.py, images that trainings may use, on another day). A head of trees is
fitted for each kind of evidence; with ``--validate``, what it leaves of other ground and of landslides is printed too,
in cross-validation over scenes. The confidence is fitted to the polygons of other synthetic pairs (seeds from 938000),
which the heads have cut. DIR keeps scenes and tables: a second call resumes.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from pasted import write_pairs
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

import geolabel
from geolabel.errors import SceneError
from geolabel.evaluation.calibration import expected_calibration_error, reliability
from geolabel.extraction import pipeline
from geolabel.extraction.cutting import looked_at, see
from geolabel.extraction.evidence import Evidence
from geolabel.extraction.request import Networks
from geolabel.extraction.vectorize import Objects
from geolabel.extraction.work import Work
from geolabel.models.evidence_head import KINDS, LEAF, LOGIT_UNIT, EvidenceHeads, Head, Kind, Trees, logit, save_heads
from geolabel.outputs import replacing

PIXELS = 2000
"""Of a scene that a fit sees."""

CUT = 0.2
"""What is less likely landslide is cut out; the value is that of `--min-confidence`."""

TREES = {"max_depth": 4, "max_iter": 80, "learning_rate": 0.12, "min_samples_leaf": 300, "l2_regularization": 10}

AGAIN, MOVED = 6, 0.5
"""Pairs with landslides that were there before, and the share of these: a head that saw none would cut them out."""

COARSE_PX = 40
"""Side of the cells of coarse heights, pixels."""


def synthetic(folder: Path, seed: int, reactivated: float = 0.0) -> tuple[Path, Path]:
    """The scene of a synthetic pair and its heights; every third has coarse ones."""
    scene, coarse = folder / f"{seed}.tif", folder / f"{seed}_coarse.tif"
    dem = folder / f"{seed}_dem.tif"
    if not scene.exists():
        geolabel.synthesize(scene, size=1024, seed=seed, pair=True, reactivated=reactivated)
    if seed % 3:
        return scene, dem
    if not coarse.exists():
        _coarsen(dem, coarse)
    return scene, coarse


def _coarsen(path: Path, out: Path) -> None:
    with rasterio.open(path) as source:
        heights, profile = source.read(1), source.profile
    side = COARSE_PX
    height, width = (length // side * side for length in heights.shape)
    cells = heights[:height, :width].reshape(height // side, side, width // side, side).mean(axis=(1, 3))
    profile |= {"height": cells.shape[0], "width": cells.shape[1], "tiled": False}
    profile["transform"] = profile["transform"] @ profile["transform"].scale(side)
    for name in ("blockxsize", "blockysize"):
        profile.pop(name, None)
    with rasterio.open(out, "w", **profile) as target:
        target.write(cells, 1)


# --- pixels ----------------------------------------------------------------------------------------------------------


def look(scene: Path, dem: Path | None, truth: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Features and truth of pixels of the polygons of a scene, and how many there are; empty if it is refused."""
    found: dict[str, np.ndarray] = {}

    def sample(work: Work, objects: Objects, evidence: Evidence) -> dict[str, Any]:
        found.update(_sampled(work, objects, evidence, truth, seed))
        return measure(work, objects, evidence)

    measure = pipeline.measure
    before = scene.with_name(f"{scene.stem}_before.tif")
    with mock.patch.object(pipeline, "measure", sample):
        try:
            geolabel.extract(scene, before=before, dem=dem, cut=False, parameters=geolabel.Parameters(min_confidence=0))
        except SceneError as refused:
            print(f"{scene.name}: {refused}")
    return found


def _sampled(work: Work, objects: Objects, evidence: Evidence, truth: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    rng, plan = np.random.default_rng(seed), work.run.plan
    share = min(1.0, PIXELS / max(1, int(objects.areas.sum())))
    rows: list[dict[str, np.ndarray]] = []
    for index in range(len(plan.localize_tiles)):
        tile, core = plan.localize_tiles[index], plan.localize_tiles.core(index)
        spans = objects.spans.clip(core)[0]
        picked = (spans.paint(core, np.ones(len(spans), np.uint8)) > 0) & (
            rng.random((core.height, core.width)) < share
        )
        if picked.any():
            sight = see(plan, evidence.before, tile)
            kinds = list(looked_at(work.run, evidence.before, evidence.heights, sight, core, picked))
            known = np.logical_and.reduce([there for _, there, _ in kinds])
            row: dict[str, np.ndarray] = {"truth": truth[core.slices][picked][known]}
            for kind, _, columns in kinds:
                row |= {f"{kind}/{name}": values[known].astype(np.float32) for name, values in columns.items()}
            rows.append(row)
    found = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} if rows else {}
    return found | {"weight": np.full(len(found.get("truth", [])), 1 / share)}


@dataclass(frozen=True)
class _Scene:
    """A scene to look at: of a seed, or of a path without heights."""

    name: str
    folder: Path
    number: int
    seed: int | None = None
    reactivated: float = 0.0
    path: Path | None = None

    @property
    def kept(self) -> Path:
        return self.folder / f"{self.seed if self.path is None else self.path.stem}_pixels.npz"


def _keep_pixels(one: _Scene) -> None:
    if one.kept.exists():
        return
    scene, dem = (one.path, None) if one.path is not None else synthetic(one.folder, int(one.seed), one.reactivated)
    with rasterio.open(scene.with_name(f"{scene.stem}_truth.tif")) as source:
        truth = source.read(1) > 0
    with replacing(one.kept, overwrite=True) as part, part.open("wb") as file:
        np.savez_compressed(file, **look(scene, dem, truth, one.number))
    print(one.kept.name, flush=True)


def tables(data: Path, folder: Path, count: int, workers: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield the pixels of each scene."""
    real = write_pairs(data, folder / "pasted", "select", vary=True)[::2]
    wanted = [*((seed, 0.0) for seed in range(930_000, 930_000 + count))]
    wanted += [(seed, MOVED) for seed in range(936_000, 936_000 + AGAIN)]
    scenes = [_Scene(f"synthetic {seed}", folder, k, seed, again) for k, (seed, again) in enumerate(wanted)]
    scenes += [_Scene(f"pasted {path.stem}", folder, len(scenes) + k, path=path) for k, path in enumerate(real)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(_keep_pixels, scenes))
    for one in scenes:
        with np.load(one.kept) as stored:
            yield one.name, dict(stored)


def _columns(found: dict[str, dict[str, np.ndarray]], kind: Kind) -> tuple[np.ndarray, ...]:
    """Features (N, F), truth, weight, scene and kind of scene of the pixels that have a kind of evidence, and names."""
    names = next([key for key in table if key.startswith(f"{kind}/")] for table in found.values())
    having = {name: table for name, table in found.items() if names[0] in table and len(table["truth"])}
    features = np.concatenate([np.stack([table[key] for key in names], axis=1) for table in having.values()])
    truth, weight = (np.concatenate([table[key] for table in having.values()]) for key in ("truth", "weight"))
    scene = np.concatenate([np.full(len(table["truth"]), k) for k, table in enumerate(having.values())])
    drawn = np.concatenate([np.full(len(t["truth"]), name.startswith("synthetic")) for name, t in having.items()])
    return features, truth, weight, scene, drawn, np.asarray([key.partition("/")[2] for key in names])


def fit_head(found: dict[str, dict[str, np.ndarray]], kind: Kind, *, validate: bool) -> tuple[Head, dict[str, float]]:
    """A head for a kind of evidence, and what it leaves of other ground in cross-validation over scenes."""
    features, truth, weight, scene, drawn, names = _columns(found, kind)
    model = HistGradientBoostingClassifier(**TREES, random_state=0)
    figures: dict[str, float] = {"pixels": len(truth), "scenes": int(scene.max()) + 1}
    if validate:
        given = {"groups": scene, "cv": GroupKFold(3), "method": "predict_proba", "params": {"sample_weight": weight}}
        held = cross_val_predict(model, features, truth, **given)[:, 1]
        for which, part in (("synthetic", drawn), ("pasted", ~drawn)):
            stays, other, slides = held >= CUT, part & ~truth, part & truth
            figures[f"{which}/left"] = round(float(weight[other & stays].sum() / weight[other].sum()), 4)
            figures[f"{which}/kept"] = round(float(weight[slides & stays].sum() / weight[slides].sum()), 4)
    model.fit(features, truth, sample_weight=weight)
    return Head(_trees(model, tuple(names.tolist())), CUT, (0.0, 1.0, 0.0, 0.0)), figures


def _trees(model: HistGradientBoostingClassifier, names: tuple[str, ...]) -> Trees:
    nodes = [stage[0].nodes for stage in model._predictors]
    firsts = np.cumsum([0, *(len(part) for part in nodes)])
    table = np.concatenate(nodes)
    first = np.repeat(firsts[:-1], [len(part) for part in nodes])
    leaf = table["is_leaf"].astype(bool)
    thresholds = np.where(leaf, 0.0, table["num_threshold"])
    return Trees(
        names=names,
        roots=tuple(firsts[:-1].tolist()),
        feature=tuple(np.where(leaf, LEAF, table["feature_idx"]).tolist()),
        threshold=tuple(float(f"{value:.6g}") for value in thresholds),
        left=tuple(np.where(leaf, 0, first + table["left"]).tolist()),
        right=tuple(np.where(leaf, 0, first + table["right"]).tolist()),
        value=tuple(np.where(leaf, np.rint(table["value"] * LOGIT_UNIT), 0).astype(int).tolist()),
        start=round(float(model._baseline_prediction.ravel()[0]) * LOGIT_UNIT),
    )


# --- confidence ------------------------------------------------------------------------------------------------------


def polygons(scene: Path, kind: Kind) -> np.ndarray:
    """(K, 3) confidence without evidence, evidence, and whether right, of the polygons that heads have cut."""
    given = {"before": scene.with_name(f"{scene.stem}_before.tif"), "dem": scene.with_name(f"{scene.stem}_dem.tif")}
    asked = given if kind == "both" else {kind: given[kind]}
    out = scene.with_name(f"{scene.stem}_{kind}.gpkg")
    geolabel.extract(scene, out=out, overwrite=True, parameters=geolabel.Parameters(min_confidence=0), **asked)
    found = [gpd.read_file(out, layer=layer) for layer in ("landslides", "candidates")]
    whole = shapely.union_all(gpd.read_file(scene.with_name(f"{scene.stem}_truth.gpkg")).geometry.to_numpy())
    rows = []
    for table in found:
        shapes = table.geometry.to_numpy()
        right = shapely.area(shapely.intersection(shapes, whole)) >= 0.5 * shapely.area(shapes)
        rows.append(np.stack([table["confidence"].to_numpy(float), table["evidence"].to_numpy(float), right], axis=1))
    return np.concatenate(rows)


def fit_confidence(
    folder: Path, heads: EvidenceHeads, count: int, workers: int
) -> tuple[EvidenceHeads, dict[str, Any]]:
    """Fit the confidence of each kind to the polygons of synthetic pairs that the heads were not fitted to."""
    fitted, figures = dict(heads.heads), {}
    seeds = range(938_000, 938_000 + count)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        found = list(pool.map(_tried, *zip(*((folder, seed, heads) for seed in seeds), strict=True)))
    for kind in KINDS:
        parts = [part[kind] for part in found]
        rows = np.concatenate(parts)
        number = np.concatenate([np.full(len(part), k) for k, part in enumerate(parts)])
        known = np.isfinite(rows).all(axis=1)
        below = (rows[known, 1] < CUT).astype(float)
        logits = np.column_stack([logit(rows[known, :2]), below])
        right, number = rows[known, 2] > 0, number[known]
        model = LogisticRegression(C=1.0)
        held = cross_val_predict(model, logits, right, groups=number, cv=GroupKFold(4), method="predict_proba")[:, 1]
        model.fit(logits, right)
        confidence = (float(model.intercept_[0]), *(float(value) for value in model.coef_[0]))
        fitted[kind] = replace(fitted[kind], confidence=tuple(round(value, 5) for value in confidence))
        error = expected_calibration_error(reliability(held, right))
        figures[kind] = {"polygons": len(right), "right": int(right.sum()), "calibration_error": round(error, 4)}
        figures[kind]["auc"] = round(float(roc_auc_score(right, held)), 4)
    return replace(heads, heads=fitted), figures


def _tried(folder: Path, seed: int, heads: EvidenceHeads) -> dict[Kind, np.ndarray]:
    """Polygons of a pair by kind of evidence, kept by what the heads are."""
    digest = hashlib.sha256(repr(heads.heads).encode()).hexdigest()[:12]
    kept = folder / f"{seed}_polygons_{digest}.npz"
    if not kept.exists():
        scene, _ = synthetic(folder, seed)
        found = {}
        for kind in KINDS:
            with (
                mock.patch("geolabel.extraction.cutting.heads_for", return_value=heads),
                mock.patch("geolabel.extraction.result.with_evidence", side_effect=lambda confidence, *_: confidence),
            ):
                try:
                    found[kind] = polygons(scene, kind)
                except SceneError as refused:
                    print(f"{scene.name}: {refused}")
                    found[kind] = np.zeros((0, 3))
        with replacing(kept, overwrite=True) as part, part.open("wb") as file:
            np.savez_compressed(file, **found)
        print(kept.name, flush=True)
    with np.load(kept) as stored:
        return {kind: stored[kind] for kind in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--count", type=int, default=24, help="synthetic pairs")
    parser.add_argument("--confidence-count", type=int, default=12)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--workers", type=int, default=1, help="processes; the result is the same")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found = dict(tables(given.data, given.folder, given.count, given.workers))
    heads: dict[Kind, Head] = {}
    fitted: dict[str, Any] = {"scenes": {"synthetic": given.count, "reactivated": AGAIN}}
    fitted["scenes"]["pasted"] = sum(name.startswith("pasted") for name in found)
    for kind in KINDS:
        heads[kind], fitted[kind] = fit_head(found, kind, validate=given.validate)
        print(kind, fitted[kind], flush=True)
    localizer = Networks().recipes()[0].sha256
    whole = EvidenceHeads(heads, localizer, fitted)
    whole, figures = fit_confidence(given.folder, whole, given.confidence_count, given.workers)
    print("confidence", figures)
    save_heads(given.out, replace(whole, fitted=fitted | {"confidence": figures}), overwrite=given.overwrite)


if __name__ == "__main__":
    main()
