"""Files as strangers may send them: valid ones, changed at random, and read as geolabel reads them.

Usage: python tests/fuzzing.py FOLDER KIND:FIRST:STOP ...

A process of its own, so that a crash of a library is seen. It says ``end KIND N OUTCOME`` after every case; an outcome
is ``result`` or the name of one of geolabel's errors. Anything else ends the process: a traceback, a signal, a minute
without an answer. Case N of a kind is the same file whenever it is made.
"""

from __future__ import annotations

import faulthandler
import json
import random
import re
import resource
import shutil
import sqlite3
import struct
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine

from geolabel.engine.run_folder import RunFolderOptions, summarize
from geolabel.errors import GeolabelError
from geolabel.evaluation.evaluate import evaluate
from geolabel.extraction.extract import run_extract
from geolabel.extraction.outputs import Targets
from geolabel.extraction.plan import make_plan
from geolabel.extraction.polygonize import polygonize
from geolabel.extraction.request import Parameters
from geolabel.extraction.scene_groups import SceneGroups
from geolabel.io.read.features import read_aoi, read_prompts
from geolabel.io.read.scenes import SceneReader
from geolabel.io.records import SUFFIX, Store
from geolabel.io.write.geopackage import read_provenance
from geolabel.io.write.vectors import write_inventory
from geolabel.models import loading
from geolabel.models.checkpoint import NetworkInfo, save_checkpoint
from geolabel.models.nets import build
from geolabel.parts import LocalizerRecipe, SegmenterRecipe
from geolabel.prompts import Prompts
from geolabel.scene import Grid
from geolabel.testing import RECIPES
from geolabel.tiles import Window

LIMIT_S = 60
"""A case that takes longer hangs."""

SPARE_BYTES = 2 << 30
"""More memory than this no small file may ask for."""

LARGE = 1000
"""Tiles of a scene above which only its corners are read: to work on what a header claims would take days."""

EXTREMES = [0, 1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]

TOKENS = [
    "0",
    "-1",
    "1e308",
    "-1e308",
    "1e-320",
    "NaN",
    "Infinity",
    "99999999999999999999",
    "2147483648",
    "0.5",
    "null",
    "true",
    '""',
    '"x"',
    "[]",
    "{}",
    "[[]]",
    '"\\u0000"',
    '"\\ud800"',
    "[" * 900 + "]" * 900,
    '"' + "x" * 5000 + '"',
]

GRID = Grid(pyproj.CRS("EPSG:32648"), Affine(0.5, 0, 5e5, 0, -0.5, 3e6), 128, 128)


# --- changes ---------------------------------------------------------------------------------------------------------


def change_bytes(data: bytes, dice: random.Random) -> bytes:
    """Change a file here and there, most often near its beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 4, 8])):
        at = dice.randrange(len(changed) if dice.random() < 0.5 else min(len(changed), 600))
        match dice.randrange(6):
            case 0:
                changed[at] ^= 1 << dice.randrange(8)
            case 1:
                size, code = dice.choice([(1, "B"), (2, "H"), (4, "I"), (8, "Q")])
                value = dice.choice(EXTREMES) % (1 << 8 * size)
                changed[at : at + size] = struct.pack(dice.choice("<>") + code, value)
            case 2:
                changed[at : at + dice.randrange(1, 64)] = b""
            case 3:
                changed[at:at] = bytes(changed[at : at + dice.randrange(1, 64)])
            case 4:
                end = min(len(changed), at + dice.randrange(1, 200))
                changed[at:end] = bytes([dice.choice([0, 255])]) * (end - at)
            case 5:
                if dice.random() < 0.3:
                    del changed[at:]
        if not changed:
            return b""
    return bytes(changed)


def change_text(text: str, dice: random.Random) -> str:
    """Put other values, or none, in the place of numbers, words and brackets of a JSON text."""
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        tokens = list(re.finditer(r'-?[\d.][\d.eE+-]*|"[^"]*"|true|false|null|[\[\]{}:,]', text))
        if not tokens:
            return text
        token = dice.choice(tokens)
        new = dice.choice(TOKENS) if dice.random() < 0.8 else dice.choice(["", token.group() * 2, "]", "}", ","])
        text = text[: token.start()] + new + text[token.end() :]
    return text


def change_arrays(path: Path, dice: random.Random) -> None:
    """Change an array of a record, which stays whole: its checksums are right."""
    store, record = Store(path.parent.parent), (path.parent.name, int(path.stem))
    arrays = store.read(*record)
    name = dice.choice(sorted(arrays))
    array = arrays[name]
    match dice.randrange(6):
        case 0 if name == "outline":
            arrays[name] = np.frombuffer(change_text(array.tobytes().decode(), dice).encode(), np.uint8)
        case 0 | 1 if array.size:
            flat = array.reshape(-1).copy()
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                flat[dice.randrange(flat.size)] = np.asarray(dice.choice([*EXTREMES, -1])).astype(array.dtype)
            arrays[name] = flat.reshape(array.shape)
        case 2:
            arrays[name] = array.reshape(-1)[: array.size // 2]
        case 3:
            arrays[name] = array.astype(dice.choice([np.float64, np.int8, np.uint64, bool]))
        case 4:
            del arrays[name]
        case _:
            arrays[name] = np.concatenate([array.reshape(-1)] * 3)
    store.write(*record, arrays)


def change_table(path: Path, dice: random.Random) -> None:
    """Change a value of a GeoPackage by SQL: a geometry, an attribute, or what the file says of itself."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{trigger}"')  # they need functions that only GDAL has
        tables = [
            name
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if not name.startswith(("sqlite", "rtree"))
        ]
        table = dice.choice(["prompts", "prompt_points", "landslides", *tables])
        columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
        column = dice.choice(["geom", *columns] if "geom" in columns else columns)
        (old,) = database.execute(f'SELECT "{column}" FROM "{table}" LIMIT 1').fetchone() or (None,)
        new = (
            change_bytes(old, dice)
            if isinstance(old, bytes) and dice.random() < 0.8
            else dice.choice(
                [None, -1, 2**63 - 1, 1e308, "", "x" * 1000, b"", b"\x00\xff", "'; DROP TABLE prompts; --", 'a"b']
            )
        )
        try:
            database.execute(f'UPDATE OR REPLACE "{table}" SET "{column}" = ? WHERE rowid = 1', (new,))
        except sqlite3.Error:  # a constraint
            database.execute(f'DELETE FROM "{table}"')


# --- kinds of file ---------------------------------------------------------------------------------------------------


def picture(kind: str, count: int = 3) -> np.ndarray:
    rows, cols = np.mgrid[: GRID.height, : GRID.width]
    noise = np.random.default_rng(0).integers(20, 60, (count, GRID.height, GRID.width))
    return np.where((rows // 20 + cols // 30) % 3 == 0, 230, noise).astype(kind)


TIFFS = {
    "plain": {},
    "tiles": {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate", "predictor": 2},
    "big": {"bigtiff": "yes", "dtype": "uint16", "compress": "lzw", "interleave": "band", "nodata": 0},
    "float": {"dtype": "float32", "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "zstd"},
    "jpeg": {"compress": "jpeg", "tiled": True, "blockxsize": 64, "blockysize": 64},
}


def valid_tiffs(folder: Path) -> list[Path]:
    paths = []
    for name, options in TIFFS.items():
        path = folder / f"{name}.tif"
        profile = {
            "driver": "GTiff",
            "count": 3,
            "height": GRID.height,
            "width": GRID.width,
            "dtype": "uint8",
            "crs": GRID.crs.to_wkt(),
            "transform": GRID.transform,
        } | options
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as file:
            file.write(picture(profile["dtype"]))
            file.update_tags(DATETIME="2008:05:12 14:28:00")
            if name == "tiles":
                file.write_mask(picture("uint8")[0] > 25)
        if name in ("tiles", "big"):
            with rasterio.open(path, "r+") as file:
                file.build_overviews([2, 4])
        paths.append(path)
    return paths


def read_tiff(path: Path, dice: random.Random) -> None:
    given = Parameters(tile_size=48, overlap=16, block_size=100, on_error=dice.choice(["fail", "skip"]))
    with SceneReader(path) as reader:
        plan = make_plan(reader, *RECIPES, given, stretch="0,255" if dice.random() < 0.7 else "p2-98")
        if len(plan.localize_tiles) > LARGE:
            for row in (0, plan.grid.height - 1):
                for col in (0, plan.grid.width - 1):
                    reader.read(Window(row, col, 1, 1), plan.grid)
            return
        run_extract(SceneGroups.of(plan), Targets.of(None))
    if dice.random() < 0.3:
        polygonize(path, threshold=0.5, nodata=0)


def valid_gpkgs(folder: Path) -> list[Path]:
    path = folder / "slides.gpkg"
    boxes = np.asarray([[4.0, 4, 30, 20], [50, 60, 90, 100], [100, 10, 120, 40]])
    prompts = Prompts.build(boxes=boxes, points=(boxes[:, None, :2] + boxes[:, None, 2:]) / 2)
    slides = shapely.box(*(boxes * 0.5 + [5e5, 3e6 - 64, 5e5, 3e6 - 64]).T)
    write_inventory(
        path, gpd.GeoDataFrame({"id": [1, 2, 3]}, geometry=slides, crs=GRID.crs), prompts, None, {}, grid=GRID
    )
    return [path]


def valid_geojsons(folder: Path) -> list[Path]:
    (gpkg,) = valid_gpkgs(folder)
    paths = []
    for layer in ("prompts", "prompt_points", "landslides"):
        paths.append(folder / f"{layer}.geojson")
        gpd.read_file(gpkg, layer=layer).to_crs(4326).to_file(paths[-1], driver="GeoJSON")
    return paths


def read_vectors(path: Path, dice: random.Random) -> None:
    errors = []
    for read in (
        lambda: read_prompts(path, GRID),
        lambda: read_aoi(path, GRID.crs, layer="landslides" if path.suffix == ".gpkg" else None),
        lambda: evaluate(path, path.with_name("valid") / "slides.gpkg"),
        lambda: read_provenance(path) if path.suffix == ".gpkg" else None,
    ):
        try:
            read()
        except GeolabelError as error:
            errors.append(error)
    if errors:
        raise errors[0]


PYRAMID = {"name": "pyramid", "classes": 1, "widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "features": 8}
SAM = {
    "name": "sam",
    "img_size": 64,
    "widths": [16, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "embed_dim": 16,
    "decoder_depth": 1,
    "heads": 2,
    "mlp_dim": 16,
    "pixel_mean": [110.0] * 3,
    "pixel_std": [65.0] * 3,
}


def valid_safetensors(folder: Path) -> list[Path]:
    paths = []
    for role, architecture in (("localizer", PYRAMID), ("segmenter", SAM)):
        info = NetworkInfo(
            role,
            architecture,
            ("landslide",),
            64,
            8 if role == "localizer" else 4,
            (0.2, 30.0),
            (110.0,) * 3,
            (65.0,) * 3,
            constant=12.5,
        )
        paths.append(folder / f"{role}.safetensors")
        save_checkpoint(paths[-1], build(architecture), info)
    return paths


def change_safetensors(data: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.3:
        return change_bytes(data, dice)
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    if dice.random() < 0.7:
        header["__metadata__"]["geolabel"] = change_text(header["__metadata__"]["geolabel"], dice)
        text = json.dumps(header)
    else:
        text = change_text(json.dumps(header), dice)
    encoded = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + size :]


def read_safetensors(path: Path, dice: random.Random) -> None:
    kind = LocalizerRecipe if path.name.startswith("localizer") else SegmenterRecipe
    loading.describe(path)
    part = loading.load(kind(str(path), loading.sha256(path), batch=1))
    if part.window > 512:
        return
    image = np.moveaxis(picture("uint8"), 0, 2)[: min(64, part.window), : min(64, part.window)]
    part([image]) if kind.role == "localizer" else part([image], [Prompts.build(boxes=np.asarray([[4.0, 4, 30, 20]]))])


def extract_into(folder: Path, scene: Path) -> bytes:
    given = Parameters(tile_size=48, overlap=16, block_size=100)
    plan = make_plan(SceneReader(scene), *RECIPES, given, stretch="0,255")
    found = run_extract(SceneGroups.of(plan), Targets.of(None), run_folder=RunFolderOptions(folder, keep=True))
    return found.landslides.drop(columns=["source"]).to_json().encode() + bytes(len(found.parts[0].prompts))


def change_run(folder: Path, dice: random.Random) -> bool:
    """Change a file of a run; whether its checksums are still right, so that other results may come of it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = dice.choice([*files, folder / "run.json", folder / "run.json"])
    for other in files:
        if other.suffix == SUFFIX and dice.random() < 0.2:
            other.unlink()  # the run was cut short
    if not path.exists():
        return False
    if path.suffix == ".json":
        if dice.random() < 0.3:
            (folder / "lock").write_text(change_text(path.read_text(), dice))
            lock = {"host": "a b", "pid": 1, "born": 0.0, "token": "x", "beat": 1}
            (folder / "lock").write_text(change_text(json.dumps(lock), dice))
        else:
            path.write_bytes(change_text(path.read_text(), dice).encode("utf-8", "surrogatepass"))
    elif dice.random() < 0.5:
        change_arrays(path, dice)
        return True
    else:
        path.write_bytes(change_bytes(path.read_bytes(), dice))
    return False


# --- cases -----------------------------------------------------------------------------------------------------------


def changed_file(
    make: Callable[[Path], list[Path]],
    change: Callable[[Path, random.Random], None],
    read: Callable[[Path, random.Random], None],
) -> Callable[[Path, random.Random], None]:
    def case(folder: Path, dice: random.Random) -> None:
        valid = folder / "valid"
        if not valid.exists():
            valid.mkdir()
            make(valid)
            if not (valid / "slides.gpkg").exists():
                valid_gpkgs(valid)
        ours = sorted(path for path in valid.iterdir() if make is not valid_geojsons or path.suffix == ".geojson")
        ours = [path for path in ours if make in (valid_gpkgs, valid_geojsons) or path.suffix != ".gpkg"]
        path = folder / dice.choice(ours).name
        shutil.copy(valid / path.name, path)
        change(path, dice)
        try:
            read(path, dice)
        finally:
            for file in folder.iterdir():
                if file.is_file():
                    file.unlink()

    return case


def rewrite(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    return lambda path, dice: path.write_bytes(change(path.read_bytes(), dice)) and None


def text_or_bytes(data: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.3:
        return change_bytes(data, dice)
    return change_text(data.decode(), dice).encode("utf-8", "surrogatepass")


def change_gpkg(path: Path, dice: random.Random) -> None:
    if dice.random() < 0.5:
        path.write_bytes(change_bytes(path.read_bytes(), dice))
    else:
        change_table(path, dice)


def run_case(folder: Path, dice: random.Random) -> None:
    valid, changed = folder / "valid", folder / "changed"
    if not valid.exists():
        scene = valid_tiffs(folder)[0]
        extract_into(valid, scene)
        (folder / "expected").write_bytes(extract_into(folder / "other", scene))
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(valid, changed)
    plausible = change_run(changed, dice)
    summary: GeolabelError | None = None
    try:
        summarize(changed)
    except GeolabelError as error:
        summary = error
    found = extract_into(changed, folder / "plain.tif")
    assert plausible or found == (folder / "expected").read_bytes(), "another result, and no error"
    if summary is not None:
        raise summary


CASES = {
    "tiff": changed_file(valid_tiffs, rewrite(change_bytes), read_tiff),
    "gpkg": changed_file(valid_gpkgs, change_gpkg, read_vectors),
    "geojson": changed_file(valid_geojsons, rewrite(text_or_bytes), read_vectors),
    "safetensors": changed_file(valid_safetensors, rewrite(change_safetensors), read_safetensors),
    "records": run_case,
}


def main(folder: Path, cases: list[str]) -> None:
    import dask
    import torch  # noqa: F401  # its libraries have no place in the memory that a case may take

    from geolabel.engine import run_state

    dask.config.set(scheduler="synchronous")
    run_state.BEAT = 0.05
    faulthandler.enable()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_BYTES,) * 2)
    for kind, first, stop in (case.split(":") for case in cases):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(int(first), int(stop)):
            print("end", kind, number, outcome_of(folder / kind, kind, number), flush=True)


def outcome_of(folder: Path, kind: str, number: int) -> str:
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    outcome = "result"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CASES[kind](folder, random.Random(f"{kind} {number}"))
    except GeolabelError as error:
        outcome = type(error).__name__ if str(error).strip() else "no-word"
    faulthandler.cancel_dump_traceback_later()
    return outcome


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
