"""Several scenes as one source of pixels, against one file that holds them all."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geolabel.io.read import scene_mosaic as module
from geolabel.io.read.scene_mosaic import NO_SCENE, SceneLayer, SceneMosaic
from geolabel.io.read.scenes import SceneReader
from geolabel.radiometry import Stretch
from geolabel.tiles import Window

PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
SAME = Stretch((0.0,) * 3, (255.0,) * 3)
SIZE = (40, 60)
CUTS = Window(0, 0, 25, 35), Window(0, 30, 25, 30), Window(20, 0, 20, 60)


def write(path: Path, values: np.ndarray, window: Window, nodata: float | None = 0) -> Path:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=values.dtype,
        count=3,
        height=window.height,
        width=window.width,
        crs="EPSG:32648",
        photometric="rgb",
        transform=PLACE * Affine.translation(window.col, window.row),
        nodata=nodata,
    ) as target:
        target.write(values)
    return path


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    values = np.random.default_rng(0).integers(1, 256, (3, *SIZE)).astype(np.uint8)
    values[:, 5:9, 28:33] = 0  # not valid in any of the scenes
    return values


@pytest.fixture(scope="module")
def whole(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> SceneReader:
    return SceneReader(write(tmp_path_factory.mktemp("whole") / "whole.tif", image, Window(0, 0, *SIZE)))


@pytest.fixture(scope="module")
def layers(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[SceneLayer]:
    folder = tmp_path_factory.mktemp("layers")
    paths = [write(folder / f"{k}.tif", image[:, *cut.slices], cut) for k, cut in enumerate(CUTS)]
    return [SceneLayer(SceneReader(path), path.name, cut, SAME) for path, cut in zip(paths, CUTS, strict=True)]


@pytest.fixture
def together(layers: list[SceneLayer], whole: SceneReader) -> SceneMosaic:
    return SceneMosaic(whole.scene.grid, layers)


windows = st.builds(
    lambda r, c, h, w: Window(r, c, min(h, SIZE[0] - r), min(w, SIZE[1] - c)),
    st.integers(0, SIZE[0] - 1),
    st.integers(0, SIZE[1] - 1),
    st.integers(1, 40),
    st.integers(1, 60),
)


@given(window=windows)
def test_a_window_is_that_of_one_file(layers: list[SceneLayer], whole: SceneReader, window: Window) -> None:
    reader = SceneReader(SceneMosaic(whole.scene.grid, layers))
    expected, outside = whole.read(window, whole.scene.grid)
    values, valid = reader.read(window, reader.scene.grid)
    assert np.array_equal(valid, outside)
    assert np.array_equal(values[:, valid], expected[:, valid])


def test_a_coarser_grid_is_that_of_one_file(together: SceneMosaic, whole: SceneReader) -> None:
    reader = SceneReader(together)
    grid = whole.scene.grid.at_gsd(1.3)
    expected, outside = whole.read(grid.window, grid)
    values, valid = reader.read(grid.window, grid)
    assert np.array_equal(valid, outside)
    assert np.array_equal(values, expected)


def test_the_first_valid_scene_shows(tmp_path: Path) -> None:
    def flat(value: int, window: Window) -> np.ndarray:
        return np.full((3, window.height, window.width), value, np.uint8)

    left, right = Window(0, 0, 4, 6), Window(0, 4, 4, 6)
    a, b = flat(10, left), flat(20, right)
    a[:, 1, 5] = 0  # a hole, through which the other is seen
    b[:, 3, :] = 0
    layers = [
        SceneLayer(SceneReader(write(tmp_path / f"{name}.tif", values, window)), name, window, SAME)
        for name, values, window in (("a", a, left), ("b", b, right))
    ]
    grid = replace(layers[0].reader.scene.grid, height=4, width=10)
    shown, valid = SceneMosaic(grid, layers).read([1, 2, 3], grid.window)
    expected = np.array([[10] * 6 + [20] * 4, [10] * 5 + [20] * 5, [10] * 6 + [20] * 4, [10] * 6 + [0] * 4])
    assert np.array_equal(shown[0], expected)
    assert np.array_equal(valid, expected > 0)
    numbers = SceneMosaic(grid, layers).scene_numbers(grid.window)
    assert np.array_equal(numbers, np.select([expected == 10, expected == 20], [0, 1], NO_SCENE))
    turned = SceneMosaic(grid, layers[::-1]).read([1], grid.window)[0][0]
    assert np.array_equal(turned[0], [10] * 4 + [20] * 6)


def test_each_scene_has_its_own_stretch(tmp_path: Path) -> None:
    window = Window(0, 0, 2, 2)
    values = np.array([[[100, 300], [200, 0]]] * 3, np.uint16)
    reader = SceneReader(write(tmp_path / "a.tif", values, window))
    mosaic = SceneMosaic(reader.scene.grid, [SceneLayer(reader, "a", window, Stretch((100.0,) * 3, (300.0,) * 3))])
    shown, valid = mosaic.read([1, 2, 3], window)
    assert np.array_equal(shown[0], [[0, 255], [128, 0]])
    assert np.array_equal(valid, [[True, True], [True, False]])


@pytest.mark.parametrize("gsd", [0.5, 0.8, 2.0])
def test_scene_numbers_on_a_working_grid(together: SceneMosaic, gsd: float, monkeypatch: pytest.MonkeyPatch) -> None:
    native = together.scene_numbers(together.grid.window)
    grid = together.grid.at_gsd(gsd)
    rows, cols = (
        ((np.arange(n) + 0.5) * side / n).astype(int) for n, side in ((grid.height, SIZE[0]), (grid.width, SIZE[1]))
    )
    monkeypatch.setattr(module, "ROWS_PX", 200)  # in several goes
    assert np.array_equal(together.scene_numbers_on(grid, grid.window), native[rows][:, cols])
    part = Window(grid.height // 3, grid.width // 4, grid.height // 2, grid.width // 2)
    assert np.array_equal(together.scene_numbers_on(grid, part), native[rows][:, cols][part.slices])


def test_it_travels_as_its_arguments(together: SceneMosaic) -> None:
    together.read([1, 2, 3], together.grid.window)
    reader = pickle.loads(pickle.dumps(SceneReader(together, name="all")))
    assert reader.scene.name == "all"
    assert np.array_equal(reader.read(CUTS[0], reader.scene.grid)[0], together.read([1, 2, 3], CUTS[0])[0])


def test_few_scenes_stay_open(together: SceneMosaic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_SCENES", 1)
    closed = []
    for k, layer in enumerate(together.layers):
        monkeypatch.setattr(layer.reader, "close", lambda k=k: closed.append(k))
    with together.opened(0):
        together.read([1], CUTS[1])  # under scenes 0, 1 and 2
        assert 0 not in closed  # in use
    together.read([1], Window(39, 0, 1, 1))
    assert set(closed) == {0, 1}


def test_decimated_pixels_are_picked(together: SceneMosaic, whole: SceneReader) -> None:
    values, valid = together.decimate([1, 2, 3], 8, 12)
    everything, good = together.read([1, 2, 3], together.grid.window)
    rows, cols = np.arange(8) * 5 + 2, np.arange(12) * 5 + 2
    assert np.array_equal(values, everything[:, rows][:, :, cols])
    assert np.array_equal(valid, good[rows][:, cols])
