"""Names of files that libraries take for something else, or cannot hold."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from geolabel.cli.main import run
from geolabel.errors import OptionError
from geolabel.extraction.polygonize import polygonize
from geolabel.io.write.geopackage import read_provenance
from geolabel.parsing import check_name, exists

ODD = ["x!y", "x;y", "x#y", "x?y=1", "x%20y", "x y", "日本 ä", "x[1]y", "it's", "a+b&c$d", "x.zip"]
WINDOWS = set('?"*<>|:')


def mask(path: Path) -> Path:
    values = np.zeros((1, 40, 50), np.uint8)
    values[0, 10:30, 10:40] = 1
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=1,
        height=40,
        width=50,
        crs="EPSG:32648",
        transform=Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000),
    ) as file:
        file.write(values)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("name", [name for name in ODD if sys.platform != "win32" or not WINDOWS & set(name)])
@pytest.mark.parametrize("relative", [False, True], ids=["whole", "relative"])
def test_files_of_any_name_are_read_and_written_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, relative: bool
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    raster, out = mask(folder / f"{name}.tif"), folder / f"{name}.gpkg"
    monkeypatch.chdir(folder)
    if relative:
        raster, out = Path(raster.name), Path(out.name)
    found = polygonize(raster, out=out)
    assert len(found) == 1
    assert found["source"].tolist() == [str(raster)]
    assert names_in(folder) == sorted([raster.name, out.name])
    assert names_in(tmp_path) == [name]
    assert read_provenance(out)["raster"]["name"] == str(raster)
    polygonize(raster, out=out, overwrite=True)
    assert names_in(folder) == sorted([raster.name, out.name])


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_names_that_are_no_text_are_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/hang_\xe4")
    scene = mask(tmp_path / "scene.tif").rename(f"{name}.tif")
    area = tmp_path / "area.geojson"
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=4326).to_file(area)
    area.rename(f"{name}.geojson")
    plain = str(mask(tmp_path / "plain.tif"))
    out = str(tmp_path / "o.gpkg")
    for arguments in (
        ["extract", str(scene), "--out", out],
        ["extract", str(tmp_path / "hang*.tif"), "--out", out],
        ["extract", plain, "--out", f"{name}.gpkg"],
        ["extract", plain, "--out", out, "--aoi", f"{name}.geojson"],
        ["extract", plain, "--out", out, "--run-dir", name],
        ["predict", str(scene), "--out", str(tmp_path / "o.tif")],
        ["polygonize", str(scene), "--out", out],
        ["polygonize", plain, "--out", f"{name}.gpkg"],
        ["info", str(scene)],
    ):
        assert run([*arguments, *([] if arguments[0] == "info" else ["-q"])]) == 2, arguments
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        assert r"hang_\xe4" in said
        assert "not UTF-8 text" in said
    left = [os.fsencode(file) for file in names_in(tmp_path)]
    assert left == [b"hang_\xe4.geojson", b"hang_\xe4.tif", b"plain.tif"]


def test_any_text_is_a_name() -> None:
    for name in (*ODD, "a\nb", "https://a.example/ä.tif"):
        check_name(name)
    with pytest.raises(OptionError, match=r"a\\xff"):
        check_name("a\udcff")


def test_half_a_character_is_no_name():
    with pytest.raises(OptionError, match=r"the name a\\ud800\.tif is not UTF-8 text"):
        check_name("a\ud800.tif")
    assert not exists("a\ud800.tif")
