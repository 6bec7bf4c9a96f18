"""Packs: what goes in comes out, the same bytes each time, and nothing else comes in."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from geolabel.cli.chips import chips
from geolabel.cli.train import train
from geolabel.errors import OptionError, OutputError
from geolabel.training import bundled_data
from geolabel.training.bundled_data import read_pictures, unpack, write_pack


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Two landslides, as JPEG and PNG, one of them for reports, and a field as GeoTIFF with four bands."""
    data, negatives = tmp_path / "slides", tmp_path / "fields"
    for folder in (data / "images", data / "masks", negatives):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 10:30] = 255
    for name in ("hill.jpg", "slope003.png"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(data / "images" / name)
        Image.fromarray(mask).save(data / "masks" / f"{Path(name).stem}.png")
    Image.fromarray(rng.integers(0, 255, (30, 30, 4), np.uint8), "RGBA").save(negatives / "field.tif")
    return data, negatives


def test_pictures_come_out_as_they_went_in(folders, tmp_path):
    data, negatives = folders
    counted = write_pack(tmp_path / "p.zip", data=data, negatives=negatives, exclude=["003"])
    assert counted == {"images": 1, "masks": 1, "negatives": 1, "bytes": (tmp_path / "p.zip").stat().st_size}
    out, without = unpack(tmp_path / "p.zip", tmp_path / "out")
    assert (out / "images" / "hill.jpg").read_bytes() == (data / "images" / "hill.jpg").read_bytes()
    (before,) = read_pictures(data, exclude=["003"], zooms=(1, 1))
    (after,) = read_pictures(out, exclude=[], zooms=(1, 1))
    assert np.array_equal(before.rgb, after.rgb)
    assert np.array_equal(before.slides, after.slides)
    assert after.slides.sum() == 200
    (field,) = read_pictures(without, exclude=[], zooms=(1, 1))
    assert field.rgb.shape == (30, 30, 3)
    assert not field.slides.any()


def test_synthetic_scenes_are_packed_by_seed(tmp_path):
    assert write_pack(tmp_path / "p.zip", seeds=[3], size=64)["images"] == 1
    out, without = unpack(tmp_path / "p.zip", tmp_path / "out")
    assert [p.name for p in (out / "masks").iterdir()] == ["synthetic_3_scene.png"]
    assert without is None


def test_the_same_pictures_give_the_same_bytes(folders, tmp_path):
    for name in ("a.zip", "b.zip"):
        write_pack(tmp_path / name, data=folders[0], negatives=folders[1])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_pack_that_is_too_large_is_refused_with_its_numbers(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled_data, "LARGEST", 4000)
    with pytest.raises(OptionError, match=r"(?s)MB \(data/images .* MB in 2,.*limit.*--quality below 92"):
        write_pack(tmp_path / "p.zip", data=folders[0])
    assert not list(tmp_path.glob("*p.zip*"))


def test_what_cannot_be_packed_is_named(folders, tmp_path):
    data, negatives = folders
    with pytest.raises(OptionError, match="nothing to pack"):
        write_pack(tmp_path / "p.zip")
    with pytest.raises(OptionError, match="holds no image to pack"):
        write_pack(tmp_path / "p.zip", negatives=tmp_path / "missing")
    Image.new("RGB", (9, 9)).save(negatives / "field.png")
    with pytest.raises(OptionError, match="field in two formats"):
        write_pack(tmp_path / "p.zip", negatives=negatives)
    (data / "masks" / "hill.png").unlink()
    with pytest.raises(OptionError, match=r"hill.jpg has no .*hill.png"):
        write_pack(tmp_path / "p.zip", data=data)
    (data / "masks" / "hill.png").write_bytes((data / "masks" / "slope003.png").read_bytes())
    (data / "images" / "hill.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(OptionError, match="cannot be read"):
        write_pack(tmp_path / "p.zip", data=data)


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "data/images/../../evil.png", "data/images/a.npy"])
def test_members_of_other_names_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(OptionError, match="is not a pack of pictures"):
        unpack(tmp_path / "p.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_unpacks_to_more_than_a_pack_may_hold_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/images/a.jpg", bytes(bundled_data.LARGEST + 1))
    with pytest.raises(OptionError, match=r"content has 30.0 MB"):
        unpack(tmp_path / "p.zip", tmp_path / "out")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "p.zip").write_bytes(io.BytesIO(b"no archive").getvalue())
    for name in ("p.zip", "missing.zip"):
        with pytest.raises(OptionError, match="cannot be read as a pack"):
            unpack(tmp_path / name, tmp_path / "out")


def invoke(command, *arguments: object):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def test_options_of_runs_are_refused_beside_a_pack(tmp_path):
    for option in (["--workers", "2"], ["--keep"]):
        done = invoke(chips, "--pack", tmp_path / "p.zip", "--seeds", "3", *option)
        assert done.exit_code == 2
        assert "are for SCENE: leave them out of --pack" in " ".join(done.output.split())


def test_the_command_packs(folders, tmp_path):
    done = invoke(
        chips,
        "--pack",
        tmp_path / "p.zip",
        "--data",
        folders[0],
        "--seeds",
        "1-2,5",
        "--exclude",
        "003",
        "--exclude",
        "hill",
        "--json",
    )
    assert isinstance(done.exception, OptionError)
    done = invoke(chips, "--pack", tmp_path / "p.zip", "--data", folders[0], "--exclude", "003", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["images"] == 1
    again = invoke(chips, "--pack", tmp_path / "p.zip", "--data", folders[0])
    assert isinstance(again.exception, OutputError)
    assert invoke(chips, "--pack", tmp_path / "q.zip", "--seeds", "a-b").exit_code == 2
    assert invoke(chips).exit_code == 2


def test_training_reads_a_pack(folders, tmp_path, monkeypatch):
    write_pack(tmp_path / "p.zip", data=folders[0], negatives=folders[1])
    seen = {}

    def stand_in(out, *, data, negatives, networks, **_):
        seen["names"] = sorted(p.name for folder in (data / "images", *negatives) for p in folder.iterdir())
        return {kind: {"score": 1.0} for kind in networks}

    monkeypatch.setattr("geolabel.training.bundled.train_bundled", stand_in)
    done = invoke(train, "bundled", "--out", tmp_path / "out", "--pack", tmp_path / "p.zip", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert seen["names"] == ["field.jpg", "hill.jpg", "slope003.jpg"]
    done = invoke(train, "bundled", "--out", tmp_path, "--pack", tmp_path / "p.zip", "--data", folders[0])
    assert isinstance(done.exception, OptionError)
