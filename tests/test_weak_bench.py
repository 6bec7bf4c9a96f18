"""The measurement of weak supervision and the studies, in miniature."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geolabel.chips import Chip, ChipList
from geolabel.cli.main import run
from geolabel.datasets.chips import read_chips
from geolabel.engine import worker
from geolabel.engine.tasks import Silent
from geolabel.errors import ChipError, OptionError
from geolabel.evaluation import steps, studies, weak, weak_report
from geolabel.evaluation.baselines import centred_ellipse
from geolabel.evaluation.examples import pack_chips, unpack_chips
from geolabel.evaluation.network_scores import THRESHOLDS, MapScores, iou, label_scores, mosaic_of, mosaic_scores
from geolabel.evaluation.weak_report import draw_sheet
from geolabel.extraction.request import Networks
from geolabel.folders import work_folder
from geolabel.outputs import saving
from geolabel.parts import EverythingRecipe, Recipe, Segmenter
from geolabel.testing import FakeLocalizer, FakeSegmenter
from geolabel.training import localizers
from geolabel.training.presets import preset_of
from geolabel.training.samples import Cropping

CPU = Networks(device="cpu")
SMALL = {"backbone": "resnet18", "cropping": Cropping(64, strength=0.0), "batch": 4, "output_stride": 16}


def image_of(k: int, shows: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(k)
    image = rng.integers(0, 90, (64, 72 + k, 3)).astype(np.uint8)
    mask = np.zeros(image.shape[:2], np.uint8)
    if shows:
        row, col = rng.integers(0, (40, 44))
        mask[row : row + 24, col : col + 24] = 1
        image[mask == 1] += 120
    return image, mask


def chips(count: int = 6) -> ChipList:
    made = []
    for k in range(count):
        image, mask = image_of(k, k % 2 == 0)
        made.append(Chip(f"chip{k}", image, np.array([k % 2 == 0]), mask))
    return ChipList(("landslide",), made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 12), ("val", 4)):
        root = tmp_path / "data" / split
        rows = ["image,label"]
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True)
        for k in range(count):
            image, mask = image_of(k, k % 2 == 0)
            Image.fromarray(image).save(root / f"images/{split}{k}.png")
            if k % 2 == 0:
                Image.fromarray(mask * np.uint8(255)).save(root / f"masks/{split}{k}.png")
            rows.append(f"images/{split}{k}.png,{int(k % 2 == 0)}")
        (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "data"


def bright(image: np.ndarray) -> np.ndarray:
    return (image.mean(axis=2) / 255).astype(np.float32)


def test_maps_are_judged_pair_by_pair():
    scores = MapScores.of(FakeLocalizer(function=bright, stride=1), chips())
    assert scores.names == ["chip0 landslide", "chip2 landslide", "chip4 landslide"]
    assert scores.hits == [1, 1, 1]
    best = scores.best_threshold()
    assert 0.3 < THRESHOLDS[best] < 0.5
    assert scores.at(best).min() > 0.9
    dark = MapScores.of(FakeLocalizer(function=lambda image: 0.8 - bright(image), stride=1), chips())
    assert dark.hits == [0, 0, 0]
    none = MapScores.of(FakeLocalizer(function=lambda image: 0 * bright(image), stride=1), chips())
    assert none.hits == [0, 0, 0]


def test_label_maps_are_judged_over_all_pixels_and_chip_by_chip():
    found = label_scores(lambda chip: chip.mask, chips())
    assert found["all"]["iou"] == found["shown"]["iou"] == 1
    assert found["ious"] == [1, 1, 1]
    nothing = label_scores(lambda chip: np.zeros_like(chip.mask), chips())
    assert nothing["all"]["recall"] == 0
    assert nothing["ious"] == [0, 0, 0]


def test_baselines_by_hand():
    inside = centred_ellipse((40, 80))
    assert inside.mean() == pytest.approx(np.pi / 16, abs=0.01)
    np.testing.assert_array_equal(inside, inside[::-1, ::-1])
    assert iou(np.zeros(3, bool), np.zeros(3, bool)) == 0


def test_a_mosaic_holds_every_chip_once():
    data = chips()
    mosaic = mosaic_of(data, width=160)
    assert mosaic.rgb.shape[:2] == mosaic.truth.shape
    assert (mosaic.truth != 255).sum() == sum(chip.mask.size for chip in data.chips)
    assert (mosaic.truth == 1).sum() == sum(chip.mask.sum() for chip in data.chips)
    assert (mosaic.rgb[mosaic.truth == 1].min(axis=1) >= 120).all()
    other = mosaic_of(data, width=160, seed=1)
    assert (mosaic.rgb.shape != other.rgb.shape) or (mosaic.rgb != other.rgb).any()

    def grey(rgb: np.ndarray) -> np.ndarray:
        return np.where(rgb.min(axis=2) >= 120, 255, 0).astype(np.uint8)

    assert mosaic_scores(grey, mosaic, ("background", "landslide"))["iou"] == 1


def test_a_pack_is_unpacked_as_it_was(folder: Path, tmp_path: Path):
    facts = pack_chips(folder, tmp_path / "chips.zip", quality=95)
    assert (facts["train"], facts["val"]) == (12, 4)
    again = read_chips(unpack_chips(tmp_path / "chips.zip", tmp_path / "out") / "train")
    first = read_chips(folder / "train")
    np.testing.assert_array_equal(again.labels, first.labels)
    for k in range(12):
        np.testing.assert_array_equal(again.chip(k).mask, first.chip(k).mask)
        assert np.abs(again.rgb(k).astype(int) - first.rgb(k)).mean() < 25
    once = (tmp_path / "chips.zip").read_bytes()
    pack_chips(folder, tmp_path / "chips.zip", quality=95, overwrite=True)
    assert (tmp_path / "chips.zip").read_bytes() == once


def test_strange_packs_are_refused(tmp_path: Path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../outside.txt", "x")
    with pytest.raises(OptionError, match="is not a pack of chips"):
        unpack_chips(tmp_path / "bad.zip", tmp_path / "out")
    (tmp_path / "text.zip").write_text("x")
    with pytest.raises(OptionError, match="cannot be read as a pack"):
        unpack_chips(tmp_path / "text.zip", tmp_path / "out")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    load = worker.segmenter

    def stand_in(recipe: Recipe) -> Segmenter:
        # a grid of points is asked with the segmenter itself
        return load(recipe) if isinstance(recipe, EverythingRecipe) else FakeSegmenter(radius=8)

    monkeypatch.setattr(worker, "segmenter", stand_in)
    student = replace(
        weak.SIZES["cpu"].student,
        architectures={"resunet": {"name": "resunet", "widths": [16, 32]}},
        cropping=Cropping(64, strength=0.0),
        batch=4,
    )
    monkeypatch.setitem(weak.SIZES, "cpu", weak.Sizes(SMALL | {"points_per_side": 2}, student))


@pytest.mark.usefixtures("small")
def test_everything_is_measured_and_resumed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["bench", "weak", str(folder), "--out", str(tmp_path / "table.md"), "--seeds", "1", "--epochs", "0.5", "-q"]
    words += ["--init", "none", "--device", "cpu", "--json"]
    assert run([*words, "--minutes", "0.0001"]) == 0
    assert json.loads(capsys.readouterr().out)["steps left"] > 0
    assert run(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["steps done"], facts["steps left"]) == (16, 0)
    table = (tmp_path / "table.md").read_text()
    for text in (
        "small chip",
        "| val | cism |",
        "apsam point",
        "student of masks",
        "val, mosaic",
        "map IoU of s2c over cam",
    ):
        assert text in table, text
    assert run([*words, "--pictures", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "table.md").read_text() == table
    sheet = json.loads(capsys.readouterr().out)
    assert sheet["chips"] == ["val0", "val2"]
    assert {"cam: map", "apsam: labels", "student of s2c", "student of masks"} <= set(sheet["columns"])
    assert "cism crf: labels" not in sheet["columns"]
    assert run([*words, "--epochs", "1"]) == 2
    assert "was measured with epochs 0.5, this is 1.0" in capsys.readouterr().err
    held = tmp_path / "table.md.run/numbers.json"
    held.write_text(json.dumps(json.loads(held.read_text()) | {"cam pretrained_rate": 0.5}))
    assert run(words) == 2
    assert "was measured with cam pretrained_rate 0.5, this is 0.0001" in capsys.readouterr().err
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > picture.height > 200


def test_tables_of_the_steps_that_are_done():
    maps = {"hits": [1.0], "ious": [[0.5] * len(THRESHOLDS)], "areas": [0.1], "chosen": 0}
    judged = {"AUC": 0.9, "accuracy": 0.8, "maps": maps}
    done = {"start": judged, "seed0/cam": judged}
    rows = {row.method: row.figures for row in weak_report.map_section(done).measured}
    assert rows["cam"] == {"hits": 1, "map IoU": 0.5}
    assert rows["random place"] == {"hits": 0.1}
    (only,) = weak_report.difference_section(done).measured
    assert only.method == "map IoU of cam over as they start"


def test_without_maps_only_what_has_its_localizer_is_measured(tmp_path: Path):
    bench = weak.WeakBench(tmp_path, tmp_path / "work", seeds=1, networks=CPU, only=("labels", "students"))
    assert [name for name, _ in bench.steps()] == ["floors", "seed0/student masks"]
    bench.localizer_file("cism", 0).parent.mkdir(parents=True)
    bench.localizer_file("cism", 0).touch()
    left = {"floors", "seed0/student masks", "seed0/pseudo cism", "seed0/pseudo cism crf", "seed0/student cism"}
    assert {name for name, _ in bench.steps()} == left


def test_a_method_is_measured_with_what_is_made_of_it(tmp_path: Path):
    everything = weak.WeakBench(tmp_path, tmp_path / "work", seeds=1, networks=CPU, only=("maps", "labels"))
    one = replace(everything, methods=("s2c",))
    assert [name for name, _ in one.steps()] == ["floors", "seed0/s2c", "seed0/pseudo s2c"]
    assert one._key() == everything._key()  # so that the others can follow in the same folder


def test_differences_are_of_the_seeds_that_both_have():
    def labels(value: float) -> dict[str, object]:
        return {"ious": [value, value], "shown": {"iou": value, "miou": value}}

    done = {
        "seed0/student masks": labels(0.8),
        "seed0/student apsam": labels(0.4),
        "seed1/student apsam": labels(0.9),
        "seed0/pseudo apsam box": labels(0.3),
        "seed0/pseudo apsam point": labels(0.1),
    }
    box, student = weak_report.difference_section(done).measured
    assert box.figures["difference"] == pytest.approx(0.2)
    assert student.figures["ratio of IoU"] == pytest.approx(0.5)
    assert (student.figures["from"], student.figures["to"]) == pytest.approx((-0.4, -0.4))


@pytest.mark.usefixtures("small")
def test_a_study_names_its_rows_and_its_numbers(folder: Path, tmp_path: Path):
    chips = read_chips(folder / "train")
    with pytest.raises(OptionError, match="no row is called 'baseline '"):
        studies.Study("cism", chips, tmp_path / "out", CPU, only=("baseline ",)).run()
    with work_folder(tmp_path / "out", overwrite=False) as out, saving(out / "numbers.json") as part:
        part.write_text(json.dumps({"epochs": 3, "localizer": "bundled", "pamr": False}))
    with pytest.raises(OptionError, match="out was measured with epochs 3, this is None"):
        studies.Study("cism", chips, tmp_path / "out", CPU).run()


def measured(folder: Path, key: dict[str, object], *, overwrite: bool = False, deadline: float | None = None) -> dict:
    made = {"a": lambda: {"IoU": 0.5}, "deep/b": lambda: {"IoU": float("nan"), "each": [1.0, float("inf")]}}
    with steps.step_folder(folder, key, made, overwrite=overwrite) as out:
        return steps.run_steps(out, made, title="steps", progress=Silent(), deadline=deadline)


def test_steps_are_measured_once_and_resumed(tmp_path: Path):
    key = {"chips": ["x", "y"], "student": {"batch": 4}}
    assert measured(tmp_path, key, deadline=0) == {}
    found = {"a": {"IoU": 0.5}, "deep/b": {"IoU": None, "each": [1.0, None]}}
    assert measured(tmp_path, key) == found
    (tmp_path / "deep/b.json").unlink()
    kept = (tmp_path / "a.json").stat().st_mtime_ns
    assert measured(tmp_path, key) == found
    assert (tmp_path / "a.json").stat().st_mtime_ns == kept
    assert np.isnan(steps.figures_of(found["deep/b"] | {"each": None})["IoU"])


def test_steps_of_other_options_are_refused_or_replaced(tmp_path: Path):
    key = {"chips": ["x", "y"], "student": {"batch": 4}}
    measured(tmp_path, key)
    with pytest.raises(OptionError, match="was measured with student batch 4, this is 8: give the options of before"):
        measured(tmp_path, key | {"student": {"batch": 8}})
    with pytest.raises(OptionError, match="was measured with other chips"):
        measured(tmp_path, key | {"chips": ["x"]})
    measured(tmp_path, key | {"chips": ["x"]}, overwrite=True)
    assert json.loads((tmp_path / steps.KEY).read_text())["chips"] == ["x"]
    (tmp_path / steps.KEY).unlink()
    with pytest.raises(OptionError, match=r"holds figures without numbers\.json"):
        measured(tmp_path, key)


@pytest.mark.usefixtures("small")
def test_nothing_is_plotted_before_a_training(folder: Path, tmp_path: Path):
    with pytest.raises(OptionError, match="nothing is trained yet"):
        draw_sheet(weak.WeakBench(folder, tmp_path / "work", networks=CPU), tmp_path / "sheet.png")


def test_means_and_spreads_over_seeds():
    one = weak_report.row("val", "cam", {"AUC": [0.8, 0.9], "hits": [None, 1.0]})
    assert one.figures["AUC"] == pytest.approx(0.85)
    assert one.figures["AUC spread"] == pytest.approx(0.1)
    assert np.isnan(one.figures["hits"])


@pytest.mark.parametrize("name", ["threshold", "prompts", "everything"])
def test_studies_of_pseudo_labels(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "segmenter", lambda _: FakeSegmenter(radius=8))
    monkeypatch.setattr(studies, "chip_localizer", lambda _, **__: FakeLocalizer(function=bright, stride=1))
    monkeypatch.setattr(studies, "GREYS", (80, 250))
    assert run(["study", name, str(folder / "train"), "--out", str(tmp_path / "out"), "-q", "--device", "cpu"]) == 0
    table = json.loads((tmp_path / f"out/{name}.json").read_text())
    figures = {row["method"]: row["figures"] for row in table["measured"]}
    if name == "threshold":
        assert figures["80"]["IoU"] > 0.9
        assert figures["250"]["IoU"] == 0
    if name == "prompts":
        assert figures["both"]["IoU"] > figures["point"]["IoU"] > 0
        assert figures["both"]["IoU in the paper"] == 0.49
        assert figures["point"]["mIoU"] > figures["point"]["IoU"]  # the background is the larger class
        assert 0 < figures["both"]["OA"] <= 1
        over = figures["both"]["mean IoU of chips"] - figures["point"]["mean IoU of chips"]
        assert figures["both"]["over point"] == pytest.approx(over)
        assert figures["both"]["from"] <= over <= figures["both"]["to"]
        assert "over point" not in figures["point"]
        assert figures["both of masks"]["IoU"] >= figures["both"]["IoU"]
        assert "IoU in the paper" not in figures["both of masks"]
    if name == "everything":
        assert figures["everything"]["masks"] == 64
        assert figures["both"]["IoU"] > figures["everything"]["IoU"]
    assert (tmp_path / f"out/{name}.png").stat().st_size > 1000


def test_studies_of_pseudo_labels_refine_maps_where_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def locate(_: object, **options: bool) -> FakeLocalizer:
        asked.append(options["pamr"])
        return FakeLocalizer(function=bright, stride=1)

    monkeypatch.setattr(worker, "segmenter", lambda _: FakeSegmenter(radius=8))
    monkeypatch.setattr(studies, "chip_localizer", locate)
    command = ["study", "prompts", str(folder / "train"), "--only", "box", "--out", str(tmp_path / "out"), "-q"]
    assert run([*command, "--device", "cpu", "--pamr"]) == 0
    assert asked == [True]
    assert run([*command, "--device", "cpu"]) == 2  # other maps than those of the folder


def test_studies_of_training_name_every_row_of_the_tables():
    assert studies.PAPER["s2c"].keys() <= studies.S2C.keys()
    assert studies.CISM.keys() - studies.PAPER["cism"].keys() == {"without affinity"}
    assert studies.S2C["SSC and CPM"] == studies.S2cTerms()
    assert studies.CISM["SLSC and MCSG"] == studies.CismTerms()
    assert len(set(studies.CISM.values())) == len(studies.CISM)


def test_a_row_changes_what_it_is_about_and_leaves_the_rest_to_the_preset():
    code = preset_of("s2c", "code").s2c
    row = studies._changed(code, studies.S2C["CPM: single peak"])
    assert row == replace(code, single_peak=True)
    assert (row.by_logits, row.temperature, row.smallest) == (True, 1.0, False)
    paper = preset_of("cism", "paper").cism
    assert studies._changed(paper, studies.CISM["without SLSC, eta 0.1"]) == replace(
        paper, secondary=False, generated=False, eta=0.1
    )


@pytest.mark.usefixtures("small")
def test_a_study_of_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few = {name: studies.CISM[name] for name in ("baseline", "SLSC and MCSG")}
    monkeypatch.setattr(studies, "CISM", few)
    preset = preset_of("cism", "cpu")
    monkeypatch.setattr(localizers, "preset_of", lambda *_: replace(preset, **SMALL))
    study = studies.Study("cism", read_chips(folder / "train"), tmp_path / "out", CPU, epochs=0.5)
    found = study.run()
    assert [row.method for row in found.measured] == list(few)
    assert all(0 <= row.figures["map IoU"] <= 1 for row in found.measured)
    assert all(row.figures["mIoU"] <= row.figures["OA"] <= 1 for row in found.measured)
    assert found.measured[0].figures["mIoU in the paper"] == 0.239
    over = found.measured[1].figures["map IoU"] - found.measured[0].figures["map IoU"]
    assert found.measured[1].figures["over baseline"] == pytest.approx(over)
    marks = sorted(path.name for path in (tmp_path / "out/trained").iterdir())
    assert len(marks) == 2
    assert study.run() == found


def test_a_study_needs_masks(tmp_path: Path):
    for name in ("landslide", "other"):
        (tmp_path / "chips" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"chips/{name}/{name}1.png")
    with pytest.raises(ChipError, match="no chip that shows something has a mask"):
        studies.Study("prompts", read_chips(tmp_path / "chips"), tmp_path / "out", CPU).run()
