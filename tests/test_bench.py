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

from geolabel.bench import chips, examples, peers, quality, scenes, table
from geolabel.bench.calibration import draw_curves, expected_calibration_error, reliability
from geolabel.bench.examples import Drawn, Example, Files
from geolabel.bench.table import OURS, Measurement, Section
from geolabel.cli.bench import SECTIONS, bench
from geolabel.errors import OptionError
from geolabel.io import weights
from geolabel.metrics import Confusion
from geolabel.run import worker
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
    with pytest.raises(OptionError, match="holds no image of this split"):
        examples.outlined(tmp_path, "report")
    with pytest.raises(OptionError, match="no folder sichuan, bijie or geotiffs"):
        quality.Data.inside(tmp_path)
    with pytest.raises(OptionError, match="holds no GeoTIFF"):
        scenes.tiffs(tmp_path / "missing")
    write_chips(tmp_path, [field()])
    Image.new("L", (9, 9), 255).save(tmp_path / "masks" / "field.png")
    with pytest.raises(OptionError, match="one size"):
        list(Files((tmp_path / "images" / "field.png",), tmp_path / "masks"))


def test_prompts_are_box_and_centroid():
    prompts = examples.landslide_prompts(field().ids, least=64)
    assert prompts.boxes.tolist() == [[8, 16, 32, 32]]
    assert prompts.points.tolist() == [[[19.5, 23.5]]]
    assert len(examples.landslide_prompts(field().ids, least=16 * 24 + 1)) == 0


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


# peers


def test_excess_green_by_hand():
    rgb = np.array([[[0, 0, 0], [10, 20, 10], [0, 255, 0], [255, 0, 0]]], np.uint8)
    assert peers.excess_green(rgb).tolist() == [[0, 0.5, 2, -1]]


def test_otsu_finds_the_bare_ground_and_nothing_where_nothing_differs():
    one = field()
    assert np.array_equal(peers.otsu_bare(one.rgb, np.ones(one.ids.shape, bool)), one.truth)
    plain = np.full((8, 8, 3), 90, np.uint8)
    assert not peers.otsu_bare(plain, np.ones((8, 8), bool)).any()
    assert not peers.otsu_bare(one.rgb, np.zeros(one.ids.shape, bool)).any()


def test_cells_average_pixels_and_repeat_the_frame():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert peers.cell_means(values, 2).tolist() == [[2.0, 3.5]]  # (0 1 3 4), (2 2 5 5)


def test_surround_minus_centre_by_hand():
    values = np.zeros((4, 4), np.float32)
    values[1:3, 1:3] = 2
    assert peers.surround_minus_centre(values) == -2
    assert peers.surround_minus_centre(np.ones((1, 1), np.float32)) == 0


def test_peers_outline_a_plain_landslide():
    one = field()
    prompts = examples.landslide_prompts(one.ids, 64)
    box, point = prompts.boxes[0] + [-4, -4, 4, 4], prompts.points[0, 0]
    for found in (peers.walk(one.rgb, box, point), peers.cut(one.rgb, box)):
        assert (found & one.truth).sum() / (found | one.truth).sum() > 0.9
    whole = np.array([0.0, 0, 64, 64])
    assert peers.walk(one.rgb, whole, point).all()
    assert peers.cut(one.rgb, whole).all()


def test_a_forest_learns_a_colour():
    one = field()
    forest = peers.Forest.grow([(one.rgb, one.truth)])
    assert (forest.find(one.rgb) == one.truth).mean() > 0.98


# rows


def test_masks_of_a_box_filler_are_the_filled_box():
    disc = field((96, 96), at=(30, 30), slide=(30, 30))
    rows, cols = np.mgrid[:96, :96]
    disc = replace(disc, ids=((rows - 44.5) ** 2 + (cols - 44.5) ** 2 < 15**2).astype(np.int32))
    methods = chips.outliners(FakeSegmenter(window=64))
    assert set(methods) == {OURS, "filled box", "random walker", "GrabCut"}
    measured, cases = chips.mask_ious([disc], methods)
    iou = disc.truth.sum() / 900
    assert figures(measured, "mean IoU")[OURS] == pytest.approx(iou)
    assert figures(measured, "mean IoU")["filled box"] == pytest.approx(iou)
    assert cases[0]["name"] == "field, landslide 1"


def test_a_landslide_larger_than_the_window_is_shown_reduced():
    large = field((400, 300), at=(40, 40), slide=(320, 200))
    measured, _ = chips.mask_ious([large], {OURS: (chips.Asked(FakeSegmenter(window=64)), 64)})
    assert figures(measured, "mean IoU")[OURS] > 0.95


def test_the_highest_place_counts_where_it_lies_on_a_landslide():
    on, off = field(name="on"), field(name="off")
    off = replace(off, ids=np.roll(off.ids, 32, axis=1))
    measured, cases = chips.map_hits([on, off, replace(on, ids=np.zeros_like(on.ids))], FakeLocalizer(stride=8))
    hits = figures(measured, "hits")
    assert hits[OURS] == hits["brightest cell"] == hits["lowest excess green"] == 0.5
    assert hits["random pixel"] == pytest.approx(16 * 24 / 64**2)
    assert [case["name"] for case in cases] == ["on", "off"]


def test_a_flat_map_hits_as_often_as_chance():
    flat = FakeLocalizer(function=lambda image: np.zeros(image.shape[:2], np.float32))
    measured, _ = chips.map_hits([field()], flat)
    assert figures(measured, "hits")[OURS] == pytest.approx(6 / 64)  # 2 x 3 of 8 x 8 cells


def test_the_gate_is_compared_with_what_the_data_gives_away():
    pictures = [field(), field((32, 48), name="small"), replace(field((80, 80)), ids=np.zeros((80, 80), np.int32))]
    pictures[2].rgb[...] = [40, 90, 30]
    found = chips.gate_scores(pictures, FakeLocalizer())
    assert found.truth.tolist() == [True, True, False]
    aucs = figures(found.measurements(), "ROC AUC")
    assert aucs == {name: roc_auc_score(found.truth, said) for name, said in found.said.items()}
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


def test_tally_by_hand_adds_up():
    truth = np.zeros((4, 6), np.int32)
    truth[:2, :2], truth[2:, 4:] = 1, 2
    predicted = np.zeros((4, 6), np.int32)
    predicted[:2, :3], predicted[3, 3] = 1, 2
    tally = scenes.Tally.of(scenes.Answer(predicted, np.ones((4, 6), bool), 0.5), truth)
    assert tally == scenes.Tally(Confusion(tp=4, fp=3, fn=4, tn=13), true_objects=2, found=1, polygons=2, right=1)
    assert (tally + tally).figures()["object recall"] == 0.5
    assert (tally + tally).polygons == 4


def test_what_was_said_of_polygons_is_held_against_the_truth():
    truth = np.zeros((4, 6), np.int32)
    truth[:2] = 1
    ids = np.zeros((4, 6), np.int32)
    ids[0, :4], ids[3, :4], ids[1:3, 5] = 1, 3, 4  # 2 holds no pixel's centre; half of 4 is landslide
    answer = scenes.Answer(ids, np.ones((4, 6), bool), 1, np.array([0.9, 0.5, 0.2, np.nan]))
    assert scenes.stated(answer, truth) == [(0.9, True), (0.2, False)]
    assert scenes.judged(ids, truth)[1].tolist() == [True, False, True]


def test_false_alarms_by_hand():
    ids = np.zeros((100, 100), np.int32)
    ids[:10, :10] = 1
    alarms = scenes.false_alarms(scenes.Answer(ids, np.ones((100, 100), bool), 10.0))
    assert alarms == {"ha per km2": pytest.approx(1.0), "polygons per km2": pytest.approx(1.0)}


def test_a_mosaic_keeps_every_chip_and_its_landslides_apart(tmp_path):
    parts = [field((40, 70), at=(0, 0), slide=(40, 30), name=f"chip{k}") for k in range(3)]
    folder = write_chips(tmp_path, parts)
    files = Files(tuple(sorted((folder / "images").iterdir())), folder / "masks")
    ids = scenes.lay_mosaic(files, tmp_path / "scene.tif", width=150)
    assert ids.shape == (80, 150)
    assert sorted(np.unique(ids).tolist()) == [-1, 0, 1, 2, 3]
    with rasterio.open(tmp_path / "scene.tif") as scene:
        assert scene.transform.a == scenes.CHIP_GSD
        assert np.array_equal(scene.dataset_mask() > 0, ids >= 0)
        red = scene.read(1)
    assert abs(red[ids > 0].mean() - 200) < 5
    assert abs(red[ids == 0].mean() - 40) < 5


# table


def test_a_section_survives_its_file_and_shows_what_is_not_defined():
    section = Section("map", "Maps", [Measurement("a", OURS, {"hits": 0.5, "images": 2}),
                                      Measurement("b", OURS, {"hits": math.nan})], ["a note"])  # fmt: skip
    text = json.dumps(section.as_json(), allow_nan=False)
    again = Section.of(json.loads(text))
    assert again.markdown() == section.markdown()
    assert "| a | geolabel | 0.500 | 2 |" in section.markdown()
    assert "| b | geolabel | not defined |  |" in section.markdown()
    assert "- a note" in section.markdown()


def test_extremes_rank_cases():
    cases = [{"name": str(k), OURS: k / 10} for k in range(5)]
    assert table.extremes(cases, 2) == "Best: 4 0.40; 3 0.30.\n\nWorst: 0 0.00; 1 0.10.\n"


# the whole bench


@pytest.fixture
def stand_ins(monkeypatch):
    def load(recipe):
        return FakeLocalizer() if recipe.role == "localizer" else FakeSegmenter()

    monkeypatch.setattr(worker, "_load", load)
    monkeypatch.setattr(weights, "load", load)
    monkeypatch.setattr(examples, "SYNTHETIC_SIZE", 96)
    monkeypatch.setattr(quality, "FOREST_SEEDS", range(700_000, 700_001))
    monkeypatch.setattr(Drawn, "__iter__", lambda self: (field((96, 96), name=f"seed {k}") for k in range(self.count)))


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
    assert names == ["mask", "map", "gate", "scene", "alarms", "synthetic", "calibration"]
    assert held["weights"]["localizer"]["sha256"] == weights.describe(weights.lookup("bundled")[0].path)["sha256"]
    page = (out / "quality.md").read_text()
    assert held["weights"]["segmenter"]["sha256"] in page
    assert "A quick look" in page
    assert (out / "reliability.png").is_file()

    monkeypatch.setattr(quality, "SECTIONS", dict.fromkeys(quality.SECTIONS))  # nothing can be measured any more
    run("--data", data, "--out", out, "--limit", 2)
    assert (out / "quality.md").read_text() == page
    with pytest.raises(TypeError):
        run("--data", data, "--out", out, "--limit", 2, "--overwrite")


def test_cards_show_what_was_measured_of_these_networks(stand_ins, data, tmp_path):
    table = tmp_path / "table"
    run("--data", data, "--out", table, "--limit", 2)
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
    done = CliRunner().invoke(bench, call)
    assert "was measured with a segmenter of SHA-256 000" in str(done.exception)
    (table / "quality.json").unlink()
    assert "run geolabel bench quality" in str(CliRunner().invoke(bench, call).exception)


def test_bench_says_what_is_missing(stand_ins, data, tmp_path):
    run("--sichuan", data / "sichuan", "--out", tmp_path, "--only", "gate,map,alarms")
    page = (tmp_path / "quality.md").read_text()
    assert "not at hand, and so left out: bijie, geotiffs" in page
    assert page.count("Not measured") == 2


def test_the_command_knows_the_sections():
    assert tuple(quality.SECTIONS) == SECTIONS
    done = CliRunner().invoke(bench, ["quality", "--out", "x", "--only", "mask,beauty"])
    assert done.exit_code == 2
    assert "beauty: known are mask" in done.output
