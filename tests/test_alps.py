"""ALPS on a stand-in that finds every region of one brightness, and sees its brightness as its feature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.features import rasterize
from scipy import ndimage
from shapely import Point

from geolabel.cli.main import run as command
from geolabel.clusters import Source
from geolabel.datasets.examples import ImageFolder
from geolabel.datasets.pseudo_labels import PseudoLabels, load_clusters, save_clusters
from geolabel.engine import worker
from geolabel.engine.tasks import Silent
from geolabel.errors import OutputError
from geolabel.labeling.regions import RegionFolder, find_regions
from geolabel.labels import IGNORE
from geolabel.masks import FULL, FeaturedMasks, Masks
from geolabel.models import loading
from geolabel.models.defaults import segmenter_defaults
from geolabel.parts import Recipe
from geolabel.prompts import Prompts
from geolabel.types import UInt8Array


@dataclass
class Objects:
    """Answers with every connected region of one brightness but black; its feature is the brightness."""

    window: int = 128
    gsd_range: tuple[float, float] = (0.01, 1000.0)
    calls: int = 0

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        self.calls += len(images)
        return [self._masks(image[..., 0], asked) for image, asked in zip(images, prompts, strict=True)]

    def _masks(self, grey: np.ndarray, prompts: Prompts) -> FeaturedMasks:
        found, levels = [np.zeros((0, *grey.shape), bool)], []
        for level in sorted(set(grey.ravel().tolist()) - {0}):
            regions, count = ndimage.label(grey == level)
            found.append(np.arange(1, count + 1)[:, None, None] == regions)
            levels += [level] * count
        scores = np.concatenate(found).astype(np.uint8) * np.uint8(FULL)
        quality = np.full(len(levels), 0.8, np.float32)
        ids = prompts.ids[np.arange(len(levels)) % len(prompts)]
        features = np.asarray(levels, np.float32).reshape(-1, 1)
        return FeaturedMasks(scores, quality, np.ones_like(quality), ids, np.ones(len(levels), np.int64), features)


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Objects:
    part = Objects()

    def load(recipe: Recipe):
        if recipe.role == "localizer":
            return loading.load(recipe)
        return part if recipe.clusters is None else loading._of_clusters(part, recipe.clusters)

    monkeypatch.setattr(worker, "_load", load)
    return part


def picture(*regions: tuple[int, int, int, int, int], side: int = 100) -> UInt8Array:
    """Rectangles (brightness, top, left, height, width) on black."""
    pixels = np.zeros((side, side, 3), np.uint8)
    for level, top, left, height, width in regions:
        pixels[top : top + height, left : left + width] = level
    return pixels


PICTURES = (
    picture((100, 0, 0, 20, 30), (200, 30, 30, 10, 10)),
    picture((101, 50, 50, 30, 30), (201, 0, 0, 9, 9), (199, 20, 0, 5, 5)),
    picture(),  # nothing to be found
    picture((100, 0, 0, 40, 80), (200, 50, 0, 20, 20)),  # the first covers 0.32 of it
    picture((100, 10, 100, 20, 60), (200, 60, 170, 9, 9), side=200),  # larger than a tile, one across the middle
)


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    folder = tmp_path / "chips"
    folder.mkdir()
    for number, pixels in enumerate(PICTURES):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


PAPER = ("--max-share", "0.3")


def label(chips: Path, out: Path, *more: str) -> int:
    return command(["label", str(chips), "--method", "alps", "--out", str(out), "--device", "cpu", "-q", *more])


def values(out: Path) -> list[np.ndarray]:
    return [one.values for one in PseudoLabels(out)]


def test_regions_of_one_kind_are_one_cluster_and_the_rest_is_ignored(chips: Path, tmp_path: Path, objects) -> None:
    assert label(chips, tmp_path / "out", "--clusters", "2", *PAPER) == 0
    found = values(tmp_path / "out")
    dark = int(found[0][0, 0])
    for painted, pixels in zip(found, PICTURES, strict=True):
        grey = pixels[..., 0]
        large = (grey == 100).sum() > 0.3 * grey.size
        expected = np.full(grey.shape, IGNORE, np.uint8)
        expected[(grey > 50) & (grey < 150) & ~large] = dark
        expected[grey > 150] = 1 - dark
        assert np.array_equal(painted, expected)
    assert {dark, 1 - dark} == {0, 1}  # cluster 0 is a cluster, not what is not covered


def test_the_gate_can_be_opened(chips: Path, tmp_path: Path, objects) -> None:
    assert label(chips, tmp_path / "out", "--clusters", "2", "--max-share", "0.32") == 0
    assert values(tmp_path / "out")[3][0, 0] != IGNORE


def test_the_usual_gate_is_wider_where_tiles_are_small(chips: Path, tmp_path: Path, objects) -> None:
    assert label(chips, tmp_path / "out", "--clusters", "2") == 0
    assert load_clusters(tmp_path / "out").source.max_share == 0.7
    assert values(tmp_path / "out")[3][0, 0] != IGNORE
    assert segmenter_defaults("vit_b").max_share == 0.3


def test_the_folder_says_how_it_came_out(chips: Path, tmp_path: Path, objects, capsys) -> None:
    assert label(chips, tmp_path / "out", "--clusters", "2", *PAPER, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    # two tiles of the large picture show its dark region, and what each shows is a mask of its own
    assert (said["images"], said["masks"], said["clusters"], said["empty_clusters"]) == (5, 9, 2, 0)
    content = load_clusters(tmp_path / "out")
    assert content.source.max_share == 0.3
    assert sorted(content.clusters.sizes.tolist()) == [4, 5]
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {
        "images",
        "labels",
        "instances.json",
        "manifest.json",
        "clusters.json",
    }


def test_the_number_is_found_where_it_is_not_known(chips: Path, tmp_path: Path, objects) -> None:
    for number in range(10):
        pixels = picture(*((100, 20 * k, 0, 10, 30) for k in range(5)), *((200, 20 * k, 50, 10, 30) for k in range(5)))
        Image.fromarray(pixels).save(chips / f"more_{number}.png")
    assert label(chips, tmp_path / "out") == 0
    assert len(load_clusters(tmp_path / "out").clusters) == 2


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(chips: Path, tmp_path: Path, objects, monkeypatch) -> None:
    assert label(chips, tmp_path / "whole", "--clusters", "2") == 0
    from geolabel.datasets.pseudo_labels import PseudoLabelWriter

    find, write, left = find_regions, PseudoLabelWriter.write, [3, 2]

    def stop(which: int) -> None:
        left[which] -= 1
        if left[which] < 0:
            left[which] = 100
            raise KeyboardInterrupt

    monkeypatch.setattr("geolabel.labeling.regions.find_regions", lambda *given: (stop(0), find(*given))[1])
    monkeypatch.setattr(PseudoLabelWriter, "write", lambda *given: (stop(1), write(*given))[1])
    before = objects.calls
    codes = [label(chips, tmp_path / "out", "--clusters", "2") for _ in range(3)]
    assert codes == [130, 130, 0]
    tiles = 4 + 4  # one each, and four
    assert objects.calls - before == tiles
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file())
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_what_was_found_serves_another_number_of_clusters(chips: Path, tmp_path: Path, objects) -> None:
    kept = ["--regions", str(tmp_path / "regions")]
    assert label(chips, tmp_path / "two", "--clusters", "2", *kept) == 0
    before = objects.calls
    assert label(chips, tmp_path / "three", "--clusters", "3", "--max-share", "1", *kept) == 0
    assert objects.calls == before
    assert len(PseudoLabels(tmp_path / "three").classes) == 3
    assert label(chips, tmp_path / "four", "--clusters", "3", "--points-per-side", "4", *kept) == 1
    with pytest.raises(OutputError, match="another segmenter or settings"):
        RegionFolder(tmp_path / "regions", ImageFolder(chips)).find(objects, Source("other", 128), Silent())


def test_known_clusters_label_as_they_did_when_they_were_made(chips: Path, tmp_path: Path, objects) -> None:
    assert label(chips, tmp_path / "out", "--clusters", "2", "--points-per-side", "8") == 0
    assert label(chips, tmp_path / "again", "--clusters", str(tmp_path / "out")) == 0
    for one, other in zip(values(tmp_path / "out"), values(tmp_path / "again"), strict=True):
        assert np.array_equal(one, other)


def test_named_clusters_label_classes(chips: Path, tmp_path: Path, objects) -> None:
    assert label(chips, tmp_path / "out", "--clusters", "2") == 0
    bright = int(values(tmp_path / "out")[0][30, 30])
    save_clusters(tmp_path / "named.json", load_clusters(tmp_path / "out").named({bright: "landslide"}))
    assert label(chips, tmp_path / "again", "--clusters", str(tmp_path / "named.json")) == 0
    found = PseudoLabels(tmp_path / "again")
    assert found.classes == ("background", "landslide")
    assert [np.unique(one.values).tolist() for one in found[:1]] == [[0, 1, IGNORE]]
    assert found[0].values[30, 30] == 1


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--clusters", "99"], 2, "99 clusters of 10 masks: ask for fewer"),
        (["--clusters", "0"], 2, "0 clusters: a label map holds 1 to 255"),
        (["--clusters", "none.json"], 2, "none.json: there is no such file; give a number, auto"),
    ],
)
def test_clusters_that_cannot_be_are_errors(chips: Path, tmp_path: Path, objects, capsys, more, code, says) -> None:
    assert label(chips, tmp_path / "out", *more) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "256"])
def test_a_number_that_a_label_map_cannot_hold_costs_no_search(chips: Path, tmp_path: Path, count: str) -> None:
    assert label(chips, tmp_path / "out", "--clusters", count) == 2
    assert not (tmp_path / "out").exists()


def test_known_clusters_come_with_their_own_settings_and_segmenter(chips: Path, tmp_path: Path, objects, capsys):
    assert label(chips, tmp_path / "out", "--clusters", "2") == 0
    assert label(chips, tmp_path / "again", "--clusters", str(tmp_path / "out"), "--max-share", "0.5") == 2
    assert "--max-share: the clusters of" in capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "clusters.json").read_text(encoding="utf-8"))
    content["source"]["segmenter"] = "f" * 64
    (tmp_path / "other.json").write_text(json.dumps(content), encoding="utf-8")
    assert label(chips, tmp_path / "again", "--clusters", str(tmp_path / "other.json")) == 2
    assert "give --sam or --sam-checkpoint as when they were made" in capsys.readouterr().err


def test_one_image_alone_and_none_with_a_mask(tmp_path: Path, objects, capsys) -> None:
    folder = tmp_path / "chips"
    folder.mkdir()
    Image.fromarray(PICTURES[0]).save(folder / "one.png")
    assert label(folder, tmp_path / "out", "--clusters", "2") == 0
    assert sorted(np.unique(values(tmp_path / "out")[0]).tolist()) == [0, 1, IGNORE]
    Image.fromarray(PICTURES[2]).save(folder / "one.png")
    assert label(folder, tmp_path / "black", "--clusters", "2") == 2
    assert "2 clusters of 0 masks in all images: give more images" in capsys.readouterr().err
    assert label(folder, tmp_path / "auto") == 2
    assert "too few masks to cluster (0 in all images)" in capsys.readouterr().err


# --- scenes ----------------------------------------------------------------------------------------------------------

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)


@pytest.fixture
def named(chips: Path, tmp_path: Path, objects) -> Path:
    """The pseudo-labels of the chips, their bright cluster called a landslide."""
    out = tmp_path / "pseudo"
    assert label(chips, out, "--clusters", "2", "--points-per-side", "4") == 0
    bright = int(values(out)[0][30, 30])
    save_clusters(out / "clusters.json", load_clusters(out).named({bright: "landslide"}))
    return out


def country() -> np.ndarray:
    """Bright regions inside a tile, across seams and longer than a tile; dark ones, one on top of a bright one."""
    grey = np.zeros((300, 420), np.uint8)
    grey[20:50, 30:60] = 100
    grey[85:115, 85:115] = 200
    grey[130:150, 10:400] = 201
    grey[135:145, 200:240] = 101
    grey[200:230, 40:70] = 199
    return grey


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path, grey = tmp_path / "scene.tif", country()
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=300,
        width=420,
        crs="EPSG:32648",
        transform=UTM,
        photometric="rgb",
    ) as target:
        target.write(np.stack([grey] * 3))
    return path


def extract(scene: Path, out: Path, clusters: Path, *more: str) -> int:
    return command(
        [
            "extract",
            str(scene),
            "--out",
            str(out),
            "--method",
            "alps",
            "--clusters",
            str(clusters),
            "--device",
            "cpu",
            "--tile-size",
            "128",
            "--stretch",
            "0,255",
            "-q",
            *more,
        ]
    )


def test_the_named_class_of_a_scene_becomes_polygons(scene: Path, tmp_path: Path, named: Path) -> None:
    assert extract(scene, tmp_path / "slides.gpkg", named, "--max-hole", "0px", "--simplify", "0px") == 0
    found = gpd.read_file(tmp_path / "slides.gpkg", layer="landslides")
    drawn = rasterize(found.geometry, out_shape=(300, 420), transform=UTM).astype(bool)
    assert np.array_equal(drawn, country() >= 150)
    assert len(found) == 3
    assert set(found["class"]) == {"landslide"}
    assert (found["n_prompts"] >= 1).all()
    points = gpd.read_file(tmp_path / "slides.gpkg", layer="prompt_points")
    assert 0 < len(points) <= 16 * 20


def test_several_clusters_become_polygons_of_their_classes(scene: Path, tmp_path: Path, named: Path) -> None:
    content = load_clusters(named)
    (other,) = {0, 1} - set(content.clusters.of_class("landslide").tolist())
    save_clusters(named / "clusters.json", content.named({other: "road"}))
    exact, both = ["--max-hole", "0px", "--simplify", "0px"], ["--cluster-name", "road", "--cluster-name", "landslide"]
    assert extract(scene, tmp_path / "both.gpkg", named, *exact, *both) == 0
    found = gpd.read_file(tmp_path / "both.gpkg", layer="landslides")
    grey = country()
    for name, pixels in (("landslide", grey >= 150), ("road", (grey > 50) & (grey < 150))):
        own = found[found["class"] == name]
        assert np.array_equal(rasterize(own.geometry, out_shape=grey.shape, transform=UTM).astype(bool), pixels)
    assert extract(scene, tmp_path / "one.gpkg", named, *exact, *both, "--class", "landslide") == 0
    assert extract(scene, tmp_path / "alone.gpkg", named, *exact) == 0
    one, alone = (gpd.read_file(tmp_path / f"{name}.gpkg", layer="landslides") for name in ("one", "alone"))
    assert set(one["class"]) == {"landslide"}
    assert one.geometry.to_wkb().tolist() == alone.geometry.to_wkb().tolist()


def test_extracted_twice_it_has_the_same_bytes(scene: Path, tmp_path: Path, named: Path) -> None:
    files = [tmp_path / "a.gpkg", tmp_path / "b.gpkg"]
    for file in files:
        assert extract(scene, file, named) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--cluster-name", "river"], "no cluster is called 'river' (named are landslide)"),
        (["--prompts-from", "drawn.gpkg"], "a method without a localizer makes its own prompts"),
    ],
)
def test_what_alps_cannot_extract_is_an_error(
    scene: Path, tmp_path: Path, named: Path, capsys, monkeypatch, more, says
) -> None:
    monkeypatch.chdir(tmp_path)
    gpd.GeoDataFrame(geometry=[Point(500010, 2999990)], crs="EPSG:32648").to_file(tmp_path / "drawn.gpkg")
    assert extract(scene, tmp_path / "slides.gpkg", named, *more) == 2
    assert says in capsys.readouterr().err


def test_clusters_have_to_be_given_and_to_stay_as_they_are(scene: Path, tmp_path: Path, named: Path, capsys) -> None:
    assert command(["extract", str(scene), "--out", str(tmp_path / "a.gpkg"), "--method", "alps"]) == 2
    assert "give --clusters FILE" in capsys.readouterr().err
    from geolabel.clusters import ClusterChoice
    from geolabel.errors import WeightsError

    with pytest.raises(WeightsError, match="has changed since the run was planned"):
        loading._of_clusters(Objects(), ClusterChoice(str(named / "clusters.json"), "0" * 64, ("landslide",)))


def test_a_dry_run_asks_the_grid(scene: Path, tmp_path: Path, named: Path, capsys) -> None:
    assert extract(scene, tmp_path / "slides.gpkg", named, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["segmenter_tile_px"] == 128
