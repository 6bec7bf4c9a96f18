"""Small files of strangers end in geolabel's errors: no traceback, no hang, no memory that was not asked for."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from PIL import Image

from geolabel.datasets.chips import read_chips, read_image
from geolabel.datasets.instances import CocoInstances, read_instances
from geolabel.datasets.pseudo_labels import PseudoLabels, load_clusters
from geolabel.engine.run_state import State
from geolabel.engine.tasks import unpack
from geolabel.errors import ChipError, GeolabelError, SceneError, VectorError
from geolabel.image_files import open_picture
from geolabel.io.read import scene_inputs
from geolabel.io.read.features import spatial_layers
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.io.read.scenes import SceneReader
from geolabel.models.checkpoint import NetworkInfo
from geolabel.models.confidence import load_confidence
from geolabel.parsing import parse_json, parse_xml

DEEP = b"[" * 100_000
LONG = "x" * 5000

COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[0, 0, 4, 0, 4, 4]]}],
    "categories": [{"id": 1, "name": "landslide"}],
}


def picture(path: Path, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    "text", [DEEP, b'{"a":' * 99_999, b"[" * 70 + b"]" * 70, b"[1", b"\xff\xfe\xff", b"1" * 5000, b'"' + b"x" * 2000]
)
def test_json_is_bounded(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text, limit=1000 if text.startswith(b'"') else 1 << 20)


@pytest.mark.parametrize(
    "text",
    [
        b"<a>" * 100_000,
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
        b"<!DOCTYPE a SYSTEM 'http://127.0.0.1/'><a/>",
        b"<a>&b;</a>",
        b"<a/><b/>",
        b"",
        b"<?xml version='1.0' encoding='none'?><a/>",
        b"<a>" + b"x" * 2000,
    ],
)
def test_xml_is_bounded_and_expands_nothing(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_xml(text, limit=1000 if b"xx" in text else 1 << 20)


def as_chips(text: bytes) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        picture(folder / "images" / "a.png")
        (folder / "labels.csv").write_text("image,label\nimages/a.png,1\n")
        (folder / "chips.json").write_bytes(text)
        return read_chips(folder)

    return read


def as_table(text: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        (folder / "labels.csv").write_text(text)
        return read_chips(folder)

    return read


def as_coco(**change: Any) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        picture(folder / "a.png")
        picture(folder.parent / "outside.png")
        (folder / "coco.json").write_text(json.dumps(COCO | change))
        return read_instances(folder / "coco.json")[0]

    return read


def with_outline(segmentation: Any, count: int = 1) -> Callable[[Path], Any]:
    return as_coco(annotations=[COCO["annotations"][0] | {"id": k, "segmentation": segmentation} for k in range(count)])


def with_image(**change: Any) -> Callable[[Path], Any]:
    return as_coco(images=[COCO["images"][0] | change])


def file_of(name: str, text: bytes, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def written(folder: Path) -> Any:
        (folder / name).write_bytes(text)
        return read(folder / name)

    return written


def manifest(**change: Any) -> Callable[[Path], Any]:
    values = {"format": 1, "images": ["a"], "classes": ["background", "x"], "provenance": {}, "results": {}} | change
    return file_of("manifest.json", json.dumps(values).encode(), lambda path: PseudoLabels(path.parent))


def clusters(**change: Any) -> Callable[[Path], Any]:
    source = {"segmenter": "", "tile": 64, "points_per_side": 4, "filters": {}, "max_share": 0.3}
    table = {"names": ["a"], "sizes": [1], "normalised": True, "centres": [[1.0]]}
    values = {"format": 1, "clusters": table, "source": source, "provenance": {}, "results": {}} | change
    return file_of("clusters.json", json.dumps(values).encode(), load_clusters)


CASES: dict[str, Callable[[Path], Any]] = {
    "chips.json of brackets": as_chips(DEEP),
    "chips.json of a number": as_chips(b"7"),
    "gsd of NaN": as_chips(b'{"classes": ["a"], "gsd_m": NaN}'),
    "negative gsd": as_chips(b'{"classes": ["a"], "gsd_m": -1}'),
    "gsd of 1e999": as_chips(b'{"classes": ["a"], "gsd_m": 1e999}'),
    "gsd of an integer of 400 digits": as_chips(b'{"classes": ["a"], "gsd_m": 1' + b"0" * 400 + b"}"),
    "gsd of text": as_chips(b'{"classes": ["a"], "gsd_m": "1"}'),
    "class of 5000 characters": as_chips(json.dumps({"classes": [LONG], "gsd_m": 1}).encode()),
    "class of two lines": as_chips(b'{"classes": ["a\\nb"], "gsd_m": 1}'),
    "class of a list": as_chips(b'{"classes": [["a"]], "gsd_m": 1}'),
    "table that names a file of 5000 characters": as_table(f"image,label\n{LONG}.png,1\n"),
    "table with a field of a megabyte": as_table("image,label\n" + "x" * (1 << 20) + ",1\n"),
    "table of zeros": as_table("image,label\n" + "\0" * 99 + ",1\n"),
    "COCO of brackets": file_of("a.json", DEEP, read_instances),
    "COCO of a list": file_of("a.json", b"[]", read_instances),
    "COCO with an absolute path": with_image(file_name="/etc/hostname"),
    "COCO with a path of Windows": with_image(file_name="C:\\a.png"),
    "COCO that leads up": with_image(file_name="../outside.png"),
    "COCO that leads up with backslashes": with_image(file_name="..\\outside.png"),
    "COCO with a file of 5000 characters": with_image(file_name=LONG),
    "COCO with a zero in a name": with_image(file_name="a\0.png"),
    "COCO with a size of 1e999": with_image(height=float("inf")),
    "COCO with another size": with_image(height=1 << 40),
    "COCO with a class of 5000 characters": as_coco(categories=[{"id": 1, "name": LONG}]),
    "COCO with a class of a list": as_coco(categories=[{"id": 1, "name": [1]}]),
    "run lengths of 2^40 px": with_outline({"size": [1 << 20, 1 << 20], "counts": [1 << 40]}),
    "run lengths of more than the image": with_outline({"size": [8, 8], "counts": [0, 1 << 40]}),
    "negative run lengths": with_outline({"size": [8, 8], "counts": [-(1 << 40), (1 << 40) + 64]}),
    "run lengths beyond 64 bits": with_outline({"size": [8, 8], "counts": [10**30, 64 - 10**30]}),
    "run lengths of text": with_outline({"size": [8, 8], "counts": ["64"]}),
    "compressed run lengths of 2^40 px": with_outline({"size": [8, 8], "counts": "ooooooooo0"}),
    "an outline of 1e308": with_outline([[0, 0, 1e308, 0, 1e308, 1e308]]),
    "an outline of NaN": with_outline([[0, 0, float("nan"), 0, 4, 4]]),
    "an outline of text": with_outline([["0", "0", "x", "0", "4", "4"]]),
    "manifest of brackets": file_of("manifest.json", DEEP, lambda path: PseudoLabels(path.parent)),
    "manifest of a list": file_of("manifest.json", b"[]", lambda path: PseudoLabels(path.parent)),
    "manifest that leads up": manifest(images=["../a"]),
    "manifest with an absolute path": manifest(images=["/etc/hostname"]),
    "manifest with a name of 5000 characters": manifest(images=[LONG]),
    "manifest with a class of a number": manifest(classes=[7]),
    "manifest of no format": manifest(format="x"),
    "clusters of brackets": file_of("clusters.json", DEEP, load_clusters),
    "clusters of a list": file_of("clusters.json", b"[]", load_clusters),
    "clusters with 10^9 points": clusters(
        source={"segmenter": "", "tile": 64, "points_per_side": 10**9, "filters": {}, "max_share": 0.3}
    ),
    "clusters with a share of NaN": clusters(
        source={"segmenter": "", "tile": 64, "points_per_side": 4, "filters": {}, "max_share": float("nan")}
    ),
    "clusters with a name of 5000 characters": clusters(
        clusters={"names": [LONG], "sizes": [1], "normalised": True, "centres": [[1.0]]}
    ),
    "confidence of brackets": file_of("a.json", DEEP, load_confidence),
    "network of brackets": lambda _: NetworkInfo.from_json(DEEP.decode()),
    "record of brackets": lambda _: unpack({"outline": np.frombuffer(DEEP, np.uint8)}, list[int]),
    "GeoJSON of brackets": file_of("a.geojson", b'{"type":"Polygon","coordinates":' + DEEP, spatial_layers),
    "GeoJSON of a number": file_of("a.geojson", b'{"type":"Polygon","coordinates":7}', lambda p: spatial_layers(p)[7]),
    "KML with entities": file_of("a.kml", b"<!DOCTYPE k [<!ENTITY a 'b'>]><kml>&a;</kml>", spatial_layers),
    "a zip that is none": file_of("a.zip", b"PK\3\4" + bytes(99), spatial_layers),
    "a scene of 5000 characters": lambda _: SceneReader(LONG).scene,
    "a listed scene of 5000 characters": file_of("a.txt", LONG.encode(), list_scenes),
    "a vector file of 5000 characters": lambda _: spatial_layers(LONG),
}


@pytest.mark.parametrize("read", CASES.values(), ids=CASES)
def test_a_small_file_ends_in_an_error_of_ours(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    try:
        read(folder)
    except GeolabelError as error:
        assert len(str(error)) < 1000  # noqa: PT017  # and says so in a line, whatever the file holds
    except IndexError:
        return  # of an empty layer
    else:
        pytest.fail("no error")


def test_a_run_that_is_described_by_brackets_is_damaged() -> None:
    with pytest.raises(ValueError, match="nested more than"):
        State.parse(DEEP)


def test_as_many_masks_as_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geolabel.datasets import instances

    monkeypatch.setattr(instances, "MAX_MASKS_PX", 640)
    assert len(with_outline([[0, 0, 4, 0, 4, 4]], 10)(tmp_path)[1].areas) == 10
    with pytest.raises(ChipError, match=r"11 objects on a\.png"):
        with_outline([[0, 0, 4, 0, 4, 4]], 11)(tmp_path)


def test_lists_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.tif\n" * 1_000_000)
    with pytest.raises(SceneError, match="lists 1000000 scenes; the limit for one run is 100000"):
        list_scenes(path)
    monkeypatch.setattr(scene_inputs, "MAX_SCENES", 1)
    item = {"type": "Feature", "assets": {"image": {"href": "a.tif"}}}
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item, item]}))
    with pytest.raises(SceneError, match="lists 2 scenes"):
        list_scenes(tmp_path / "items.json")


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_000, 10_000), (2**31 - 1, 2**31 - 1), (0, 5), (2**26, 2)])
def test_a_picture_may_not_claim_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png(*size))
    with pytest.raises(ChipError, match=r"a\.png cannot be read"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "start",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"BM" + bytes(60), b"GIF89a" + bytes(20), b"SIMPLE  ="],
)
def test_pictures_are_decoded_as_png_and_jpeg_alone(tmp_path: Path, start: bytes) -> None:
    """PostScript, for one, would be drawn by another program."""
    (tmp_path / "a.png").write_bytes(start)
    with pytest.raises(OSError, match="neither PNG, JPEG nor TIFF"), open_picture(tmp_path / "a.png") as opened:
        opened.load()


def test_a_chip_may_not_claim_any_size(tmp_path: Path) -> None:
    import rasterio

    with rasterio.open(
        tmp_path / "a.tif",
        "w",
        driver="GTiff",
        height=30_000,
        width=30_000,
        count=2,
        dtype="uint8",
        sparse_ok=True,
        crs="EPSG:32648",
        transform=Affine(1, 0, 5e5, 0, -1, 3e6),
    ):
        pass
    with pytest.raises(ChipError, match="claims 2 x 30000 x 30000"):
        read_image(tmp_path / "a.tif")


def test_an_archive_may_not_hold_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    from geolabel.io.read import vector_files

    monkeypatch.setattr(vector_files, "MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.geojson", bytes(1 << 22))
    with pytest.raises(VectorError, match="larger than 1 MB"):
        spatial_layers(tmp_path / "a.zip")


def test_a_good_file_is_read(tmp_path: Path) -> None:
    assert CocoInstances is type(read_instances(_good_coco(tmp_path)))
    assert as_chips(b'{"classes": ["a"], "gsd_m": 0.5}')(tmp_path).given_gsd == 0.5


def _good_coco(folder: Path) -> Path:
    as_coco()(folder)
    return folder / "coco.json"
