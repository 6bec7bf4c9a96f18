"""Rows of the bench on stand-in networks and pictures whose figures are known by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from geolabel.cli.bench import SECTIONS, bench
from geolabel.engine import worker
from geolabel.errors import OptionError
from geolabel.evaluation import (
    baselines,
    examples,
    network_scores,
    quality,
    scene_scores,
    scenes,
    sections,
    steps,
)
from geolabel.evaluation.bench import Bench
from geolabel.evaluation.calibration import draw_curves, expected_calibration_error, reliability
from geolabel.evaluation.examples import Data, Example, Files, SyntheticScenes
from geolabel.evaluation.scene_scores import SceneScores, Truth
from geolabel.evaluation.scenes import Answer
from geolabel.evaluation.steps import OURS, Measurement, Section
from geolabel.extraction.request import Networks
from geolabel.metrics import Boundary, Confusion, WidthCounts
from geolabel.models import loading, registry
from geolabel.models.measured_accuracy import load_measured
from geolabel.testing import FakeLocalizer, FakeSegmenter


def field(size=(64, 64), at=(16, 8), slide=(16, 24), name="field") -> Example:
    """A bright, bare rectangle on dark green ground."""
    ids = np.zeros(size, np.int32)
    ids[at[0] : at[0] + slide[0], at[1] : at[1] + slide[1]] = 1
    rgb = np.where((ids > 0)[..., None], [200, 180, 160], [40, 90, 30]).astype(np.uint8)
    return Example(name, rgb, ids)


def write_chips(folder: Path, pictures: list[Example]) -> Path:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for one in pictures:
        Image.fromarray(one.rgb).save(folder / "images" / f"{one.name}.png")
        if one.truth.any():
            Image.fromarray(one.truth.astype(np.uint8) * 255).save(folder / "masks" / f"{one.name}.png")
    return folder


def figures(measured: list[Measurement], name: str) -> dict[str, dict[str, float]]:
    return {m.method: m.figures[name] for m in measured}


# examples


def test_the_split_is_by_name(tmp_path):
    names = ["Landslide003", "Landslide004", "Landslide010"]
    write_chips(tmp_path, [field(name=name) for name in names])
    assert [e.name for e in examples.outlined(tmp_path, "report")] == ["Landslide003", "Landslide010"]
    assert [e.name for e in examples.outlined(tmp_path, "select")] == ["Landslide004"]
    # by sha1sum: 16 is 1 modulo 5, so the sum of the hexadecimal digits tells
    assert [examples.fold_of(name) for name in ("ls_0018", "nls_1496")] == [0, 1]


def test_chips_to_choose_by_are_a_fifth_of_those_to_train_on(tmp_path):
    write_chips(tmp_path / "train", [field(name=f"chip{k}") for k in range(10)])
    write_chips(tmp_path / "val", [field(name="other")])
    chosen = [e.name for e in examples.chips(tmp_path, "select")]
    assert chosen == [f"chip{k}" for k in range(10) if examples.fold_of(f"chip{k}") == 0]
    assert [e.name for e in examples.chips(tmp_path, "report")] == ["other"]


def test_folders_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(OptionError, match="has no image of this split"):
        examples.outlined(tmp_path, "report")
    with pytest.raises(OptionError, match="contains none of the folders sichuan"):
        examples.Data.inside(tmp_path)
    with pytest.raises(OptionError, match="has no GeoTIFF"):
        examples.tiffs(tmp_path / "missing")
    write_chips(tmp_path, [field()])
    Image.new("L", (9, 9), 255).save(tmp_path / "masks" / "field.png")
    with pytest.raises(OptionError, match="one size"):
        list(Files((tmp_path / "images" / "field.png",), tmp_path / "masks"))


def test_prompts_are_box_and_centroid():
    prompts = examples.landslide_prompts(field().ids, minimum=64)
    assert prompts.boxes.tolist() == [[8, 16, 32, 32]]
    assert prompts.points.tolist() == [[[19.5, 23.5]]]
    assert len(examples.landslide_prompts(field().ids, minimum=16 * 24 + 1)) == 0


def test_satellite_chips_for_reports_are_those_of_validation(tmp_path):
    write_chips(tmp_path / "train", [field(name=f"image_{k}") for k in range(10)])
    write_chips(tmp_path / "validation", [field(name="other")])
    chosen = [e.name for e in examples.satellite_chips(tmp_path, "select")]
    assert chosen == [f"image_{k}" for k in range(10) if examples.fold_of(f"image_{k}") == 0]
    assert [e.name for e in examples.satellite_chips(tmp_path, "report")] == ["other"]


def test_images_without_landslides_are_split_by_hash_and_flights_as_a_whole(tmp_path):
    names = [*(f"field{k}" for k in range(20)), *(f"{f}_{k}" for f in ("brighton", "caliterra") for k in range(12))]
    (tmp_path / "drone_0p15m" / "deep").mkdir(parents=True)
    for name in names:
        (tmp_path / "drone_0p15m" / "deep" / f"{name}.jpg").touch()
    folds = {name: examples.fold_of(name) for name in names}
    kept, chosen = (
        {path.stem for path in examples.without_landslides(tmp_path, split)["drone_0p15m"].images}
        for split in ("report", "select")
    )
    fields = {name for name in names if name.startswith("field")}
    assert kept & fields == {name for name in fields if folds[name] == 0}
    assert kept - fields == {name for name in names if name.startswith("brighton")}
    assert chosen == {name for name in names if folds[name] == 1 and not name.startswith("brighton")}
    assert examples.without_landslides(tmp_path, "report")["drone_0p15m"].gsd == 0.15


def test_the_size_of_pixels_is_in_the_name_of_the_folder():
    assert examples.stated_gsd("terraces_10m") == 10
    assert examples.stated_gsd("ucmerced") == 0.3
    with pytest.raises(OptionError, match="as somewhere_0p3m"):
        examples.stated_gsd("somewhere")


def test_a_shrunk_example_has_means_and_majorities():
    one = field((64, 64), at=(16, 8), slide=(16, 22))
    small = examples.shrunk(one, 4)
    assert small.rgb.shape == (16, 16, 3)
    assert small.rgb[5, 3].tolist() == [200, 180, 160]
    assert small.rgb[5, 7].tolist() == [120, 135, 95]  # half bare, half green
    assert small.truth[4:8, 2:8].all()
    assert small.truth.sum() == 4 * 6  # half of a pixel is enough


def test_an_off_centre_crop_holds_the_centroid_and_keeps_the_pixels():
    offsets = set()
    for k in range(20):
        cut = examples.off_centre(field((60, 80), at=(22, 28), name=f"chip {k}"))
        assert cut.rgb.shape == (36, 48, 3)
        assert cut.ids[cut.ids > 0].size >= 8 * 12  # a quarter of the landslide at least
        offsets.add(tuple(np.argwhere(cut.truth).mean(axis=0)))
        again = examples.off_centre(field((60, 80), at=(22, 28), name=f"chip {k}"))
        assert np.array_equal(cut.rgb, again.rgb)
    assert len(offsets) > 10


# baselines


def test_excess_green_by_hand():
    rgb = np.array([[[0, 0, 0], [10, 20, 10], [0, 255, 0], [255, 0, 0]]], np.uint8)
    assert baselines.excess_green(rgb).tolist() == [[0, 0.5, 2, -1]]


def test_otsu_finds_the_bare_ground_and_nothing_where_nothing_differs():
    one = field()
    assert np.array_equal(baselines.otsu_bare(one.rgb, np.ones(one.ids.shape, bool)), one.truth)
    plain = np.full((8, 8, 3), 90, np.uint8)
    assert not baselines.otsu_bare(plain, np.ones((8, 8), bool)).any()
    assert not baselines.otsu_bare(one.rgb, np.zeros(one.ids.shape, bool)).any()


def test_otsu_finds_the_bright_ground_and_nothing_where_nothing_differs():
    one = field()
    assert np.array_equal(baselines.otsu_bright(one.rgb, np.ones(one.ids.shape, bool)), one.truth)
    assert not baselines.otsu_bright(np.full((8, 8, 3), 90, np.uint8), np.ones((8, 8), bool)).any()


def test_cells_average_pixels_and_repeat_the_frame():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert baselines.cell_means(values, 2).tolist() == [[2.0, 3.5]]  # (0 1 3 4), (2 2 5 5)


def test_surround_minus_centre_by_hand():
    values = np.zeros((4, 4), np.float32)
    values[1:3, 1:3] = 2
    assert baselines.surround_minus_centre(values) == -2
    assert baselines.surround_minus_centre(np.ones((1, 1), np.float32)) == 0


def test_baselines_outline_a_plain_landslide():
    one = field()
    prompts = examples.landslide_prompts(one.ids, 64)
    box, point = prompts.boxes[0] + [-4, -4, 4, 4], prompts.points[0, 0]
    for found in (baselines.walk(one.rgb, box, point), baselines.cut(one.rgb, box)):
        assert (found & one.truth).sum() / (found | one.truth).sum() > 0.9
    whole = np.array([0.0, 0, 64, 64])
    assert baselines.walk(one.rgb, whole, point).all()
    assert baselines.cut(one.rgb, whole).all()


def test_a_forest_learns_a_colour():
    one = field()
    forest = baselines.Forest.fit([(one.rgb, one.truth)])
    assert (forest.find(one.rgb) == one.truth).mean() > 0.98


# rows


def test_masks_of_a_box_filler_are_the_filled_box():
    disc = field((96, 96), at=(30, 30), slide=(30, 30))
    rows, cols = np.mgrid[:96, :96]
    disc = replace(disc, ids=((rows - 44.5) ** 2 + (cols - 44.5) ** 2 < 15**2).astype(np.int32))
    methods = network_scores.outliners(FakeSegmenter(window=64))
    assert set(methods) == {OURS, "filled box", "random walker", "GrabCut"}
    measured, cases = network_scores.mask_ious([disc], methods)
    iou = disc.truth.sum() / 900
    assert figures(measured, "mean IoU")[OURS] == pytest.approx(iou)
    assert figures(measured, "mean IoU")["filled box"] == pytest.approx(iou)
    assert cases[0]["name"] == "field, landslide 1"


def test_a_landslide_larger_than_the_window_is_shown_reduced():
    large = field((400, 300), at=(40, 40), slide=(320, 200))
    measured, _ = network_scores.mask_ious(
        [large], {OURS: (network_scores.SegmenterOutliner(FakeSegmenter(window=64)), 64)}
    )
    assert figures(measured, "mean IoU")[OURS] > 0.95


def test_the_maximum_counts_where_it_is_on_a_landslide():
    on, off = field(name="on"), field(name="off")
    off = replace(off, ids=np.roll(off.ids, 32, axis=1))
    measured, cases = network_scores.map_hits(
        [on, off, replace(on, ids=np.zeros_like(on.ids))], FakeLocalizer(stride=8)
    )
    hits = figures(measured, "hits")
    assert hits[OURS] == hits["brightest cell"] == hits["lowest excess green"] == 0.5
    assert hits["random pixel"] == pytest.approx(16 * 24 / 64**2)
    assert [case["name"] for case in cases] == ["on", "off"]


def test_another_localizer_is_a_row_beside():
    flat = FakeLocalizer(function=lambda image: np.zeros(image.shape[:2], np.float32), stride=16)
    measured, _ = network_scores.map_hits([field()], FakeLocalizer(stride=8), others={"flat": flat})
    hits = figures(measured, "hits")
    assert hits[OURS] == 1
    assert hits["flat"] == pytest.approx(2 / 16)  # 1 x 2 of 4 x 4 cells
    asked = network_scores.gate_scores([field()], lambda _: 0.9, {"flat": lambda _: 0.1})
    assert (asked.scores[OURS][0], asked.scores["flat"][0]) == (0.9, 0.1)


def test_the_localizer_of_image_labels_is_beside_the_default_one_alone():
    default = Bench(Data(), Networks(device="cpu"))
    assert list(default.others) == ["bundled-weak"]
    assert set(default.key()["networks"]) == {"localizer", "segmenter", "bundled-weak"}
    assert not Bench(Data(), Networks(device="cpu", localizer="bundled-weak")).others


def test_a_flat_map_hits_as_often_as_chance():
    flat = FakeLocalizer(function=lambda image: np.zeros(image.shape[:2], np.float32))
    measured, _ = network_scores.map_hits([field()], flat)
    assert figures(measured, "hits")[OURS] == pytest.approx(6 / 64)  # 2 x 3 of 8 x 8 cells


def test_the_gate_is_compared_with_what_the_data_gives_away():
    pictures = [field(), field((32, 48), name="small"), replace(field((80, 80)), ids=np.zeros((80, 80), np.int32))]
    pictures[2].rgb[...] = [40, 90, 30]
    ask = FakeLocalizer()
    found = network_scores.gate_scores(pictures, lambda example: float(ask([example.rgb])[0].probability[0]))
    assert found.truth.tolist() == [True, True, False]
    aucs = figures(found.measurements(), "ROC AUC")
    assert aucs == {name: roc_auc_score(found.truth, said) for name, said in found.scores.items()}
    assert aucs["small image"] == 1
    assert found.measurements()[0].figures["images"] == 3


# calibration


def test_reliability_is_scikit_learns():
    rng = np.random.default_rng(0)
    said = rng.random(500)
    truth = rng.random(500) < said**2
    bins = reliability(said, truth)
    share, mean = calibration_curve(truth, said, n_bins=10)
    assert [part.share for part in bins] == pytest.approx(share.tolist())
    assert [part.probability for part in bins] == pytest.approx(mean.tolist())
    assert sum(part.count for part in bins) == 500


def test_expected_calibration_error_by_hand():
    said, truth = np.array([0.1, 0.1, 0.9, 1.0]), np.array([True, False, True, True])
    # half the cases are off by 0.4, half by 0.05
    assert expected_calibration_error(reliability(said, truth)) == pytest.approx(0.225)
    assert math.isnan(expected_calibration_error(reliability(np.zeros(0), np.zeros(0, bool))))


def test_curves_are_drawn_the_same_each_time(tmp_path):
    bins = reliability(np.array([0.1, 0.9]), np.array([False, True]))
    for name in ("a.png", "b.png"):
        draw_curves(tmp_path / name, {"gate": bins})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# scenes


def test_scores_of_scenes_by_hand_add_up():
    truth = np.zeros((4, 6), np.int32)
    truth[:2, :2], truth[2:, 4:] = 1, 2
    predicted = np.zeros((4, 6), np.int32)
    predicted[:2, :3], predicted[3, 3] = 1, 2
    counted = SceneScores.of(Answer(predicted, np.ones((4, 6), bool), 0.5), Truth(truth))
    assert counted == SceneScores(
        Confusion(tp=4, fp=3, fn=4, tn=13),
        # the corners of the image are no edges, and the first polygon is one only along its right side and below
        Boundary(predicted=5, predicted_near=5, true=6, true_near=6),
        WidthCounts((2, 0, 0, 0), (1, 0, 0, 0)),
        polygons=2,
        right=1,
    )
    assert (counted + counted).figures()["object recall"] == 0.5
    assert (counted + counted).polygons == 4
    assert SceneScores.from_plain(json.loads(json.dumps(counted.plain()))) == counted


def test_what_is_not_judged_counts_nowhere():
    truth = np.array([[1, 1, 0, -1, -1]], np.int32)
    answer = Answer(np.array([[1, 1, 0, 2, 2]], np.int32), np.ones((1, 5), bool), 1.0)
    counted = SceneScores.of(answer, Truth(truth))
    assert counted.areas == Confusion(tp=2, fp=0, fn=0, tn=1)
    assert (counted.polygons, counted.right) == (1, 1)


def test_specks_count_by_area_and_are_no_objects():
    truth = np.array([[1, 0, 2, 2]], np.int32)
    answer = Answer(truth, np.ones((1, 4), bool), 1.0)
    counted = SceneScores.of(answer, Truth(truth, minimum=2))
    assert counted.areas.tp == 3
    assert sum(counted.widths.objects) == sum(counted.widths.found) == 1


def test_the_confidence_of_polygons_is_compared_with_the_truth():
    truth = np.zeros((4, 6), np.int32)
    truth[:2] = 1
    ids = np.zeros((4, 6), np.int32)
    ids[0, :4], ids[3, :4], ids[1:3, 5] = 1, 3, 4  # 2 holds no pixel's centre; half of 4 is landslide
    answer = Answer(ids, np.ones((4, 6), bool), 1, np.array([0.9, 0.5, 0.2, np.nan]))
    assert scene_scores.stated_confidence(answer, truth) == [(0.9, True), (0.2, False)]
    assert scene_scores.judged(ids, truth)[1].tolist() == [True, False, True]


def test_false_alarms_by_hand():
    ids = np.zeros((100, 100), np.int32)
    ids[:10, :10] = 1
    alarms = scene_scores.false_alarms(Answer(ids, np.ones((100, 100), bool), 10.0))
    assert alarms == {"ha per km2": pytest.approx(1.0), "polygons per km2": pytest.approx(1.0)}


def test_answers_of_another_working_grid_are_judged_on_the_scenes_own():
    grid = scenes.example_grid(field((4, 6)), 0.1)
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    assert scenes.onto(ids, grid).tolist() == np.kron(ids, np.ones((2, 2), int)).tolist()
    finer = np.kron(np.arange(24, dtype=np.int32).reshape(4, 6), np.ones((4, 4), np.int32))
    assert scenes.onto(finer, grid).tolist() == np.arange(24).reshape(4, 6).tolist()
    whole = np.zeros((4, 6), np.int32)
    assert scenes.onto(whole, grid) is whole


def test_a_mosaic_keeps_every_chip_and_its_landslides_apart(tmp_path):
    parts = [field((40, 70), at=(0, 0), slide=(40, 30), name=f"chip{k}") for k in range(3)]
    folder = write_chips(tmp_path, parts)
    files = Files(tuple(sorted((folder / "images").iterdir())), folder / "masks")
    mosaic = scenes.lay_mosaic(files, tmp_path / "scene.tif", 0.8, width=150)
    ids = mosaic.ids
    assert ids.shape == (80, 150)
    assert sorted(np.unique(ids).tolist()) == [-1, 0, 1, 2, 3]
    with rasterio.open(tmp_path / "scene.tif") as scene:
        assert scene.transform.a == 0.8
        assert np.array_equal(scene.dataset_mask() > 0, ids >= 0)
        red = scene.read(1)
    assert abs(red[ids > 0].mean() - 200) < 5
    assert abs(red[ids == 0].mean() - 40) < 5
    assert sorted(mosaic.places) == ["chip0", "chip1", "chip2"]
    left = mosaic.without("chip1")
    assert (left == -1).sum() - (ids == -1).sum() == 40 * 70
    ellipses = mosaic.ellipses()
    assert len(np.unique(ellipses)) == 4
    assert (ellipses > 0).sum() == pytest.approx(3 * math.pi * 10 * 17.5, rel=0.05)


def test_the_heaviest_chip_of_a_mosaic_is_named_with_its_share(tmp_path):
    small, large = field((40, 60), at=(0, 0), slide=(10, 10), name="small"), field((40, 60), name="large")
    mosaic = scenes.lay_mosaic([small, large], tmp_path / "scene.tif", 0.8)
    assert mosaic.heaviest() == ("large", 384 / 484)


# table


def test_a_section_is_read_back_as_it_was_and_shows_what_is_not_defined():
    section = Section(
        "map",
        "Maps",
        [Measurement("a", OURS, {"hits": 0.5, "images": 2}), Measurement("b", OURS, {"hits": math.nan})],
        ["a note"],
    )
    text = json.dumps(section.as_json(), allow_nan=False)
    again = Section.of(json.loads(text))
    assert again.markdown() == section.markdown()
    assert "| a | geolabel | 0.500 | 2 |" in section.markdown()
    assert "| b | geolabel | not defined |  |" in section.markdown()
    assert "- a note" in section.markdown()


def test_extremes_rank_cases():
    cases = [{"name": str(k), OURS: k / 10} for k in range(5)]
    assert steps.extremes(cases, 2) == "Best: 4 0.40; 3 0.30.\n\nWorst: 0 0.00; 1 0.10.\n"


# derived tables


def test_a_scene_without_landslides_is_none_of_the_worst_by_iou():
    assert scene_scores.scene_case("a", 1.0, {OURS: area(0, 10, 0)})[OURS] is None
    assert scene_scores.scene_case("a", 1.0, {OURS: area(1, 2, 1)})[OURS] == 0.25


def counted(name: str, gsd: float, *, ours: SceneScores, alone: SceneScores) -> dict:
    named = {OURS: ours, scenes.ACTIVATION_ALONE: alone}
    return scene_scores.scene_case(name, gsd, named)


def area(tp: int, fp: int, fn: int) -> SceneScores:
    return SceneScores(Confusion(tp=tp, fp=fp, fn=fn, tn=0))


@pytest.fixture
def sets() -> dict:
    one = counted("one", 3.0, ours=area(8, 2, 2), alone=area(6, 4, 4))  # F1 0.8 and 0.6
    large = counted("large", 3.0, ours=area(0, 0, 90), alone=area(90, 0, 0))
    without = counted("without", 3.0, ours=area(0, 10, 0), alone=area(0, 0, 0))
    return {"hokkaido": [one, large, without]}


def test_image_wise_means_stand_beside_pooled_pixels(sets):
    rows = {m.method: m.figures for m in quality.images(sets).measured}
    assert rows[OURS]["mean F1"] == pytest.approx(0.4)  # 0.8 and 0; the image without landslide has none
    assert rows[OURS]["pooled F1"] == pytest.approx(16 / (16 + 12 + 92))
    assert rows[OURS]["pooled F1 without the heaviest"] == pytest.approx(16 / (16 + 12 + 2))
    assert (rows[OURS]["images"], rows[OURS]["with landslides"]) == (3, 2)
    assert "large holds 90% of the landslide pixels of hokkaido." in quality.images(sets).notes


def test_a_scene_is_in_the_band_of_its_gsd(sets):
    finest = {"sichuan": [counted("a", 0.25, ours=area(1, 0, 0), alone=area(1, 0, 0))]}
    limit = {"bijie": [counted("b", 1.0, ours=area(1, 0, 0), alone=area(1, 0, 0))]}
    found = quality.bands(sets | finest | limit).measured
    assert [m.data for m in found][::2] == ["0.1 to 0.3 m: sichuan", "1 to 2.5 m: bijie", "2.5 to 7 m: hokkaido"]


def test_gains_are_over_the_map_and_their_mean_is_over_sets(sets):
    other = {"sichuan": [counted("a", 0.5, ours=area(8, 2, 2), alone=area(6, 4, 4))]}
    found = {m.data: m.figures for m in quality.gains(sets | other).measured}
    assert found["sichuan"]["gain"] == pytest.approx(0.2)
    gain = found["hokkaido"]["gain"]
    assert gain == pytest.approx(16 / 120 - 192 / 200)
    assert found["mean of the real sets"]["gain"] == pytest.approx((0.2 + gain) / 2)


def test_recall_by_width_has_a_column_for_each_band():
    wide = SceneScores(widths=WidthCounts((4, 2, 0, 1), (1, 2, 0, 0)))
    (ours, _) = quality.widths({"x": [counted("a", 3.0, ours=wide, alone=wide)]}).measured
    assert ours.figures["below 8 px"] == 0.25
    assert ours.figures["8 to 24 px"] == 1
    assert math.isnan(ours.figures["24 to 64 px"])
    assert (ours.figures["from 64 px"], ours.figures["landslides from 64 px"]) == (0, 1)


def test_shrunk_and_synthetic_scenes_do_not_count_as_real_ones():
    right = {"said": 0.9, "true": True}
    wrong = {"said": 0.7, "true": False}
    measured = [
        Section("coarse", "", [], cases={"gate, l4s": [right], "confidence, l4s": [right]}),
        Section("band", "", [], cases={"confidence, shrunk": [wrong]}),
        Section("alarms", "", [], cases={"confidence, negatives": [wrong]}),
        Section("synthetic", "", [], cases={"confidence, synthetic": [wrong]}),
    ]
    errors, shares = quality.calibration(quality.curves(measured))
    found = {(m.method, m.data): m.figures for m in errors.measured}
    pooled = found["confidence", "all real sets"]
    assert (pooled["cases"], pooled["share true"]) == (2, 0.5)
    assert pooled["mean minus share"] == pytest.approx(0.3)
    assert pooled["calibration error"] == pytest.approx((0.1 + 0.7) / 2)
    assert found["confidence", "synthetic"]["cases"] == 1
    (row,) = [m for m in shares.measured if (m.method, m.data) == ("confidence, share true", "all real sets")]
    assert row.figures["0.9 to 1.0"] == 1
    assert row.figures["0.7 to 0.8"] == 0


# the whole bench


KEPT = "agricultural03.png"
"""An image whose name is kept for reports."""


@pytest.fixture
def stand_ins(monkeypatch):
    def load(recipe):
        return FakeLocalizer() if recipe.role == "localizer" else FakeSegmenter()

    monkeypatch.setattr(worker, "_load", load)
    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(examples, "SYNTHETIC_SIZE", 96)
    monkeypatch.setattr(sections, "FOREST_SEEDS", range(700_000, 700_001))
    monkeypatch.setattr(
        SyntheticScenes, "__iter__", lambda self: (field((96, 96), name=f"seed {k}") for k in range(self.count))
    )


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    write_chips(folder / "sichuan", [field((96, 96), at=(10, 10), slide=(40, 60), name="Landslide003")])
    without = field(name="plain")
    without = Example("plain", np.full_like(without.rgb, [40, 90, 30]), np.zeros_like(without.ids))
    write_chips(folder / "bijie" / "val", [field(name="one"), field(name="two"), without])
    (folder / "geotiffs").mkdir()
    scenes.write_scene(folder / "geotiffs" / "plain.tif", without, 0.5)
    scenes.write_scene(folder / "geotiffs" / "kept_field_0p1m.tif", without, 0.5)
    write_chips(folder / "hokkaido_planet_3m", [field(name="370")])
    write_chips(folder / "l4s_rgb_10m" / "validation", [field(name="image_1")])
    write_chips(folder / "l4s_rgb_10m" / "train", [field(name="image_3")])
    for image in (folder / "negatives" / "georef" / "brighton_1.png", folder / "negatives" / "fields_0p2m" / KEPT):
        image.parent.mkdir(parents=True)
        Image.fromarray(without.rgb).save(image)
    scenes.write_scene(folder / "negatives" / "georef" / "brighton_2.tif", without, 5.0)
    return folder


def run(*arguments: object):
    done = CliRunner().invoke(bench, ["quality", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_bench_writes_one_table_and_measures_nothing_twice(stand_ins, data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run("--data", data, "--out", out, "--limit", 2)
    held = json.loads((out / "quality.json").read_text())
    names = [section["name"] for section in held["sections"]]
    made = ["gain", "band", "width", "image", "alarms", "calibration", "reliability", "synthetic"]
    assert names == ["mask", "map", "gate", "scene", "coarse", *made]
    assert held["weights"]["localizer"]["sha256"] == loading.describe(registry.lookup("bundled")[0].path)["sha256"]
    page = (out / "quality.md").read_text()
    assert held["weights"]["segmenter"]["sha256"] in page
    assert "A quick look" in page
    assert (out / "reliability.png").is_file()

    monkeypatch.setattr(quality, "SECTIONS", dict.fromkeys(quality.SECTIONS))  # nothing can be measured any more
    run("--data", data, "--out", out, "--limit", 2)
    assert (out / "quality.md").read_text() == page
    with pytest.raises(TypeError):
        run("--data", data, "--out", out, "--limit", 2, "--overwrite")


def test_every_set_is_a_scene_of_its_own_gsd(stand_ins, data, tmp_path):
    out = tmp_path / "out"
    run("--data", data, "--out", out, "--only", "coarse,alarms,band")
    held = json.loads((out / "quality.json").read_text())
    tables_by_name = {section["name"]: section["measured"] for section in held["sections"]}
    rows = [row["data"] for row in tables_by_name["band"]]
    for data_row in (
        "0.1 to 0.3 m: sichuan read at 0.25 m",
        "1 to 2.5 m: sichuan shrunk to 1.5 m",
        "1 to 2.5 m: mosaic of bijie shrunk to 1.6 m",
        "2.5 to 7 m: hokkaido_planet_3m",
        "7 to 30 m: l4s_rgb_10m",
    ):
        assert data_row in rows
    alarms = {(row["data"], row["method"]): row["figures"] for row in tables_by_name["alarms"]}
    assert alarms["negatives/georef", OURS]["scenes"] == 2
    assert alarms["negatives/fields_0p2m", OURS]["scenes"] == 1
    assert {row["method"] for row in tables_by_name["coarse"]} >= {
        OURS,
        scenes.ACTIVATION_ALONE,
        scenes.ELLIPSE,
        *scenes.BASELINES,
    }
    calibrated = [(row["method"], row["data"]) for row in tables_by_name["calibration"]]
    assert ("gate", "l4s_rgb_10m") in calibrated
    assert ("gate", "negatives/georef") in calibrated

    # nothing is selected by what is for reports only
    sets = ("--l4s", data / "l4s_rgb_10m", "--hokkaido", data / "hokkaido_planet_3m")
    given = (*sets, "--out", out, "--only", "coarse", "--split", "select")
    done = CliRunner().invoke(bench, ["quality", *map(str, given)])
    assert "coarse.json was measured with split report, this is select" in str(done.exception)
    run(*given, "--overwrite")
    held = json.loads((out / "quality.json").read_text())
    (found,) = [section for section in held["sections"] if section["name"] == "coarse"]
    assert {row["data"] for row in found["measured"]} == {"l4s_rgb_10m"}


def test_cards_show_what_was_measured_of_these_networks(stand_ins, data, tmp_path):
    table = tmp_path / "table"
    run("--data", data, "--out", table, "--limit", 2, "--only", "mask,scene,alarms,synthetic")
    call = ["card", str(table), "--out", str(tmp_path)]
    done = CliRunner().invoke(bench, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    localizer, segmenter = ((tmp_path / f"{kind}.md").read_text() for kind in ("localizer", "segmenter"))
    assert "## False alarms in scenes without landslides" in localizer
    assert "| geotiffs kept for reports | geolabel |" in localizer
    assert "| other geotiffs | geolabel |" in localizer
    assert "## Masks from the true box and centroid" in segmenter
    assert "False alarms" not in segmenter
    assert "failures.jpg" in localizer
    with Image.open(tmp_path / "failures.jpg") as picture:
        assert picture.width == 2 * 400  # two scenes

    held = json.loads((table / "quality.json").read_text())
    held["weights"]["segmenter"]["sha256"] = "0" * 64
    (table / "quality.json").write_text(json.dumps(held))
    done = CliRunner().invoke(bench, [*call, "--overwrite"])
    assert "was measured with a segmenter of SHA-256 000" in str(done.exception)
    (table / "quality.json").unlink()
    assert "run geolabel bench quality" in str(CliRunner().invoke(bench, [*call, "--overwrite"]).exception)


def test_cards_come_with_the_figures_that_a_run_warns_by(stand_ins, data, tmp_path):
    run("--data", data, "--out", tmp_path / "table", "--limit", 2, "--only", "scene,coarse")
    done = CliRunner().invoke(bench, ["card", str(tmp_path / "table"), "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    held = load_measured(tmp_path / "measured.json")
    assert {one.data: one.gsd_m for one in held.sets} == {
        "mosaic of bijie": (0.8, 0.8),
        "sichuan": (0.2, 0.9),
        "hokkaido_planet_3m": (3.0, 3.0),
        "l4s_rgb_10m": (10.0, 10.0),
    }
    assert all(set(one.peers) == set(scenes.BASELINES) for one in held.sets)


def test_sections_of_another_version_are_kept_and_named(stand_ins, data, tmp_path, caplog):
    out = tmp_path / "out"
    run("--data", data, "--out", out, "--limit", 1, "--only", "map,mask")
    path = out / "sections" / "mask.json"
    held = json.loads(path.read_text())
    fewer = {name: value for name, value in held["key"]["parameters"].items() if name != "simplify"}
    path.write_text(json.dumps(held | {"key": held["key"] | {"geolabel": "0.0.9", "parameters": fewer}}))
    before = path.read_bytes()
    run("--data", data, "--out", out, "--limit", 1, "--only", "map,mask")
    assert path.read_bytes() == before
    assert "mask.json was measured with geolabel 0.0.9" in caplog.text
    table = json.loads((out / "quality.json").read_text())
    assert table["geolabel"] == ", ".join(sorted({"0.0.9", held["key"]["geolabel"]}))
    assert [section["name"] for section in table["sections"]] == ["mask", "map"]


def test_sections_of_other_data_are_left_out_of_the_table(stand_ins, data, tmp_path, caplog):
    out = tmp_path / "out"
    run("--data", data, "--out", out, "--limit", 1, "--only", "mask")
    run("--data", data, "--out", out, "--limit", 2, "--only", "map")
    assert "mask.json was measured with limit 1, this is 2: left out of the table" in caplog.text
    assert [section["name"] for section in json.loads((out / "quality.json").read_text())["sections"]] == ["map"]


def test_bench_says_what_is_missing(stand_ins, data, tmp_path):
    run("--sichuan", data / "sichuan", "--out", tmp_path, "--only", "gate,map,alarms")
    page = (tmp_path / "quality.md").read_text()
    assert "not available, and so left out: bijie, hokkaido_planet_3m, l4s_rgb_10m, negatives, geotiffs" in page
    assert page.count("Not measured") == 2


def test_the_command_knows_the_sections():
    assert tuple(quality.SECTIONS) == SECTIONS
    done = CliRunner().invoke(bench, ["quality", "--out", "x", "--only", "mask,beauty"])
    assert done.exit_code == 2
    assert "beauty: known are mask" in done.output
