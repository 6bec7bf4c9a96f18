"""The confidence model: by hand, against scikit-learn, and as it ships."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from geolabel.cli.train import train
from geolabel.engine import worker
from geolabel.engine.tasks import Silent
from geolabel.errors import GeolabelError, WeightsError
from geolabel.evaluation import confidence as fitting
from geolabel.evaluation import examples
from geolabel.evaluation.confidence import NAMES, Polygons, Source, collect, fit
from geolabel.evaluation.examples import Example
from geolabel.extraction.request import Networks
from geolabel.models import registry
from geolabel.models.confidence import (
    FEATURES,
    ConfidenceModel,
    FittedConfidence,
    confidence_of,
    features,
    load_confidence,
    save_confidence,
    shipped,
)
from geolabel.testing import FakeLocalizer, FakeSegmenter

MODEL = ConfidenceModel(("score_mean", "log_area_px"), (0.5, 2.0), (0.25, 1.0), (1.0, -2.0), 0.5)


def table(**columns) -> pd.DataFrame:
    base = {"score_mean": 0.75, "score_max": 0.9, "predicted_iou": 0.8, "stability": 0.7, "activation_mean": 0.6}
    base |= {"activation_share": 0.0, "area_m2": 250.0, "gsd_m": 0.5, "elongation": 2.0}
    return pd.DataFrame({name: np.atleast_1d(columns.get(name, value)) for name, value in base.items()})


def test_confidence_by_hand():
    # 250 m2 are 1000 px: 0.5 + 1 * (0.75 - 0.5) / 0.25 - 2 * (3 - 2) = -0.5
    assert MODEL(table()).tolist() == pytest.approx([1 / (1 + math.exp(0.5))])


def test_features_by_hand():
    found = dict(zip(FEATURES, features(table(), tuple(FEATURES))[0], strict=True))
    assert found["log_area_m2"] == pytest.approx(math.log10(250))
    assert found["log_elongation"] == pytest.approx(math.log10(2))
    assert found["stability"] == 0.7


@pytest.mark.parametrize("missing", [{"score_mean": np.nan}, {"area_m2": 0.0}, {"area_m2": np.nan}])
def test_what_is_not_known_has_no_confidence(missing):
    assert np.isnan(MODEL(table(**missing))).all()


def test_null_columns_have_no_confidence():
    assert np.isnan(MODEL(table().assign(score_mean=None))).all()
    assert MODEL(table()[:0]).shape == (0,)


def test_a_model_that_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="beauty"):
        ConfidenceModel(("beauty",), (0,), (1,), (1,), 0)
    with pytest.raises(ValueError, match="every feature"):
        ConfidenceModel(("score_mean",), (0, 1), (1,), (1,), 0)
    for numbers in ((float("nan"), 1, 1), (0, 0, 1), (0, 1, float("inf"))):
        with pytest.raises(ValueError, match="finite numbers and positive scales"):
            ConfidenceModel(("score_mean",), *((number,) for number in numbers), 0)


def test_a_model_survives_its_file(tmp_path):
    found = FittedConfidence(MODEL, {"localizer": "a", "segmenter": "b"}, {"polygons": 3})
    save_confidence(tmp_path / "model.json", found, overwrite=False)
    assert load_confidence(tmp_path / "model.json") == found


NOTHING = (
    '{"features": [], "means": [], "scales": [], "coefficients": [], "intercept": 0, "networks": {}, "fitted": {}}'
)
WORDS = (
    '{"features": ["score_mean"], "means": [[]], "scales": [1], "coefficients": [1], "intercept": 0, '
    '"networks": {}, "fitted": {}}'
)


@pytest.mark.parametrize("text", ["", "[]", '{"features": ["beauty"]}', '{"features": []}', NOTHING, WORDS])
def test_what_is_no_model_is_refused(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(WeightsError, match="is not a confidence model"):
        load_confidence(tmp_path / "model.json")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_confidence(tmp_path / "missing.json")


def polygons(count=600, scenes=12) -> Polygons:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(count, len(NAMES)))
    right = rng.random(count) < 1 / (1 + np.exp(-2 * values[:, 0] + values[:, 3]))
    return Polygons(values, right, rng.integers(0, scenes, count), rng.uniform(0.5, 2, count))


def test_the_fit_is_scikit_learns(monkeypatch):
    data = polygons()
    model, figures = fit(data)
    scaler = StandardScaler().fit(data.features)
    oracle = LogisticRegression().fit(
        scaler.transform(data.features), data.right, sample_weight=data.weight / data.weight.mean()
    )
    monkeypatch.setattr("geolabel.models.confidence.FEATURES", {n: lambda a, n=n: np.asarray(a[n]) for n in NAMES})
    said = model(dict(zip(NAMES, data.features.T, strict=True)))
    assert said == pytest.approx(oracle.predict_proba(scaler.transform(data.features))[:, 1], abs=1e-6)
    assert figures["polygons"] == 600
    assert figures["auc"] > 0.8
    assert figures["calibration_error"] < 0.1


def test_too_few_polygons_are_no_base_for_a_fit():
    with pytest.raises(GeolabelError, match=r"give more --scenes"):
        fit(polygons(40))


@pytest.fixture
def stand_ins(monkeypatch):
    def load(recipe):
        return FakeLocalizer() if recipe.role == "localizer" else FakeSegmenter()

    monkeypatch.setattr(worker, "_load", load)


def bright(name: str, slides: bool) -> Example:
    ids = np.zeros((96, 96), np.int32)
    ids[16:48, 24:64] = 1
    rgb = np.where((ids > 0)[..., None], 220, 30).astype(np.uint8).repeat(3, axis=2)
    return Example(name, rgb, ids if slides else np.zeros_like(ids))


def test_polygons_of_scenes_are_judged(stand_ins):
    sources = [Source("slides", [bright("slide", True)] * 2, 0.5), Source("roofs", [bright("roof", False)], 0.5, 0.25)]
    found = collect(sources, Networks(), Silent())
    assert found.right.tolist() == [True, True, False]
    assert found.scene.tolist() == [0, 1, 2]
    assert found.weight.tolist() == [0.5, 0.5, 0.25]
    assert found.features.shape == (3, len(NAMES))
    area = dict(zip(NAMES, found.features[0], strict=True))["log_area_px"]
    assert 10**area == pytest.approx(32 * 40, rel=0.2)


def test_the_command_writes_the_model_of_the_networks(stand_ins, monkeypatch, tmp_path):
    monkeypatch.setattr(fitting, "fit", lambda _: (MODEL, {"auc": 0.5}))
    monkeypatch.setattr(examples.SyntheticScenes, "__iter__", lambda some: iter([bright("a", True)] * len(some)))
    out = tmp_path / "model.json"
    done = CliRunner().invoke(train, ["confidence", "--out", str(out), "--scenes", "5", "--json"])
    assert done.exit_code == 0, done.output
    found = load_confidence(out)
    assert found.model == MODEL
    assert found.networks == {r.role: r.sha256 for r in Networks().recipes()}
    assert found.fitted["data"] == ["5 synthetic scenes of geolabel (seeds 800000 to 800004)"]
    assert json.loads(done.stdout)["auc"] == 0.5


# as shipped


def test_the_shipped_model_belongs_to_the_shipped_networks():
    """Where this fails, the networks have changed: run geolabel train confidence again."""
    found = load_confidence(shipped())
    assert found.networks == {p.role: registry.verify(p) for p in registry.lookup("bundled")}
    assert found.fitted["polygons"] > 100


def test_the_shipped_model_knows_only_its_own_networks():
    networks = load_confidence(shipped()).networks
    said = confidence_of(table(), networks, "apsam")
    assert 0 < said[0] < 1
    assert np.isnan(confidence_of(table(), networks | {"segmenter": "0" * 64}, "apsam")).all()
    assert np.isnan(confidence_of(table(), networks, "s2c")).all()


def test_stronger_evidence_is_never_less_sure():
    """Of two polygons alike but for the activation under them, the shipped model trusts the stronger one."""
    low, high = (
        confidence_of(table(activation_mean=a), load_confidence(shipped()).networks, "apsam")[0] for a in (0.3, 0.9)
    )
    assert high > low
