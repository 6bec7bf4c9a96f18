from __future__ import annotations

import sqlite3
import warnings

import numpy as np
import pyogrio
import pytest
import rasterio
from rasterio.errors import RasterioError, RasterioIOError

from geolabel.io.error_messages import in_words

POOL = "HTTPSConnectionPool(host='x', port=443)"

KNOWN = {
    "CURL error: Could not resolve host: tiles.example": "name is not known",
    "Unable to allocate 64.0 GiB for an array": "there is not enough memory",
    f"{POOL}: Max retries exceeded (Caused by NameResolutionError(Failed to resolve))": "name is not known",
    f"{POOL}: Max retries exceeded (Caused by NewConnectionError: Connection refused)": "cannot be reached",
    f"{POOL}: Read timed out. (read timeout=30)": "no answer came in time",
    "HTTP response code: 404": "the server answers 404 (not found)",
    "HTTP response code on https://a.example:8443/b.tif: 503": "the server answers 503 (service unavailable)",
    "HTTP Error 403: Forbidden": "the server answers 403 (forbidden)",
    "SSL: CERTIFICATE_VERIFY_FAILED": "certificate",
    "band 1: IReadBlock failed at X offset 0, Y offset 3: TIFFReadEncodedTile() failed.": "damaged or end too early",
    "TIFFAppendToStrip:Write error at scanline 512": "is it full",
    "database or disk is full": "the disk is full",
    "attempt to write a readonly database": 'SQLite says "attempt to write a readonly database"',
}


@pytest.mark.parametrize("said", KNOWN)
def test_a_message_of_another_library_is_said_in_words_that_help(said):
    error = sqlite3.OperationalError if "database" in said else RasterioIOError
    assert KNOWN[said] in in_words(error(said))


def test_what_rasterio_only_points_to_is_looked_up(tmp_path):
    path = tmp_path / "cut.tif"
    noise = np.random.default_rng(0).integers(0, 255, (1, 64, 64), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8") as file:
            file.write(noise)
        path.write_bytes(path.read_bytes()[:2000])
        with rasterio.open(path) as file, pytest.raises(RasterioError) as caught:
            file.read()
    assert in_words(caught.value) == "its data are damaged or end too early"


def test_a_message_that_nobody_knows_is_quoted_and_cut():
    assert in_words(RasterioIOError("frob\n nicated")) == 'GDAL says "frob nicated"'
    assert len(in_words(ValueError("x" * 10_000))) < 400
    assert in_words(RasterioIOError()) == 'GDAL says "RasterioIOError"'


def test_what_the_system_says_stays_short(tmp_path):
    with pytest.raises(OSError, match="Is a directory") as caught:
        tmp_path.open("rb")
    assert in_words(caught.value) == "Is a directory"
    with pytest.raises(RuntimeError) as caught:
        pyogrio.read_info(tmp_path / "missing.gpkg")
    assert in_words(caught.value) == "there is no such file"
