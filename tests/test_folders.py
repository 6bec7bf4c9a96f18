"""What a command replaces stands until the new is whole, and what geolabel did not make stays for good."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image

from geolabel.cli.main import run as command
from geolabel.clusters import Clusters, Source
from geolabel.datasets.chips import read_chips
from geolabel.datasets.pseudo_labels import ClusterFile, PseudoLabelWriter, save_clusters
from geolabel.errors import OutputError
from geolabel.folder_record import RECORD, FolderRecord
from geolabel.folders import WORK, check_folder, making, promise, replacing_folder, work_folder, written_elsewhere
from geolabel.labels import LabelMap
from geolabel.outputs import saving
from geolabel.training.fit import Curves
from geolabel.training.train import training_folder

# Folders


def test_what_workers_write_is_on_the_record_of_the_folder(tmp_path: Path) -> None:
    def write(name: str) -> None:
        with written_elsewhere(tmp_path), saving(tmp_path / name) as part:
            part.write_text(name)

    (tmp_path / "mine").write_text("a person's")
    with making(tmp_path):
        promise([tmp_path / "a", tmp_path / "b"])
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, "ab"))
        with pytest.raises(OutputError, match="mine was changed, or not written by geolabel"):
            promise([tmp_path / "mine"])
    made = FolderRecord.read(tmp_path)
    assert made is not None
    assert (made.names, made.growing) == (["a", "b"], set())
    assert made.owns("a")
    (tmp_path / "a").write_text("changed")
    assert FolderRecord.read(tmp_path).changed() == ["a"]  # type: ignore[union-attr]


def contents(root: Path) -> dict[str, bytes]:
    """Files below a folder, but for records."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(found.items()) if Path(name).name != RECORD}


def build(out: Path, names: tuple[str, ...], text: str, *, overwrite: bool = False) -> None:
    with replacing_folder(out, overwrite=overwrite) as folder:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)


SET = ("images/a.tif", "images/b.tif", "labels.csv")


def test_a_new_set_takes_the_place_of_the_old_one_alone(tmp_path: Path) -> None:
    out = tmp_path / "chips"
    build(out, SET, "old")
    for name in ("notes.txt", "images/mine.tif", "gis/map.qgz"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    build(out, ("images/b.tif", "masks/b.png", "labels.csv"), "new", overwrite=True)
    assert contents(out) == {
        "gis/map.qgz": b"mine",
        "images/b.tif": b"new",
        "images/mine.tif": b"mine",
        "labels.csv": b"new",
        "masks/b.png": b"new",
        "notes.txt": b"mine",
    }
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["chips.json", "manifest.json", "run.json", "instances.json", "clusters.json", RECORD])
def test_a_folder_that_looks_like_one_of_ours_is_not_ours(tmp_path: Path, name: str, overwrite: bool) -> None:
    for file in (name, "images/a.tif", "labels/a.png", "regions/a", "annotations/a.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="no record that geolabel wrote"):
        build(tmp_path, SET, "new", overwrite=overwrite)
    assert contents(tmp_path) == before


def test_what_a_person_changed_is_not_replaced(tmp_path: Path) -> None:
    build(tmp_path / "chips", SET, "old")
    (tmp_path / "chips/labels.csv").write_text("odd")  # as many bytes
    with pytest.raises(OutputError, match=r"labels\.csv was changed, or not written by geolabel"):
        build(tmp_path / "chips", SET, "new", overwrite=True)
    assert contents(tmp_path / "chips") == dict.fromkeys(SET[:2], b"old") | {"labels.csv": b"odd"}


def test_a_file_of_a_person_is_not_in_the_way_of_anything(tmp_path: Path) -> None:
    out = tmp_path / "chips"
    build(out, SET, "old")
    (out / "masks").mkdir()
    (out / "masks/b.png").write_text("mine")
    before = contents(out)
    with pytest.raises(OutputError, match=r"b\.png was changed, or not written by geolabel"):
        build(out, (*SET, "masks/b.png"), "new", overwrite=True)
    assert contents(out) == before


@pytest.mark.parametrize("what", ["link", "folder"])
def test_what_took_the_place_of_a_file_of_ours_is_not_followed_or_deleted(tmp_path: Path, what: str) -> None:
    out = tmp_path / "chips"
    build(out, SET, "old")
    (tmp_path / "theirs").write_text("old")
    (out / SET[0]).unlink()
    if what == "link":
        (out / SET[0]).symlink_to(tmp_path / "theirs")
    else:
        (out / SET[0]).mkdir()
    with pytest.raises(OutputError, match=r"a\.tif was changed, or not written by geolabel"):
        build(out, SET, "new", overwrite=True)
    assert (tmp_path / "theirs").read_text() == "old"


def test_a_record_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "chips"
    build(out, SET, "old")
    (tmp_path / "thesis.tex").write_text("old")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/x").write_text("old")
    (out / "link").symlink_to(tmp_path / "theirs")
    size, digest = next(iter(FolderRecord.read(out).marks["labels.csv"]))  # type: ignore[union-attr]
    with (out / RECORD).open("a") as file:
        for name in ("../thesis.tex", str(tmp_path / "thesis.tex"), "link/x", "a/../../thesis.tex"):
            file.write(json.dumps([name, size, digest]) + "\n")
    made = FolderRecord.read(out)
    assert made is not None
    made.remove(made.names)
    assert (tmp_path / "thesis.tex").exists()
    assert (tmp_path / "theirs/x").exists()
    assert contents(out) == {}


def test_one_file_that_cannot_be_moved_costs_neither_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "chips"
    build(out, SET, "old")
    rename = Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if source == out / SET[1]:
            raise OSError(errno.EPERM, "Operation not permitted", str(source), None, str(target))
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match=r"is unchanged, and the new files are in .*chips\.new"):
        build(out, SET, "new", overwrite=True)
    assert contents(out) == dict.fromkeys(SET, b"old")
    assert contents(tmp_path / "chips.new") == dict.fromkeys(SET, b"new")


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), replacing_folder(tmp_path / "chips", overwrite=False):
        raise ValueError("broken")
    assert not list(tmp_path.iterdir())


def test_a_torn_line_of_a_record_costs_one_file(tmp_path: Path) -> None:
    with work_folder(tmp_path / "out", overwrite=False) as folder:
        for name in ("a", "b"):
            with saving(folder / name) as part:
                part.write_text(name)
    record = tmp_path / "out" / RECORD
    record.write_bytes(record.read_bytes()[:-9])
    with making(tmp_path / "out"), saving(tmp_path / "out" / "c") as part:
        part.write_text("c")
    made = FolderRecord.read(tmp_path / "out")
    assert made is not None
    assert [made.owns(name) for name in "abc"] == [True, False, True]


def test_a_run_works_where_it_can_be_resumed_while_the_old_stands(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def work(*, resumed: bool, ends: bool) -> None:
        with work_folder(out, overwrite=True, goes_on=lambda _: resumed) as folder:
            assert (folder / "step").exists() == resumed
            with saving(folder / "step") as part:
                part.write_text("new")
            if not ends:
                raise KeyboardInterrupt

    with work_folder(out, overwrite=False) as folder:
        assert folder == out
        with saving(folder / "step") as part:
            part.write_text("old")
    (out / "notes").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        work(resumed=False, ends=False)
    assert (out / "step").read_text() == "old"
    assert (out / WORK / "step").read_text() == "new"
    with pytest.raises(KeyboardInterrupt):
        work(resumed=True, ends=False)
    work(resumed=False, ends=True)
    assert contents(out) == {"notes": b"mine", "step": b"new"}


def test_two_runs_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path, overwrite=False),
        pytest.raises(OutputError, match="in use by another run"),
        work_folder(tmp_path, overwrite=False),
    ):
        pass


def test_an_output_folder_is_apart_from_every_input(tmp_path: Path) -> None:
    (tmp_path / "chips/images").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "chips")
    scene = tmp_path / "chips/scene.tif"
    scene.touch()
    for out in ("chips", "link", "chips/../chips", "chips/images", "chips/new", "link/new"):
        with pytest.raises(OutputError, match=r"input of this run \(.*chips\)"):
            check_folder(tmp_path / out, ["s3://bucket/chips", tmp_path / "chips"])
    with pytest.raises(OutputError, match="contains an input"):
        check_folder(tmp_path, [tmp_path / "link/images"])
    check_folder(tmp_path, [tmp_path / "link/images"], shared=True)
    check_folder(tmp_path / "other", [tmp_path / "chips", scene])
    check_folder(tmp_path, [scene])


def test_a_full_disk_while_a_record_is_written_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with making(tmp_path):
        with saving(tmp_path / "a") as part:
            part.write_text("old")
        monkeypatch.setattr(
            FolderRecord, "note", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
        )
        with pytest.raises(OutputError, match="No space left"), saving(tmp_path / "a") as part:
            part.write_text("new")
    assert contents(tmp_path) == {"a": b"old"}


# Commands


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/scene.tif"
    pixels = np.random.default_rng(0).integers(20, 60, (3, 128, 160)).astype(np.uint8)
    pixels[:, 30:60, 40:90] = 230
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=128,
        width=160,
        crs="EPSG:32648",
        photometric="rgb",
        transform=Affine(0.5, 0, 5e5, 0, -0.5, 3e6),
    ) as target:
        target.write(pixels)
    with (
        rasterio.open(path) as source,
        rasterio.open(
            path.with_name("mask.tif"), "w", **source.profile | {"count": 1, "photometric": "minisblack"}
        ) as target,
    ):
        target.write((pixels[:1] == 230).astype(np.uint8))
    outline = shapely.box(5e5 + 20, 3e6 - 30, 5e5 + 45, 3e6 - 15)
    gpd.GeoDataFrame(geometry=[outline], crs="EPSG:32648").to_file(path.with_name("truth.gpkg"))
    return path


def polygonize(scene: Path, out: Path) -> list[str]:
    return ["polygonize", str(scene.with_name("mask.tif")), "--out", str(out / "slides.gpkg")]


def synthesize(scene: Path, out: Path) -> list[str]:
    return ["synthesize", str(out / "drawn.tif"), "--size", "64"]


def chips(scene: Path, out: Path) -> list[str]:
    inventory = str(scene.with_name("truth.gpkg"))
    return ["chips", str(scene), "--inventory", inventory, "--out", str(out / "chips"), "--size", "64"]


def pack(scene: Path, out: Path) -> list[str]:
    (scene.parent / "fields").mkdir(exist_ok=True)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(scene.parent / "fields/a.png")
    return ["chips", "--pack", str(out / "pack.zip"), "--negatives", str(scene.parent / "fields")]


def show(scene: Path, out: Path) -> list[str]:
    pseudo = scene.with_name("pseudo")
    if not pseudo.exists():
        writer = PseudoLabelWriter(pseudo, ("cluster_0", "cluster_1"), {"method": "alps"})
        values = np.zeros((16, 16), np.uint8)
        values[4:9, 4:9] = 1
        for name in ("a", "b"):
            labels = LabelMap(values, np.ones(values.shape, np.float32), writer.classes)
            writer.write(name, np.full((16, 16, 3), 90, np.uint8), labels)
        writer.finish(["a", "b"])
        clusters = Clusters(np.eye(2, dtype=np.float32), np.array([2, 2]), writer.classes)
        save_clusters(pseudo / "clusters.json", ClusterFile(clusters, Source("", 64), {"method": "alps"}))
    return ["clusters", "show", str(pseudo), "--out", str(out / "sheets"), "--each", "2"]


def extract(scene: Path, out: Path) -> list[str]:
    words = ["extract", str(scene), "--out", str(out / "slides.gpkg"), "--score-out", str(out / "score.tif")]
    return [*words, "--mask-out", str(out / "mask.tif")]


def predict(scene: Path, out: Path) -> list[str]:
    return ["predict", str(scene), "--out", str(out / "score.tif")]


def segment(scene: Path, out: Path) -> list[str]:
    return ["segment", str(scene), "--out", str(out / "segments.gpkg"), "--points-per-side", "1"]


COMMANDS: list[Callable[[Path, Path], list[str]]] = [
    polygonize,
    synthesize,
    chips,
    pack,
    show,
    extract,
    predict,
    segment,
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words.__name__)
def test_overwrite_keeps_the_old_until_the_new_stands(
    words: Callable[[Path, Path], list[str]],
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    asked = [*words(scene, out), "-q"]
    assert command(asked) == 0, capsys.readouterr().err
    for folder in (out, *(path for path in out.iterdir() if path.is_dir())):
        (folder / "notes.txt").write_text("mine")
    before, given = contents(out), contents(scene.parent)
    assert len(before) > 1
    assert command(asked) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert contents(out) == before

    for place in ("geolabel.outputs.commit", "geolabel.folders.commit"):
        monkeypatch.setattr(place, full)
    assert command([*asked, "--overwrite"]) == 1
    assert "No space left" in capsys.readouterr().err
    kept = {name: data for name, data in contents(out).items() if ".run/" not in name}
    assert kept == before
    monkeypatch.undo()

    assert command([*asked, "--overwrite"]) == 0, capsys.readouterr().err
    after = contents(out)
    assert after.keys() == before.keys()
    assert {name for name in after if name.endswith("notes.txt")} < after.keys()
    assert not list(out.rglob(".geolabel-*.part"))
    assert contents(scene.parent) == given


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words.__name__)
def test_a_full_disk_leaves_nothing_and_the_same_command_completes(
    words: Callable[[Path, Path], list[str]],
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    asked = [*words(scene, out), "-q"]
    for place in ("geolabel.outputs.commit", "geolabel.folders.commit"):
        monkeypatch.setattr(place, full)
    assert command(asked) == 1
    assert not [name for name in contents(out) if ".run/" not in name and ".new/" not in name]
    monkeypatch.undo()
    assert command(asked) == 0, capsys.readouterr().err


def mosaic(path: Path, *sources: Path) -> None:
    """Write a VRT of rasters as they lie."""
    with rasterio.open(sources[0]) as first:
        transform = ", ".join(map(str, first.transform.to_gdal()))
        bands = "".join(
            f"<VRTRasterBand dataType='Byte' band='{band}'>"
            + "".join(
                f"<SimpleSource><SourceFilename relativeToVRT='0'>{source}</SourceFilename><SourceBand>{band}"
                f"</SourceBand><SrcRect xOff='0' yOff='0' xSize='{first.width}' ySize='{first.height}'/>"
                f"<DstRect xOff='0' yOff='0' xSize='{first.width}' ySize='{first.height}'/></SimpleSource>"
                for source in sources
            )
            + "</VRTRasterBand>"
            for band in range(1, first.count + 1)
        )
        path.write_text(
            f"<VRTDataset rasterXSize='{first.width}' rasterYSize='{first.height}'><SRS>EPSG:32648</SRS>"
            f"<GeoTransform>{transform}</GeoTransform>{bands}</VRTDataset>"
        )


@pytest.mark.parametrize("link", ["none", "symbolic", "hard", "vrt"])
@pytest.mark.parametrize("command_of", [extract, predict], ids=lambda words: words.__name__)
def test_an_output_is_not_what_the_scene_is_read_from(
    command_of: Callable[[Path, Path], list[str]],
    link: str,
    scene: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    target, given = out / "score.tif", scene
    if link == "none":
        given = target
        scene.rename(target)
    elif link == "symbolic":
        target.symlink_to(scene)
    elif link == "hard":
        target.hardlink_to(scene)
    else:
        scene.rename(target)
        given = scene.with_name("mosaic.vrt")
        mosaic(given, target)
    before = target.read_bytes()
    assert command([*command_of(given, out), "--overwrite", "-q"]) == 1
    said = capsys.readouterr().err
    assert ("is a symbolic link to" if link == "symbolic" else "is an input of this run") in said
    assert str(target) in said
    assert target.read_bytes() == before


@pytest.mark.parametrize("command_of", [polygonize, synthesize, predict, pack], ids=lambda words: words.__name__)
def test_an_output_that_is_a_link_is_refused(
    command_of: Callable[[Path, Path], list[str]],
    scene: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    out.mkdir()
    words = command_of(scene, out)
    target = next(Path(word) for word in words if word.startswith(str(out)))
    for there in (True, False):
        if there:
            theirs.write_text("mine")
        else:
            theirs.unlink()
        target.unlink(missing_ok=True)
        target.symlink_to(theirs)
        assert command([*words, "--overwrite", "-q"]) == 1
        assert f"{target} is a symbolic link to {theirs}" in capsys.readouterr().err
        assert theirs.exists() == there
        assert not there or theirs.read_text() == "mine"


def test_chips_are_not_cut_from_one_of_the_set_that_is_replaced(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([*chips(scene, tmp_path), "-q"]) == 0
    chip = sorted((tmp_path / "chips/images").iterdir())[0]
    before = contents(tmp_path / "chips")
    assert command([*chips(scene, tmp_path)[:1], str(chip), *chips(scene, tmp_path)[2:], "--overwrite", "-q"]) == 1
    assert f"contains an input of this run ({chip})" in capsys.readouterr().err
    assert contents(tmp_path / "chips") == before


@pytest.mark.parametrize(
    "words",
    [
        ["label", "{mine}", "--method", "apsam", "--out", "{mine}"],
        ["label", "{mine}", "--method", "alps", "--out", "{mine}/images"],
        ["label", "{mine}", "--method", "apsam", "--out", "{mine}/pseudo"],
        ["label", "{mine}/images", "--method", "alps", "--out", "{mine}"],
        ["label", "{link}", "--method", "apsam", "--out", "{mine}"],
        ["train", "localizer", "{mine}", "--out", "{mine}"],
        ["train", "student", "{mine}", "--out", "{mine}/images"],
        ["study", "threshold", "{mine}", "--out", "{mine}"],
        ["study", "alps", "{mine}", "--out", "{mine}/study"],
        ["clusters", "show", "{pseudo}", "--out", "{pseudo}"],
        ["clusters", "show", "{pseudo}", "--out", "{pseudo}/images"],
    ],
    ids=lambda words: " ".join(words),
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_inputs_is_no_folder_of_outputs(
    words: list[str], scene: Path, tmp_path: Path, overwrite: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    show(scene, tmp_path)
    mine, link, pseudo = tmp_path / "mine", tmp_path / "link", scene.with_name("pseudo")
    (mine / "images").mkdir(parents=True)
    link.symlink_to(mine)
    for name in ("images/a.png", "instances.json", "labels.csv", "manifest.json", "run.json"):
        (mine / name).write_text("image,label\nimages/a.png,1\n")
    before = contents(tmp_path)
    asked = [word.format(mine=mine, link=link, pseudo=pseudo) for word in words]
    assert command([*asked, "-q", *(["--overwrite"] if overwrite else [])]) == 1
    assert "input of this run" in capsys.readouterr().err
    assert contents(tmp_path) == before


def trained(out: Path, text: str, *, overwrite: bool = False, resume: bool = False, ends: bool = True) -> None:
    """Do what a training does in its folder."""
    with training_folder(out, "localizer.safetensors", overwrite=overwrite, resume=resume) as folder:
        with Curves(folder, after=0) as curves:
            curves.losses(1, 0.5, {"loss": 1.0})
        for name in ("state.pt", *(["localizer.safetensors"] if ends else [])):
            with saving(folder / name) as part:
                part.write_text(text)
        if not ends:
            raise KeyboardInterrupt


def test_a_training_stands_until_the_next_one_has_ended(tmp_path: Path) -> None:
    out = tmp_path / "trained"
    trained(out, "old")
    for name in ("notes.txt", "student.safetensors"):
        (out / name).write_text("mine")
    before = contents(out)
    with pytest.raises(OutputError, match="of an earlier training: give --resume"):
        trained(out, "new")
    with pytest.raises(KeyboardInterrupt):
        trained(out, "new", overwrite=True, ends=False)
    assert {name: data for name, data in contents(out).items() if WORK not in name} == before
    trained(out, "new", overwrite=True, resume=True)
    after = contents(out)
    assert after.keys() - {name for name in after if "tensorboard" in name} == {
        "curves.csv",
        "localizer.safetensors",
        "notes.txt",
        "state.pt",
        "student.safetensors",
    }
    assert after["localizer.safetensors"] == after["state.pt"] == b"new"
    assert after["notes.txt"] == after["student.safetensors"] == b"mine"


@pytest.mark.parametrize("name", ["curves.csv", "selection.csv", "state.pt"])
def test_a_training_takes_no_file_of_that_name_for_its_own(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(
            OutputError, match=rf"{name} (was changed, or not written by geolabel|of an earlier training)"
        ):
            trained(tmp_path, "new", **options)
        assert (tmp_path / name).read_text() == "mine"


def test_a_reader_of_chips_after_a_kill_reads_one_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(names: tuple[str, ...], text: str) -> None:
        with replacing_folder(tmp_path / "chips", overwrite=True) as folder:
            for name in names:
                (folder / name).write_text(text)
            (folder / "labels.csv").write_text("image,label\n" + "".join(f"{name},1\n" for name in names))

    def die(*_: object) -> bool:
        return False

    cut(("a.png", "b.png"), "old")
    rename, left = Path.replace, [5]

    def kill(source: Path, target: Path) -> Path:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr("geolabel.scratch._undo", die)  # as after SIGKILL
        patch.setattr(Path, "replace", kill)
        cut(("b.png", "c.png"), "new")
    found = read_chips(tmp_path / "chips")
    assert found.names == ("a", "b")
    assert {path.read_text() for path in found.paths} == {"old"}
    assert sorted(contents(tmp_path)) == ["chips/a.png", "chips/b.png", "chips/labels.csv"]
