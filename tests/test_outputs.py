from pathlib import Path

import pytest

from geolabel.cli.main import run
from geolabel.errors import OutputError
from geolabel.outputs import check_target, replacing, saving


def test_an_input_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scene = tmp_path / "scene.tif"
    scene.write_bytes(b"")
    (tmp_path / "link.tif").symlink_to(scene)
    monkeypatch.chdir(tmp_path)
    for name in (scene, tmp_path / "link.tif", Path("scene.tif")):
        with pytest.raises(OutputError, match="is an input of this run"):
            check_target(name, overwrite=True, suffixes=(".tif",), inputs=["s3://bucket/other.tif", str(scene)])
    check_target(tmp_path / "out.tif", overwrite=False, suffixes=(".tif",), inputs=["s3://bucket/out.tif", scene])


@pytest.mark.parametrize(
    "name",
    [
        "zip://{}!a.tif",
        "zip://{}",
        "/vsizip/{}/folder/a.tif",
        "/vsizip/{{{}}}/a.tif",
        "GPKG:{}:table",
        'NETCDF:"{}":red',
    ],
)
def test_a_file_that_holds_an_input_is_no_output(tmp_path: Path, name: str):
    held = tmp_path / "held.zip"
    held.write_bytes(b"")
    with pytest.raises(OutputError, match="is an input of this run"):
        check_target(held, overwrite=True, suffixes=(".zip",), inputs=[name.format(held)])
    check_target(held, overwrite=True, suffixes=(".zip",), inputs=[name.format(tmp_path / "other.zip")])


def test_suffixes_are_compared_without_case(tmp_path: Path):
    check_target(tmp_path / "OUT.GPKG", overwrite=False, suffixes=(".gpkg",))
    with pytest.raises(OutputError, match=r"must end with \.tif or \.tiff"):
        check_target(tmp_path / "out.gpkg", overwrite=False, suffixes=(".tif", ".tiff"))


def test_a_finished_file_takes_its_place_and_leaves_nothing_beside(tmp_path: Path):
    path = tmp_path / "out.gpkg"
    for text in ("one", "two"):
        with replacing(path, overwrite=text == "two") as part:
            assert (part.name, part.parents[3]) == ("out.gpkg", tmp_path)
            part.write_text(text)
            for sidecar in ("-journal", "-wal", "-shm", ".aux.xml"):
                part.with_name(part.name + sidecar).touch()
            assert path.exists() == (text == "two")
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_is_there(tmp_path: Path):
    path = tmp_path / "out.tif"
    path.write_text("old")

    def fail() -> None:
        with replacing(path, overwrite=True) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appeared_in_the_meantime_is_kept(tmp_path: Path):
    path = tmp_path / "out.tif"

    def race() -> None:
        with replacing(path, overwrite=False) as part:
            part.write_text("late")
            path.write_text("first")

    with pytest.raises(OutputError, match="exists: give --overwrite"):
        race()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["nowhere/out.tif", "file.txt/out.tif"])
def test_folders_that_are_none(tmp_path: Path, name: str):
    (tmp_path / "file.txt").touch()
    with pytest.raises(OutputError, match=r"the folder .* does not exist"):
        check_target(tmp_path / name, overwrite=False, suffixes=(".tif",))


@pytest.mark.parametrize("study", ["threshold", "s2c", "alps", "diffuprompter"])
def test_a_study_replaces_no_folder_of_other_things(tmp_path: Path, study: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "chips").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert run(["study", study, str(tmp_path / "chips"), "--out", str(tmp_path / "out"), "--overwrite", "-q"]) == 1
    assert "contains thesis.tex" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.tex").exists()


DESCRIPTIONS = {
    "scores.tif": ["scores.tif.aux.xml", "scores.tif.ovr", "scores.tif.msk", "scores.tif.msk.ovr", "scores.TFW"],
    "scores.TIFF": ["scores.TIFF.aux.xml", "scores.tfw"],
    "label.png": ["label.png.aux.xml", "label.pgw", "label.png.msk"],
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_what_described_the_old_file_goes_with_it(tmp_path: Path, name: str):
    stem = Path(name).stem
    kept = [f"{stem}.qml", f"{stem}.prj", f"{stem}2.tfw", f"{stem}_b.tif.ovr", "other.tif.aux.xml"]
    for file in (name, *DESCRIPTIONS[name], *kept):
        (tmp_path / file).write_text("old")
    with replacing(tmp_path / name, overwrite=True) as part:
        part.write_text("new")
        assert all((tmp_path / file).exists() for file in DESCRIPTIONS[name])
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, *kept])
    assert (tmp_path / name).read_text() == "new"


def test_what_describes_the_old_file_stays_with_it_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, sidecar = tmp_path / "out.tif", tmp_path / "out.tif.aux.xml"
    for file in (path, sidecar):
        file.write_text("old")
    rename = Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if path in (source, target):
            raise PermissionError("in use")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match=r"in use.*the old file is unchanged"), saving(path) as part:
        part.write_text("new")
    assert sorted(tmp_path.iterdir()) == [path, sidecar]
    assert {file.read_text() for file in (path, sidecar)} == {"old"}
