"""Evidence per pixel: ground that was bare before, or lies too flat, is cut out of polygons and kept as candidates."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import test_before
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from test_before import OLD, PLACE, SIDE, UTM, earlier, ground, write

import geolabel
from geolabel import change, terrain
from geolabel.change import Seen, Stable, pixel_features
from geolabel.cli.main import run as command
from geolabel.errors import OptionError, WeightsError
from geolabel.extraction import before as before_of_run
from geolabel.extraction import cutting
from geolabel.extraction.request import Networks
from geolabel.io.write.geopackage import read_provenance
from geolabel.models import evidence_head
from geolabel.models.evidence_head import EvidenceHeads, Head, Trees, load_heads, save_heads, shipped, with_evidence
from geolabel.parsing import Measure
from geolabel.scene import Grid
from geolabel.spans import Spans, join
from geolabel.testing import RECIPES
from geolabel.tiles import Window

BESIDE = (40, 70, 30, 30)
"""A bright box that touches `OLD`: row, column, height, width."""

LOWER = (120, 10, 40, 40)


GIVEN = replace(test_before.GIVEN, min_area=Measure(50, "px"))


def extract(scene: Path, parameters: geolabel.Parameters = GIVEN, **given: object) -> gpd.GeoDataFrame:
    return test_before.extract(scene, parameters, **given)


def stump(name: str, threshold: float) -> Trees:
    """One comparison: what is above the threshold is no landslide."""
    return Trees((name,), (0,), (0, -1, -1), (threshold, 0.0, 0.0), (1, 0, 0), (2, 0, 0), (0, 3000, -3000), 0)


HEADS = EvidenceHeads(
    {
        "before": Head(stump("activation_before", 128), 0.5, (0.0, 1.0, 1.0, 0.0)),
        "dem": Head(stump("rise_1", 1e9), 0.5, (1.0, 1.0, 1.0, -1.0)),
        "both": Head(stump("slope_1", 10), 0.5, (0.0, 1.0, 1.0, 0.0)),
    },
    RECIPES[0].sha256,
    {},
)
"""Ground is cut out that was bright before; with heights too, what is steep."""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that find what is bright, and heads for them."""
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)
    monkeypatch.setattr(before_of_run, "STRETCH", "0,255")
    for module in (cutting, evidence_head):
        monkeypatch.setattr(module, "heads_for", lambda sha256: HEADS if sha256 == HEADS.localizer else None)


@pytest.fixture
def after(tmp_path: Path) -> Path:
    return write(tmp_path / "after.tif", ground(OLD, BESIDE, LOWER)[:, 16:-16, 16:-16])


def layers(path: Path) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    return gpd.read_file(path, layer="landslides"), gpd.read_file(path, layer="candidates")


def box(row: int, col: int, height: int, width: int) -> shapely.Polygon:
    x, y = PLACE * (col, row)
    right, bottom = PLACE * (col + width, row + height)
    return shapely.box(x, bottom, right, y)


def share(one: shapely.Geometry, other: shapely.Geometry) -> float:
    return shapely.intersection(one, other).area / shapely.union(one, other).area


# --- objects ---------------------------------------------------------------------------------------------------------


def test_ground_that_was_bare_before_is_cut_out_of_a_polygon(tmp_path: Path, after: Path) -> None:
    out, earlier_scene = tmp_path / "s.gpkg", earlier(tmp_path / "before.tif")
    extract(after, out=out, before=earlier_scene, overwrite=True)
    found, candidates = layers(out)
    assert len(found) == 2
    assert share(found.geometry[0], box(*BESIDE)) > 0.8
    assert (candidates["reason"].tolist(), len(candidates)) == (["before"], 1)  # bare and unchanged says more
    assert share(candidates.geometry[0], box(*OLD)) > 0.8
    assert found["evidence"].min() > 0.9
    assert candidates["evidence"][0] < 0.2
    assert read_provenance(out)["networks"]["evidence"] == {"source": "bundled", "sha256": HEADS.sha256}

    extract(after, out=out, before=earlier_scene, overwrite=True, cut=False)
    whole, none = layers(out)
    assert (len(whole), len(none)) == (2, 0)
    assert whole["evidence"].isna().all()
    assert set(read_provenance(out)["networks"]) == {"localizer", "segmenter"}
    pieces = shapely.union_all([*found.geometry, *candidates.geometry])
    assert share(pieces, shapely.union_all(whole.geometry)) > 0.99


def test_the_reason_of_ground_that_has_changed_is_ground(tmp_path: Path, after: Path) -> None:
    """It was bright before, and is another kind of bright now."""
    image = 0.8 * ground(OLD) + 10
    row, col, height, width = (v + 16 * (k < 2) for k, v in enumerate(OLD))
    image[:, row : row + height, col : col + width] = np.random.default_rng(3).uniform(150, 250, (height, width))
    out = tmp_path / "s.gpkg"
    extract(after, out=out, before=write(tmp_path / "before.tif", image[:, 16:-16, 16:-16]), register=False)
    assert layers(out)[1]["reason"].tolist() == ["ground"]


def test_blocks_change_nothing_of_what_is_cut(tmp_path: Path, after: Path) -> None:
    tables = []
    for size in (64, 100, 2048):
        out = tmp_path / f"{size}.gpkg"
        extract(after, replace(GIVEN, block_size=size), out=out, before=earlier(tmp_path / "b.tif", 1.3, 0.6))
        tables.append([table.to_wkb() for table in layers(out)])
    for other in tables[1:]:
        assert all(one.equals(two) for one, two in zip(tables[0], other, strict=True))


def test_what_a_person_asked_for_is_not_cut(tmp_path: Path, after: Path) -> None:
    prompts = tmp_path / "prompts.gpkg"
    gpd.GeoDataFrame(geometry=[box(40, 40, 30, 60)], crs=UTM).to_file(prompts, layer="prompts")
    out = tmp_path / "s.gpkg"
    extract(after, out=out, before=earlier(tmp_path / "before.tif"), prompts_from=prompts)
    found, candidates = layers(out)
    assert len(candidates) == 0
    assert found["evidence"].isna().all()


def test_pieces_smaller_than_the_minimum_stay_with_what_they_touch(tmp_path: Path, after: Path) -> None:
    out = tmp_path / "s.gpkg"
    given = replace(GIVEN, min_area=Measure(1200, "px"))
    extract(after, given, out=out, before=earlier(tmp_path / "before.tif"))
    found, candidates = layers(out)
    assert len(candidates) == 0
    assert found.geometry[0].intersects(box(*OLD).buffer(-5))


@given(
    st.lists(st.lists(st.sampled_from([0, 1, 2]), min_size=9, max_size=9), min_size=9, max_size=9), st.integers(1, 9)
)
def test_settling_keeps_every_pixel_once(rows: list[list[int]], minimum: int) -> None:
    image, window = np.array(rows), Window(0, 0, 9, 9)
    kept, cut = cutting._settled(*(Spans.of_mask(image == value, window) for value in (1, 2)), minimum)
    painted = sum(spans.paint(window, np.ones(len(spans), int)) for spans in (kept, cut))
    assert painted.tolist() == (image > 0).astype(int).tolist()
    whole, _ = join([Spans.of_mask(image > 0, window)])
    labels, count = whole.components(4)
    if np.bincount(labels, whole.lengths, count).min(initial=99) >= minimum:  # no piece is smaller than what it is of
        for spans in (kept, cut):
            own, pieces = spans.components(4)
            assert np.bincount(own, spans.lengths, pieces).min(initial=99) >= minimum


def heights(path: Path, slope: float) -> Path:
    """Ground that is flat up to column 70 and rises to the east from there, as many metres for each as said."""
    cols = np.arange(SIDE + 200) - 100.0
    z = np.broadcast_to(100 + 0.5 * slope * np.maximum(cols - 70, 0), (len(cols), len(cols)))
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": len(cols), "width": len(cols), "crs": UTM}
    with rasterio.open(path, "w", **profile, transform=PLACE * Affine.translation(-100, -100)) as target:
        target.write(z.astype(np.float32), 1)
    return path


def test_heights_take_part_where_they_are_known(tmp_path: Path, after: Path) -> None:
    out = tmp_path / "s.gpkg"
    dem = heights(tmp_path / "dem.tif", 0.5)
    extract(after, out=out, dem=dem, before=earlier(tmp_path / "before.tif"))
    found, candidates = layers(out)
    assert any(share(one, box(*BESIDE)) > 0.7 for one in candidates.geometry)  # the head of both cuts what is steep
    assert any(share(one, box(*OLD)) > 0.7 for one in candidates.geometry)  # which was bare, and has not changed
    assert len(found) == 1
    extract(after, out=out, dem=dem, overwrite=True)
    found, candidates = layers(out)
    assert len(candidates) == 0
    assert found["evidence"].min() > 0.9


def test_networks_without_a_head_have_whole_polygons_judged(
    tmp_path: Path, after: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "heads_for", lambda _: None)
    found = extract(after, before=earlier(tmp_path / "before.tif"))
    assert len(found) == 2
    assert found["evidence"].isna().all()


def test_no_cut_needs_something_to_cut_by(after: Path) -> None:
    with pytest.raises(OptionError, match="--no-cut leaves polygons whole that evidence would cut"):
        extract(after, cut=False)


# --- features --------------------------------------------------------------------------------------------------------


def features(after: Seen, before: Seen | None, valid: np.ndarray, where: np.ndarray | None = None) -> dict:
    """Of a pair that is stable, at all pixels if not said otherwise."""
    stable = None if before is None else Stable((0.0,) * 3, change.MIN_SPREAD)
    return pixel_features(after, before, valid, stable, np.ones(valid.shape, bool) if where is None else where)


def test_the_same_image_twice_has_not_changed_and_is_alike() -> None:
    image = ground(OLD)[:, :64, :64].astype(np.uint8).transpose(1, 2, 0)
    seen = Seen(image, np.full((64, 64), 9, np.uint8))
    found = features(seen, seen, np.ones((64, 64), bool))
    for reach in (1, 4, 12):
        assert np.abs(found[f"change_{reach}"]).max() == 0
    alike = found["likeness_10"].reshape(64, 64)[45:55, 45:55]
    assert alike.min() > 0.85  # on the edge of the box; dark ground has less to recognise
    assert set(found["activation_after_4"]) == {9.0}
    alone = features(seen, None, np.ones((64, 64), bool))
    assert sorted(alone) == sorted(name for name in found if "after" in name)


def test_what_is_not_valid_has_no_say_in_means() -> None:
    rng = np.random.default_rng(0)
    image, valid = rng.integers(0, 255, (40, 40, 3)).astype(np.uint8), np.ones((40, 40), bool)
    valid[:, :20] = False
    other = image.copy()
    other[:, :20] = 255
    found, again = (features(Seen(one * valid[..., None], one[..., 0] * valid), None, valid) for one in (image, other))
    assert all(np.array_equal(found[name], again[name]) for name in found)
    mean = found["activation_after_4"].reshape(40, 40)[20, 22]
    assert mean == pytest.approx(image[16:25, 20:27, 0].mean())


def pair_of_noise(side: int) -> tuple[Seen, Seen, np.ndarray]:
    rng = np.random.default_rng(5)
    one, other = (
        Seen(*(rng.integers(0, 256, shape).astype(np.uint8) for shape in ((side, side, 3), (side, side))))
        for _ in range(2)
    )
    return one, other, rng.random((side, side)) > 0.1


def test_features_are_means_and_correlations_over_squares() -> None:
    """Against sums that are added up pixel by pixel, in the middle and at the frame."""
    after, before, valid = pair_of_noise(60)
    where = np.zeros((60, 60), bool)
    where[[0, 30, 59], [3, 31, 59]] = True
    found = features(after, before, valid, where)
    totals = [(seen.image.sum(axis=2).astype(int) * valid) for seen in (after, before)]
    blurred = [np.array([[square(t, r, c, 1).sum() // 9 for c in range(60)] for r in range(60)]) for t in totals]
    for number, (row, col) in enumerate(np.argwhere(where)):
        near = square(valid, row, col, 12)
        for name, seen in (("after", after), ("before", before)):
            for layer, values in zip(change.FEATURES, change.features(seen.image), strict=True):
                mean = square(values * valid, row, col, 12).sum() / near.sum()
                assert found[f"{layer}_{name}_12"][number] == pytest.approx(mean, rel=1e-12)
            assert found[f"activation_{name}"][number] == (seen.activation * valid)[row, col]
        one, other = (square(values, row, col, 24).astype(float) for values in blurred)
        shared = ((one - one.mean()) * (other - other.mean())).mean()
        spread = np.sqrt((one.var() + change.NOISE**2) * (other.var() + change.NOISE**2))
        assert found["likeness_24"][number] == pytest.approx(shared / spread, rel=1e-9)


def square(values: np.ndarray, row: int, col: int, reach: int) -> np.ndarray:
    """The square around a pixel, cut at the frame."""
    return values[max(0, row - reach) : row + reach + 1, max(0, col - reach) : col + reach + 1]


def test_features_depend_on_nothing_further_away() -> None:
    """So that only the surroundings of what is looked at are worked on."""
    after, before, valid = pair_of_noise(120)
    where = np.zeros((120, 120), bool)
    where[50:60, 3:9] = True  # the frame is nearer than the reach
    rows, cols = slice(50 - change.REACH, 60 + change.REACH), slice(0, 9 + change.REACH)
    whole = features(after, before, valid, where)
    part = features(after.part(rows, cols), before.part(rows, cols), valid[rows, cols], where[rows, cols])
    assert all(np.array_equal(whole[name], part[name]) for name in whole)
    less = features(
        after.part(slice(30, 80), cols), before.part(slice(30, 80), cols), valid[30:80, cols], where[30:80, cols]
    )
    assert not all(np.array_equal(whole[name], less[name]) for name in whole)


def test_sums_that_fit_are_exact_though_those_of_all_pixels_do_not() -> None:
    values = np.full((300, 300), 765**2, np.int32)  # 5e10 in all
    assert set(change.box_sums(values, 24)[24:-24, 24:-24].ravel()) == {49 * 49 * 765**2}
    where = np.zeros((300, 300), bool)
    where[280, 280] = True
    squares = change._Squares.around(where, 24)
    assert squares.sums(change._table(values)).tolist() == [44 * 44 * 765**2]


def test_forms_of_a_plane_and_of_a_ridge() -> None:
    grid = Grid(UTM, PLACE, 100, 100)
    cols = np.arange(100 + 2 * 20) * 0.5
    sizes = terrain.pixel_sizes(grid, range(100))
    known = np.ones((140, 140), bool)
    plane = terrain.forms(np.broadcast_to(cols, (140, 140)), known, sizes, grid, (5, 20))
    assert plane["slope_1"] == pytest.approx(45, abs=0.2)
    assert np.abs(plane["rise_2"]).max() < 1e-9
    ridge = terrain.forms(np.broadcast_to(-np.abs(cols - 35), (140, 140)), known, sizes, grid, (5, 20))
    assert ridge["rise_1"][0, 50] == pytest.approx(6 / 8, rel=0.01)  # six of eight places are a step lower
    assert ridge["rise_1"][0, 10] == pytest.approx(0, abs=1e-9)


# --- heads -----------------------------------------------------------------------------------------------------------


def test_trees_add_up_the_leaves_that_a_pixel_reaches() -> None:
    trees = Trees(
        ("a", "b"),
        roots=(0, 5),
        feature=(0, 1, -1, -1, -1, -1),
        threshold=(1.0, 5.0, 0.0, 0.0, 0.0, 0.0),
        left=(1, 3, 0, 0, 0, 0),
        right=(2, 4, 0, 0, 0, 0),
        value=(0, 0, 1000, -2000, 500, 250),
        start=-250,
    )
    found = trees({"a": np.array([2.0, 1.0, 0.0]), "b": np.array([0.0, 5.0, 6.0])})
    assert found == pytest.approx(1 / (1 + np.exp(-np.array([1.0, -2.0, 0.5]))))


def walked(trees: Trees, columns: dict[str, np.ndarray]) -> list[float]:
    """Probabilities by a walk from the root to a leaf, pixel by pixel."""
    found = []
    for pixel in range(len(next(iter(columns.values())))):
        logit = trees.start
        for node in trees.roots:
            while trees.feature[node] != evidence_head.LEAF:
                above = columns[trees.names[trees.feature[node]]][pixel] > trees.threshold[node]
                node = (trees.right if above else trees.left)[node]
            logit += trees.value[node]
        found.append(1 / (1 + np.exp(-logit / evidence_head.LOGIT_UNIT)))
    return found


@pytest.mark.parametrize("kind", evidence_head.KINDS)
def test_the_leaf_of_a_pixel_is_that_of_a_walk(kind: evidence_head.Kind) -> None:
    trees = load_heads(shipped()).heads[kind].trees
    rng = np.random.default_rng(0)
    own: dict[int, list[float]] = {number: [0.0] for number in range(len(trees.names))}
    for number, threshold in zip(trees.feature, trees.threshold, strict=True):
        own.get(number, []).append(threshold)
    near = {name: rng.choice(own[k], 60) + rng.choice([-1e-9, 0, 1e-9], 60) for k, name in enumerate(trees.names)}
    near[trees.names[0]][0] = np.nan
    assert trees(near).tolist() == pytest.approx(walked(trees, near), rel=1e-12)


def chain(leaves: int) -> Trees:
    """Each comparison leads to a leaf on its left, or on to the next one."""
    feature = tuple([0, evidence_head.LEAF] * (leaves - 1) + [evidence_head.LEAF])
    places = range(len(feature))
    return Trees(
        ("a",),
        (0,),
        feature,
        threshold=tuple(float(k // 2) for k in places),
        left=tuple(k + 1 for k in places),
        right=tuple(k + 2 for k in places),
        value=tuple(100 * (k // 2) * (f == evidence_head.LEAF) for k, f in zip(places, feature, strict=True)),
        start=0,
    )


@pytest.mark.parametrize("leaves", [2, 8, 9, 16, 17, 33, 64])
def test_trees_may_have_up_to_64_leaves(leaves: int) -> None:
    columns = {"a": np.arange(-1.0, leaves + 1, 0.5)}
    assert chain(leaves)(columns).tolist() == pytest.approx(walked(chain(leaves), columns), rel=1e-12)


def test_trees_of_more_leaves_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 64 leaves"):
        chain(65)


@pytest.mark.parametrize(
    "wrong",
    [{"left": (0, 0, 0)}, {"right": (9, 0, 0)}, {"roots": ()}, {"feature": (4, -1, -1)}, {"threshold": (np.inf, 0, 0)}],
)
def test_trees_that_are_none_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"trees have|come after|roots are|nodes compare"):
        replace(stump("a", 1.0), **wrong)


def test_heads_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    save_heads(path, HEADS, overwrite=False)
    assert load_heads(path) == replace(HEADS, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    path.write_text(path.read_text().replace('"left":[1,', '"left":[0,'))
    with pytest.raises(WeightsError, match=r"does not hold evidence heads .*evidence_fit"):
        load_heads(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_heads(tmp_path / "none.json")


def test_the_heads_that_ship_are_of_the_bundled_localizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    recipe = Networks().recipes()[0]
    found = evidence_head.heads_for(recipe.sha256)
    assert found is not None
    names = [set(found.heads[kind].trees.names) for kind in evidence_head.KINDS]
    seen = Seen(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))
    pair = set(features(seen, seen, np.ones((8, 8), bool)))
    after = {name for name in pair if "after" in name}
    ground_names = {f"{form}_{k}" for form in ("slope", "rise") for k in (1, 2, 3)}
    assert names == [pair, after | ground_names, pair | ground_names]
    assert shipped().stat().st_size < 400_000


def test_evidence_moves_the_confidence_where_it_is_known() -> None:
    table = {
        "evidence": [np.nan, 0.9, 0.1, 0.9, 0.1],
        "change_z": [1.0, 1.0, 1.0, np.nan, np.nan],
        "slope_mean_deg": [np.nan, np.nan, np.nan, 20.0, 20.0],
    }
    found = with_evidence(np.full(5, 0.5), table, HEADS.localizer)
    assert found == pytest.approx(
        [0.5, 0.9, 0.1, 1 / (1 + np.exp(-1) / 9), 0.1]
    )  # one more, and one less below the cut
    assert with_evidence(np.full(5, 0.5), table, "f" * 64).tolist() == [0.5] * 5
    assert np.isnan(with_evidence(np.full(5, np.nan), table, HEADS.localizer)).all()


def test_the_command_leaves_polygons_whole_when_asked(tmp_path: Path, after: Path) -> None:
    out = tmp_path / "s.gpkg"
    words = ["extract", str(after), "--out", str(out), "--before", str(earlier(tmp_path / "before.tif"))]
    assert command([*words, "--stretch", "0,255", "--quiet"]) == 0
    assert len(layers(out)[1]) == 1
    assert command([*words, "--stretch", "0,255", "--quiet", "--no-cut", "--overwrite"]) == 0
    assert len(layers(out)[1]) == 0
