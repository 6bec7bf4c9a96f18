"""Chips as torchgeo takes them: its samplers, its batches, and what it cannot be given."""

from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from affine import Affine
from PIL import Image
from pyproj import CRS
from torch.utils.data import DataLoader
from torchgeo.datasets import stack_samples
from torchgeo.samplers import PreChippedGeoSampler, RandomGeoSampler

from geolabel.datasets.chips import ChipDataset, PaintedChips, read_chips
from geolabel.datasets.geochips import GeoChips
from geolabel.datasets.pseudo_labels import PseudoLabels, PseudoLabelWriter
from geolabel.engine.tasks import Silent
from geolabel.errors import ChipError, OptionError
from geolabel.extraction.request import Networks
from geolabel.io.write.rasters import write_geotiff
from geolabel.labels import LabelMap
from geolabel.methods import apsam
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.training.localizers import LocalizerRequest
from geolabel.training.students import StudentRequest
from geolabel.training.train import train

UTM = CRS.from_epsg(32648)
GRID = Grid(UTM, Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000), 90, 100)
WINDOWS = (Window(0, 0, 64, 64), Window(0, 36, 64, 64), Window(26, 0, 64, 64))
"""The last two overlap the first; the corner at the bottom right belongs to none."""

CLASSES = ("background", "landslide")


def scene() -> tuple[np.ndarray, np.ndarray]:
    rgb = np.random.default_rng(0).integers(0, 255, (90, 100, 3)).astype(np.uint8)
    mask = np.zeros((90, 100), np.uint8)
    mask[10:40, 80:95] = 1
    return rgb, mask


@pytest.fixture
def chips(tmp_path: Path) -> ChipDataset:
    rgb, mask = scene()
    for folder in ("images", "masks"):
        (tmp_path / "chips" / folder).mkdir(parents=True)
    rows = ["image,label"]
    for k, window in enumerate(WINDOWS):
        write_geotiff(tmp_path / f"chips/images/c{k}.tif", rgb[window.slices], GRID.crop(window), description="a chip")
        Image.fromarray(mask[window.slices] * 255).save(tmp_path / f"chips/masks/c{k}.png")
        rows.append(f"images/c{k}.tif,{int(mask[window.slices].any())}")
    (tmp_path / "chips/labels.csv").write_text("\n".join(rows) + "\n")
    return read_chips(tmp_path / "chips")


def query(window: Window) -> tuple[slice, slice]:
    (left, top), (right, bottom) = (
        GRID.transform * corner for corner in ((window.col, window.row), (window.right, window.bottom))
    )
    return slice(left, right), slice(bottom, top)


def test_any_rectangle_shows_what_the_scene_did(chips: ChipDataset):
    rgb, mask = scene()
    window = Window(5, 20, 60, 75)
    found = GeoChips(chips)[query(window)]
    covered = np.zeros((90, 100), bool)
    for part in WINDOWS:
        covered[part.slices] = True
    known = covered[window.slices]
    assert 0 < (~known).sum() < known.sum()
    image = found["image"].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(image[known], rgb[window.slices][known])
    assert not image[~known].any()
    np.testing.assert_array_equal(found["mask"].numpy()[known], mask[window.slices][known])
    assert (found["mask"].numpy()[~known] == 255).all()
    assert found["label"].tolist() == [1]
    assert GeoChips(chips)[query(Window(70, 2, 10, 10))]["label"].tolist() == [0]
    with pytest.raises(IndexError, match="no chip reaches"):
        GeoChips(chips)[query(Window(80, 80, 10, 10))]


def test_whole_chips_are_sampled_as_they_were_written(chips: ChipDataset):
    data = GeoChips(chips)
    found = [data[place] for place in PreChippedGeoSampler(data)]
    assert len(found) == len(data) == 3
    assert torch.equal(found[0]["image"], chips[0]["image"])
    assert torch.equal(found[1]["mask"][:, 28:], chips[1]["mask"][:, 28:])


def test_windows_of_a_sampler_become_batches(chips: ChipDataset):
    data = GeoChips(chips, transforms=lambda sample: sample | {"image": sample["image"] / 255})
    sampler = RandomGeoSampler(data, size=16, length=8, generator=torch.Generator().manual_seed(0))
    batches = list(DataLoader(data, batch_size=4, sampler=sampler, collate_fn=stack_samples))
    assert [batch["image"].shape for batch in batches] == [(4, 3, 16, 16)] * 2
    assert batches[0]["mask"].shape == (4, 16, 16)
    assert batches[0]["image"].max() <= 1


def test_pseudo_labels_take_the_place_of_masks(chips: ChipDataset, tmp_path: Path):
    writer = PseudoLabelWriter(tmp_path / "pseudo", CLASSES, {})
    values = np.full((64, 64), 255, np.uint8)
    values[:, 30:] = 1
    for k, name in enumerate(chips.names):
        writer.write(name, chips.rgb(k), LabelMap(values, np.ones(values.shape, np.float32), CLASSES))
    writer.finish(chips.names)
    pseudo = PseudoLabels(tmp_path / "pseudo")
    assert pseudo.shown.tolist() == [True] * 3
    data = GeoChips(chips, painted=pseudo)
    mask = data[query(WINDOWS[0])]["mask"].numpy()
    np.testing.assert_array_equal(mask, values)
    assert data.painted is pseudo
    some = GeoChips(chips.part(np.array([False, True, False])), painted=pseudo)
    assert len(some) == len(some.painted) == 1
    assert some.painted.names == ("c1",)
    pseudo.names = pseudo.names[1:]
    with pytest.raises(ChipError, match="1 of 3 chips have no label map, such as c0"):
        GeoChips(chips, painted=pseudo)


def test_an_intersection_keeps_the_chips_in_their_crs(chips: ChipDataset):
    first, second = GeoChips(chips), GeoChips(chips)
    both = first & second
    assert both[query(WINDOWS[0])]["image"].shape == (6, 64, 64)
    first.crs = CRS.from_epsg(4326)
    with pytest.raises(ChipError, match="chips & other"):
        first[query(WINDOWS[0])]


def test_chips_that_torchgeo_cannot_have(chips: ChipDataset, tmp_path: Path):
    folder = chips.paths[0].parent
    for transform, crs, says in (
        (Affine.translation(500_000, 3_000_000) * Affine.rotation(30), UTM, "rotated"),
        (Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000), CRS.from_epsg(32647), "another CRS or pixel size"),
        (Affine(0.25, 0, 500_000, 0, -0.25, 3_000_000), UTM, "another CRS or pixel size"),
    ):
        rgb = np.zeros((64, 64, 3), np.uint8)
        (folder / "c2.tif").unlink()
        write_geotiff(folder / "c2.tif", rgb, Grid(crs, transform, 64, 64), description="a chip")
        with pytest.raises(ChipError, match=says):
            GeoChips(chips)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "labels.csv").write_text("image,label\nx.png,1\n")
    with pytest.raises(ChipError, match="is not georeferenced"):
        GeoChips(read_chips(tmp_path))


def test_places_are_boxes_of_the_grid(chips: ChipDataset):
    data = GeoChips(chips)
    assert data.res == (0.5, 0.5)
    assert data.index.geometry.iloc[0].equals(shapely.box(500_000, 3_000_000 - 32, 500_032, 3_000_000))


SMALL = LocalizerRequest(init="none", backbone="resnet10t", epochs=0.5, size=32, batch=2)
CPU = Networks(device="cpu")


def test_a_localizer_learns_from_places_what_it_learns_from_chips(chips: ChipDataset, tmp_path: Path):
    objectives = [
        SMALL.prepare(data, SMALL.numbers, None).objective(tmp_path, CPU, Silent()) for data in (chips, GeoChips(chips))
    ]
    by_number, by_place = (objective.batch(1) for objective in objectives)
    assert by_number.keys() == by_place.keys()
    assert all(torch.equal(by_number[name], by_place[name]) for name in by_number)


def test_a_student_learns_from_the_label_maps_of_places(chips: ChipDataset, tmp_path: Path):
    request = StudentRequest(steps=2, size=32, batch=2)
    train(PaintedChips(chips), tmp_path / "chips-out", request, networks=CPU)
    train(GeoChips(chips), tmp_path / "places-out", request, networks=CPU)
    by_number, by_place = ((tmp_path / out / request.file).read_bytes() for out in ("chips-out", "places-out"))
    assert by_number == by_place


def test_labels_of_places_are_those_of_their_chips(chips: ChipDataset, tmp_path: Path):
    for name, data in (("of chips", chips), ("of places", GeoChips(chips))):
        apsam.label(data, tmp_path / name, apsam.Settings(), CPU, overwrite=False, progress=Silent())
    ours, theirs = (sorted((tmp_path / name / "labels").iterdir()) for name in ("of chips", "of places"))
    assert [path.name for path in ours] == [path.name for path in theirs] == ["c0.png", "c1.png", "c2.png"]
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


def test_a_training_refuses_transforms_instead_of_ignoring_them(chips: ChipDataset, tmp_path: Path):
    with pytest.raises(OptionError, match="without transforms"):
        train(GeoChips(chips, transforms=lambda sample: sample), tmp_path / "out", SMALL, networks=CPU)
