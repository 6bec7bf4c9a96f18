"""Clusters: nearest centre, names, files; online k-means and the number of clusters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from geolabel.clusters import Clusters, Source
from geolabel.datasets.pseudo_labels import ClusterFile, load_clusters, save_clusters
from geolabel.errors import OptionError, WeightsError
from geolabel.masks import Filters
from geolabel.training.clusters import BATCH, fit_clusters, predict_count

SOURCE = Source("0" * 64, 512, 8, Filters(0.25, 0.15))


def clusters(*centres: list[float], normalised: bool = False) -> Clusters:
    names = tuple(f"cluster_{k}" for k in range(len(centres)))
    return Clusters(np.asarray(centres, np.float32), np.ones(len(centres), np.int64), names, normalised)


def blobs(count: int, masks: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(count, size=masks)
    centres = 10 * np.eye(count, 8)
    return (centres[truth] + random.normal(size=(masks, 8))).astype(np.float32), truth


# --- centres and names -----------------------------------------------------------------------------------------------


def test_the_nearest_centre_has_the_mask_and_ties_go_to_the_lower_number() -> None:
    found = clusters([0, 0], [4, 0])
    assert found.assign(np.asarray([[1, 0], [2, 3], [3, 0]], np.float32)).tolist() == [0, 0, 1]
    assert found.distances(np.asarray([[1, 2]], np.float32)).tolist() == [[5, 13]]


def test_directions_are_compared_where_features_are_normalised() -> None:
    far_along_the_first_axis = np.asarray([[9, 4], [0, 0]], np.float32)
    assert clusters([1, 0], [0, 1], normalised=True).assign(far_along_the_first_axis).tolist() == [0, 0]
    assert clusters([1, 0], [9, 9], normalised=False).assign(far_along_the_first_axis).tolist() == [1, 0]


def test_without_names_the_classes_are_the_clusters() -> None:
    found = clusters([0], [1])
    assert found.classes == ("cluster_0", "cluster_1")
    assert found.values(np.asarray([[1], [0]], np.float32)).tolist() == [1, 0]


def test_named_clusters_are_united_and_the_rest_is_background() -> None:
    found = clusters([0], [1], [2], [3]).named({1: "river", 3: "landslide"}).named({0: "landslide", 2: "background"})
    assert found.classes == ("background", "landslide", "river")
    assert found.values(np.asarray([[0], [1], [2], [3]], np.float32)).tolist() == [1, 2, 0, 1]
    assert found.of_class("landslide").tolist() == [0, 3]


def test_a_wrong_name_is_an_error() -> None:
    found = clusters([0], [1])
    with pytest.raises(OptionError, match="no cluster 2: they are numbered 0 to 1"):
        found.named({2: "river"})
    with pytest.raises(OptionError, match="must not be empty"):
        found.named({0: " "})
    with pytest.raises(OptionError, match=r"no cluster is called 'landslide' \(named are none\)"):
        found.of_class("landslide")


def test_there_are_no_more_clusters_than_a_label_map_holds() -> None:
    with pytest.raises(OptionError, match="256 clusters: a label map holds 1 to 255"):
        clusters(*([k] for k in range(256)))
    with pytest.raises(OptionError, match="256 clusters: a label map holds 1 to 255"):
        fit_clusters(lambda _: [], 256)


def test_a_gate_of_nothing_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"share 0 of an image"):
        Source("", 512, max_share=0)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_holds_all_of_it_exactly(tmp_path: Path) -> None:
    centres = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    made = Clusters(centres, np.asarray([3, 2, 0]), ("cluster_0", "landslide", "cluster_2"), normalised=True)
    save_clusters(tmp_path / "clusters.json", ClusterFile(made, SOURCE, {"method": "alps"}, {"masks": 5}))
    found = load_clusters(tmp_path)  # the folder will do
    assert np.array_equal(found.clusters.centres, centres)
    assert found.clusters.as_dict() == made.as_dict()
    assert (found.source, found.provenance, found.results) == (SOURCE, {"method": "alps"}, {"masks": 5})


@pytest.mark.parametrize(
    "change",
    [
        {"clusters": None},
        {"clusters": {"names": ["a"]}},
        {"source": {}},
        {"source": {"speed": 1}},
        {"format": "one"},
        {"provenance": 3},
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "clusters.json"
    save_clusters(path, ClusterFile(clusters([0]), SOURCE))
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(WeightsError, match="cannot be read as clusters"):
        load_clusters(path)


def test_a_missing_a_broken_and_a_newer_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist: make clusters with geolabel label"):
        load_clusters(tmp_path)
    path = tmp_path / "clusters.json"
    path.write_text("[", encoding="utf-8")
    with pytest.raises(WeightsError, match="cannot be read as clusters"):
        load_clusters(path)
    save_clusters(path, ClusterFile(clusters([0]), SOURCE))
    path.write_text(path.read_text(encoding="utf-8").replace('"format": 1', '"format": 2'), encoding="utf-8")
    with pytest.raises(WeightsError, match="has format 2, this geolabel reads 1: upgrade it"):
        load_clusters(path)


# --- learning --------------------------------------------------------------------------------------------------------


def split(features: np.ndarray, size: int = 7) -> list[np.ndarray]:
    return [features[start : start + size] for start in range(0, len(features), size)]


def test_blobs_are_told_apart_the_largest_first_and_the_same_again() -> None:
    features, truth = blobs(4, 3000)
    found, inertia = fit_clusters(lambda _: split(features), 4, seed=1)
    again, _ = fit_clusters(lambda _: split(features), 4, seed=1)
    assert adjusted_rand_score(truth, found.assign(features)) == 1
    assert np.array_equal(found.centres, again.centres)
    assert found.sizes.tolist() == sorted(np.bincount(truth).tolist(), reverse=True)
    whole = KMeans(4, n_init=5, random_state=0).fit(features)
    assert inertia == pytest.approx(whole.inertia_ / len(features), rel=0.02)


def test_images_with_few_masks_fill_the_first_batch_together() -> None:
    features, truth = blobs(5, 40)
    parts = [features[k : k + 1] for k in range(40)] + [features[:0]]
    found, _ = fit_clusters(lambda _: parts, 5, passes=5, seed=1)
    assert (len(found), int(found.sizes.sum())) == (5, 40)
    assert adjusted_rand_score(truth, found.assign(features)) > 0.7


def test_memory_is_that_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from sklearn.cluster import MiniBatchKMeans

    fit = MiniBatchKMeans.partial_fit
    monkeypatch.setattr(MiniBatchKMeans, "partial_fit", lambda self, x: seen.append(len(x)) or fit(self, x))
    features, _ = blobs(3, 5 * BATCH)
    fit_clusters(lambda _: iter(split(features, 100)), 3, passes=2)
    assert max(seen) < BATCH + 100
    assert sum(seen) == 2 * len(features)


def test_more_clusters_than_masks_is_an_error() -> None:
    features, _ = blobs(2, 3)
    with pytest.raises(OptionError, match="4 clusters of 3 masks: ask for fewer, or give more images"):
        fit_clusters(lambda _: [features], 4)
    with pytest.raises(OptionError, match="2 clusters of 0 masks in all images: give more images"):
        fit_clusters(lambda _: [], 2)
    with pytest.raises(OptionError, match="0 passes"):
        fit_clusters(lambda _: [features], 2, passes=0)


def test_a_cluster_that_no_mask_is_near_to_is_counted_as_empty() -> None:
    same = np.zeros((20, 3), np.float32)
    found, inertia = fit_clusters(lambda _: [same], 2, passes=1)
    assert found.sizes.tolist() == [20, 0]
    assert inertia == 0


@pytest.mark.parametrize(("count", "masks"), [(2, 300), (5, 1500)])
def test_the_number_of_clusters_is_found(count: int, masks: int) -> None:
    features, _ = blobs(count, masks)
    assert predict_count(split(features)) == count
    assert predict_count(split(features), normalised=True) == count


def test_more_clusters_than_are_looked_for_are_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    features, _ = blobs(5, 1500)
    assert predict_count(split(features)) == 5
    assert not caplog.messages
    monkeypatch.setattr("geolabel.training.clusters.COMPONENTS", 3)
    assert predict_count(split(features)) == 3
    assert "3 clusters, the maximum for 1500 masks: there may be more" in caplog.text


def test_one_mask_has_no_clusters() -> None:
    with pytest.raises(OptionError, match=r"too few masks to cluster \(1 in all images\): give more images"):
        predict_count([np.zeros((1, 4), np.float32)])
