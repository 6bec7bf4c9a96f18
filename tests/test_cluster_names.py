"""Which clusters are a class: unions by precision, chips with masks, activation maps; and sheets to look at."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geolabel.cli.main import run as command
from geolabel.clusters import Clusters, Source
from geolabel.datasets.pseudo_labels import ClusterFile, PseudoLabels, PseudoLabelWriter, load_clusters, save_clusters
from geolabel.engine import worker
from geolabel.errors import OptionError, SceneError
from geolabel.labeling.cluster_names import (
    COLUMNS,
    HEAD,
    LINE,
    SIDE,
    Tally,
    active,
    chip_masks,
    followed,
    picture,
    sample_regions,
    tally,
    write_sheet,
)
from geolabel.labels import IGNORE, LabelMap
from geolabel.testing import FakeLocalizer

NAMES = ("cluster_0", "cluster_1", "cluster_2")


def values() -> np.ndarray:
    """Three clusters in columns, a gap between them."""
    found = np.full((40, 40), IGNORE, np.uint8)
    found[:, :10], found[:, 12:22], found[:, 30:] = 0, 1, 2
    return found


@pytest.fixture
def pseudo(tmp_path: Path) -> Path:
    root = tmp_path / "pseudo"
    writer = PseudoLabelWriter(root, NAMES, {"method": "alps"})
    for name in ("a", "b"):
        image = np.zeros((40, 40, 3), np.uint8)
        image[:, 12:22] = 255
        writer.write(name, image, LabelMap(values(), np.ones((40, 40), np.float32), NAMES))
    writer.finish(["a", "b"])
    clusters = Clusters(np.zeros((3, 1), np.float32), np.asarray([2, 2, 2]), NAMES)
    save_clusters(root / "clusters.json", ClusterFile(clusters, Source("", 64), {"method": "alps"}))
    return root


def mask(path: Path, filled: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(filled.astype(np.uint8) * 255).save(path)


# --- which clusters --------------------------------------------------------------------------------------------------


def test_a_union_has_an_f1_score() -> None:
    counted = Tally(np.asarray([90, 10, 0]), np.asarray([10, 30, 50]), missed=20, images=1)
    assert counted.precision == [0.9, 0.25, 0]
    # 0 alone: 2 x 90 / (100 + 120); with 1: 2 x 100 / (140 + 120)
    assert counted.confusion([0]).f1 == pytest.approx(180 / 220)
    assert counted.confusion([0, 1]).f1 == pytest.approx(200 / 260)
    assert counted.best() == [0]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6), st.integers(0, 50))
def test_no_other_union_is_better(counts: list[tuple[int, int]], missed: int) -> None:
    counted = Tally(*np.asarray(counts, np.int64).T, missed=missed, images=1)
    best = counted.best()
    every = itertools.chain.from_iterable(
        itertools.combinations(range(len(counts)), size) for size in range(1, len(counts) + 1)
    )
    highest = max((counted.confusion(union).tp and counted.confusion(union).f1 for union in every), default=0)
    assert (counted.confusion(best).f1 if best else 0) == pytest.approx(highest)


def test_an_empty_cluster_has_no_precision_and_is_never_chosen() -> None:
    counted = Tally(np.asarray([0, 5]), np.asarray([0, 5]), missed=0, images=1)
    assert counted.precision == [None, 0.5]
    assert counted.best() == [1]


# --- where the truth comes from --------------------------------------------------------------------------------------


def test_masks_beside_images_are_the_truth_of_those_that_have_one(pseudo: Path, tmp_path: Path) -> None:
    inside = np.zeros((40, 40), bool)
    inside[:, 12:25] = True
    mask(tmp_path / "chips" / "masks" / "a.png", inside)
    counted = tally(followed(PseudoLabels(pseudo)), chip_masks(tmp_path / "chips"), 3)
    assert counted.images == 1
    assert counted.inside.tolist() == [0, 400, 0]
    assert counted.outside.tolist() == [400, 0, 400]
    assert counted.missed == 120


def test_a_table_says_which_chips_show_nothing(pseudo: Path, tmp_path: Path) -> None:
    chips = tmp_path / "chips"
    for name in ("a", "b"):
        mask(chips / "images" / f"{name}.png", values() == 0)
    mask(chips / "masks" / "a.png", values() == 1)
    (chips / "labels.csv").write_text("image,label\nimages/a.png,1\nimages/b.png,0\n", encoding="utf-8")
    counted = tally(followed(PseudoLabels(pseudo)), chip_masks(chips), 3)
    assert counted.images == 2
    assert counted.outside.tolist() == [800, 400, 800]


def test_a_truth_of_another_size_and_none_at_all_are_errors(pseudo: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="none of the images has a truth"):
        tally(followed(PseudoLabels(pseudo)), chip_masks(tmp_path), 3)
    mask(tmp_path / "masks" / "a.png", np.ones((30, 40), bool))
    with pytest.raises(SceneError, match=r"a has \(40, 40\) px and its truth \(30, 40\)"):
        tally(followed(PseudoLabels(pseudo)), chip_masks(tmp_path), 3)


def test_an_activation_map_is_a_truth_too(pseudo: Path) -> None:
    counted = tally(followed(PseudoLabels(pseudo)), active(FakeLocalizer(stride=2), "landslide"), 3)
    assert counted.best() == [1]
    assert counted.images == 2
    with pytest.raises(OptionError, match="does not know 'river': it knows landslide"):
        active(FakeLocalizer(), "river")


# --- the commands ----------------------------------------------------------------------------------------------------


def names(pseudo: Path) -> tuple[str, ...]:
    return load_clusters(pseudo).clusters.names


def test_a_person_names_clusters(pseudo: Path) -> None:
    assert command(["clusters", "name", str(pseudo), "--name", "1=landslide", "--name", "2 = bare rock"]) == 0
    assert names(pseudo) == ("cluster_0", "landslide", "bare rock")


def test_labelled_chips_and_a_localizer_name_clusters(pseudo: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    mask(tmp_path / "chips" / "masks" / "a.png", values() == 2)
    assert command(["clusters", "name", str(pseudo), "--chips", str(tmp_path / "chips"), "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "images": 1,
        "precision": 1,
        "recall": 1,
        "f1": 1,
        "cluster 2": "landslide",
    }
    monkeypatch.setattr(worker, "_load", lambda recipe: FakeLocalizer(stride=2))
    assert command(["clusters", "name", str(pseudo), "--localizer", "bundled", "--device", "cpu", "-q"]) == 0
    assert names(pseudo) == ("cluster_0", "landslide", "landslide")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "give one of --name, --chips and --localizer"),
        (["--name", "landslide"], "give the number of a cluster and its name"),
        (["--name", "7=landslide"], "there is no cluster 7"),
        (["--name", "1=landslide", "--name", "1=river"], "cluster 1 is named twice, landslide and river"),
    ],
)
def test_what_cannot_be_named_is_an_error(pseudo: Path, capsys, more: list[str], says: str) -> None:
    assert command(["clusters", "name", str(pseudo), *more]) == 2
    assert says in capsys.readouterr().err


def test_a_class_that_no_cluster_meets_is_an_error(pseudo: Path, tmp_path: Path, capsys) -> None:
    mask(tmp_path / "chips" / "masks" / "a.png", np.zeros((40, 40), bool))
    assert command(["clusters", "name", str(pseudo), "--chips", str(tmp_path / "chips")]) == 2
    assert "no cluster overlaps 'landslide' in the 1 images" in capsys.readouterr().err


def test_labels_of_other_clusters_are_refused(pseudo: Path, tmp_path: Path, capsys) -> None:
    content = load_clusters(pseudo)
    save_clusters(pseudo / "clusters.json", ClusterFile(content.clusters, content.source, {"method": "other"}))
    assert command(["clusters", "show", str(pseudo), "--out", str(tmp_path / "sheets")]) == 2
    assert "does not hold the labels that its clusters were made with" in capsys.readouterr().err


def test_there_is_a_sheet_of_every_cluster(pseudo: Path, tmp_path: Path) -> None:
    show = ["clusters", "show", str(pseudo), "--out", str(tmp_path / "sheets"), "-q"]
    assert command(show) == 0
    written = sorted(path.name for path in (tmp_path / "sheets").glob("[!.]*"))
    assert written == ["cluster_000.png", "cluster_001.png", "cluster_002.png"]
    assert command(show) == 1
    assert command([*show, "--overwrite"]) == 0


# --- sheets ----------------------------------------------------------------------------------------------------------


def test_a_picture_shows_the_region_in_its_outline() -> None:
    image = np.full((60, 60, 3), 90, np.uint8)
    region = np.zeros((60, 60), bool)
    region[20:40, 20:40] = True
    seen = picture(image, region)
    assert seen.shape == (SIDE, SIDE, 3)
    line = (seen == LINE).all(axis=2)
    rows, cols = np.flatnonzero(line.any(axis=1)), np.flatnonzero(line.any(axis=0))
    assert not line[SIDE // 2, SIDE // 2]
    assert (seen[SIDE // 2, SIDE // 2] == 90).all()
    assert abs(int(rows[0]) - (SIDE - 1 - int(rows[-1]))) <= 6
    assert abs(int(cols[0]) - (SIDE - 1 - int(cols[-1]))) <= 6


def test_regions_are_a_fair_sample(pseudo: Path) -> None:
    labels = PseudoLabels(pseudo)
    assert [len(found) for found in sample_regions(followed(labels), 3, 5)] == [2, 2, 2]
    first = sample_regions(followed(labels), 3, 1, seed=4)
    again = sample_regions(followed(labels), 3, 1, seed=4)
    assert [len(found) for found in first] == [1, 1, 1]
    assert all(np.array_equal(one[0], other[0]) for one, other in zip(first, again, strict=True))


def test_a_sheet_has_its_pictures_in_rows(tmp_path: Path) -> None:
    pictures = [np.full((SIDE, SIDE, 3), 10 * k, np.uint8) for k in range(COLUMNS + 1)]
    write_sheet(tmp_path / "sheet.png", pictures, "cluster 0")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[0] > HEAD + 2 * SIDE
    assert (pixels[HEAD + SIDE // 2, SIDE // 2] == 0).all()
    assert (pixels[HEAD + SIDE + SIDE // 2, SIDE // 2] == 10 * COLUMNS).all()
