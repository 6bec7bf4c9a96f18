"""Training on labels of whole chips: crops, schedules, peaks, the three methods in miniature, and what stops them."""

import csv
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from scipy.special import expit
from torch import nn

from geolabel.activation import Activation
from geolabel.chips import Chip, ChipList
from geolabel.cli.main import run
from geolabel.engine import worker
from geolabel.engine.tasks import Silent
from geolabel.errors import ChipError, OptionError, OutputError, TrainingError, WeightsError
from geolabel.extraction.request import Networks
from geolabel.labelers import ConfidenceLabeler
from geolabel.labeling.regions import segment_everything, segment_maps
from geolabel.masks import Filters
from geolabel.models import loading
from geolabel.models.checkpoint import load_own, read_info
from geolabel.models.defaults import segmenter_defaults
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.models.nets.trunk import IMAGENET_MEAN, load_trunk
from geolabel.models.nets.wideresnet import WideResNet38
from geolabel.prompters import GridPrompter, PeakPrompter
from geolabel.testing import FakeSegmenter
from geolabel.tiles import mirrored
from geolabel.training import localizers
from geolabel.training.cism import CismLosses, CismObjective, CismTerms, partner
from geolabel.training.first_weights import load_backbone
from geolabel.training.fit import Schedule
from geolabel.training.image_labels import ChipLosses, ChipObjective, Learning, fit_bias, raw_maps
from geolabel.training.localizers import FILE, LocalizerRequest
from geolabel.training.presets import LOCALIZERS, preset_of
from geolabel.training.s2c import S2cLosses, S2cObjective, S2cTerms, prompted_targets
from geolabel.training.samples import Cropping, epoch_indices, take_crop
from geolabel.training.train import saving_to, train

LEARNING = Learning(Cropping(64, strength=0.0), batch=4, mean=(110.0,) * 3, std=(65.0,) * 3)


def chip(k: int, *, shows: tuple[bool, ...]) -> Chip:
    """Dark noise with a bright square, red or blue, for each class it shows; of a size of its own."""
    rng = np.random.default_rng(k)
    rgb = rng.integers(0, 60, (60 + 5 * (k % 4), 90 - 7 * (k % 3), 3), np.uint8)
    for c, shown in enumerate(shows):
        if shown:
            row, col = rng.integers(0, 40, 2)
            rgb[row : row + 20, col : col + 20, 2 * c] = 250
    return Chip(f"chip_{k}", rgb, np.array(shows))


def chips(count: int = 12, classes: int = 2) -> ChipList:
    names = ("red", "blue")[:classes]
    shows = [(True, False), (False, False), (True, True), (False, True)]
    return ChipList(names, [chip(k, shows=shows[k % 4][:classes]) for k in range(count)])


def tiny(classes: int = 2) -> PyramidLocalizer:
    torch.manual_seed(0)
    return PyramidLocalizer(classes=classes, widths=[16] * 4, depths=[1] * 4, features=8)


# Schedules


def test_rates_fall_as_published():
    poly = Schedule(cycles=(100,), rate=0.1, fall="poly")
    assert [poly.rate_at(x) for x in (0, 0.5, 1)] == pytest.approx([0.1, 0.1 * 0.5**0.9, 0])
    cosine = Schedule(cycles=(100,), rate=0.1, fall="cosine", warmup=0.1)
    assert [round(cosine.rate_at(p), 4) for p in (0, 0.05, 0.1, 0.55, 1)] == [0.001, 0.0505, 0.1, 0.0505, 0.001]
    step = Schedule(cycles=(90,), rate=0.1, fall="step")
    assert [step.rate_at(x) for x in (0, 1 / 3 - 1e-6, 1 / 3, 2 / 3, 1)] == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-3])


def test_optimisers_are_those_of_the_papers():
    def groups() -> list[dict]:
        return [{"params": [nn.Parameter(torch.zeros(1))], "weight_decay": 1e-4}]

    sgd = Schedule(cycles=(1,), rate=0.1, kind="sgd").optimiser(groups())
    assert (type(sgd), sgd.param_groups[0]["momentum"]) == (torch.optim.SGD, 0.9)
    assert sgd.param_groups[0]["weight_decay"] == 1e-4
    assert type(Schedule(cycles=(1,), rate=0.1, kind="adam").optimiser(groups())) is torch.optim.Adam
    code = LOCALIZERS["cam", "code"].schedule.lasting(1).optimiser(groups())
    assert code.param_groups[0]["momentum"] == 1e-4
    with pytest.raises(OptionError, match="cism has no preset 'code'"):
        preset_of("cism", "code")


# Crops


@given(st.integers(1, 40), st.integers(-60, 60), st.integers(1, 50))
def test_a_mirrored_side_is_numpy_s_symmetric_padding(length: int, first: int, count: int):
    padded = np.pad(np.arange(length), (200, 200), mode="symmetric")
    np.testing.assert_array_equal(mirrored(first, first + count, length), padded[200 + first : 200 + first + count])


@given(st.integers(0, 500))
def test_image_and_layer_are_cut_alike(seed: int):
    rng = np.random.default_rng(seed)
    layer = rng.integers(0, 255, rng.integers(20, 90, 2)).astype(np.int32)
    rgb = np.repeat(layer[..., None], 3, axis=2).astype(np.uint8)
    crop = take_crop(rgb, Cropping(48, strength=0.0), rng, layer)
    np.testing.assert_array_equal(crop.rgb[..., 0], crop.layer)


def test_a_small_chip_lies_anywhere_in_its_crop():
    rgb = np.zeros((21, 21, 3), np.uint8)
    rgb[10, 10] = 255
    found = [take_crop(rgb, Cropping(64, strength=0.0), np.random.default_rng(k)).rgb for k in range(200)]
    places = np.array([np.argwhere(crop[..., 0] > 0)[0] for crop in found])
    assert len(np.unique(places, axis=0)) > 50


def test_the_scale_is_drawn_whatever_the_size_of_the_chip():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::40] = 255
    crop = take_crop(stripes, Cropping(100, (0.5, 0.5), strength=0.0), np.random.default_rng(0)).rgb
    assert crop.shape == (100, 100, 3)
    bright = (
        (crop[..., 0] > 60).any(axis=0) if (crop[..., 0] > 60).all(axis=0).any() else (crop[..., 0] > 60).any(axis=1)
    )
    assert 4 <= (np.diff(bright.astype(int)) == 1).sum() + bright[0] <= 6  # 100 px at half scale show five stripes


def test_every_chip_is_seen_once_in_an_epoch():
    seen = np.concatenate([epoch_indices(10, 4, step, seed=1) for step in range(3)])
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert seen[10:].tolist() == seen[:2].tolist()  # the last batch is filled up
    assert epoch_indices(10, 4, 3, seed=1).tolist() != seen[:4].tolist()


# Peaks


def bumps(*places: tuple[int, int], size: int = 128) -> Activation:
    rows, cols = np.mgrid[:size, :size]
    values = np.max([np.exp(-((rows - r) ** 2 + (cols - c) ** 2) / 50) for r, c in places], axis=0)
    maps = values[None].astype(np.float32)
    return Activation(maps, maps, np.ones(1, np.float32), 1, ("a",))


@pytest.mark.parametrize(
    ("places", "count"), [([(30, 30), (30, 70)], 2), ([(30, 30), (30, 35)], 1), ([(2, 2)], 1), ([(0, 127)], 1)]
)
def test_peaks_are_counted(places: list[tuple[int, int]], count: int):
    prompts = PeakPrompter(distance=20 / 128)(bumps(*places))
    assert len(prompts) == 1
    assert prompts.points.shape[1] == count
    assert not prompts.has_box.any()
    found = {tuple(point) for point in prompts.points[0].astype(int)[:, ::-1]}
    assert all(min(abs(r - a) + abs(c - b) for r, c in found) <= 6 for a, b in places)


def test_low_maps_have_no_peak_and_flat_ones_a_single_one():
    flat = np.ones((2, 8, 8), np.float32) * np.array([0.4, 1.0], np.float32)[:, None, None]
    prompts = PeakPrompter()(Activation(flat, flat, flat.max(axis=(1, 2)), 8, ("a", "b")))
    assert prompts.class_ids.tolist() == [1]
    assert prompts.points.shape == (1, 1, 2)
    two = bumps((30, 30), (90, 90))
    assert PeakPrompter(single=True)(two).points.shape[1] == 1


# Losses of whole networks


def batch_of(objective: ChipObjective) -> dict[str, torch.Tensor]:
    return objective.batch(0)


def test_a_batch_depends_on_nothing_but_seed_and_step():
    data = chips()
    first, again = (ChipObjective(ChipLosses(tiny(), data.names), data, data, LEARNING) for _ in range(2))
    first.batch(0)
    torch.testing.assert_close(first.batch(5), again.batch(5))
    other = ChipObjective(ChipLosses(tiny(), data.names), data, data, replace(LEARNING, seed=1))
    assert not torch.equal(first.batch(5)["images"], other.batch(5)["images"])


def test_a_loss_that_is_no_number_names_the_chips():
    data = chips()
    module = ChipLosses(tiny(), data.names)
    batch = batch_of(ChipObjective(module, data, data, LEARNING))
    batch["images"][2] = torch.nan
    names = {data.names[i] for i in batch["index"].tolist()}
    with pytest.raises(TrainingError, match="the classification loss is nan on the chips") as caught:
        module(**batch)
    assert all(name in str(caught.value) for name in names)


def test_frozen_normalisation_stays_frozen():
    module = ChipLosses(tiny(), (), frozen_norm=True).train()
    assert not any(m.training for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    assert module.network.head.training


def test_s2c_asks_the_segmenter_from_its_epoch_on():
    data, asked = chips(), []
    segmenter = FakeSegmenter(radius=6)
    inner = prompted_targets(PeakPrompter(), segmenter, ConfidenceLabeler(0.0), data.classes)

    def targets(images, maps, labels):
        found = inner(images, maps, labels)
        asked.append((maps, labels, found))
        return found

    terms = S2cTerms(prompted_from=1.0, scales=(0.5, 1.0))
    module = S2cLosses(tiny(), data.names, terms, targets)
    objective = S2cObjective(module, data, data, LEARNING, lambda i: np.ones(data.chip(i).rgb.shape[:2], np.int32))
    early, late = objective.batch(2), objective.batch(3)  # 12 chips in batches of 4: three steps an epoch
    assert module(**early)["prompted"].item() == 0
    assert not asked
    losses = module.train()(**late)
    assert module.training
    assert losses["prompted"].item() > 0.3
    assert losses["contrast"].item() == 0  # one segment: nothing to tell apart
    ((maps, labels, found),) = asked
    assert found.shape == (4, 64, 64)
    for k in range(4):
        shown = {0, *(torch.nonzero(labels[k])[:, 0] + 1).tolist()}
        assert set(found[k].unique().tolist()) <= shown  # a mask has no class that the chip does not show
        assert labels[k].any() or maps[k].max() == 0


def test_cism_learns_from_pairs_with_every_part():
    data = chips()
    module = CismLosses(tiny(), data.names, CismTerms())
    objective = CismObjective(module, data, data, LEARNING, CismTerms())
    batch = objective.batch(0)
    labels = batch["labels"]
    assert batch["index"].shape == (4, 4)
    losses = module(**batch)
    assert set(losses) == {"classification", "secondary", "common", "non_common"}
    sum(losses.values()).backward()
    without = {name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {name for name in without if not name.startswith("network.trunk")}
    swapped = {name: tensor.roll(2, dims=0) for name, tensor in batch.items()}
    for name, loss in module(**swapped).items():
        torch.testing.assert_close(loss, losses[name], atol=1e-4, rtol=1e-4)
    assert labels.shape == (4, 2)


def test_cism_s_parts_can_be_left_out():
    data = chips()
    terms = CismTerms(prototypes=False, enhancement=False, secondary=False, common=False, generated=False, eta=0.0)
    module = CismLosses(tiny(), data.names, terms)
    batch = CismObjective(module, data, data, LEARNING, terms).batch(0)
    assert (batch["gates"] == 1).all()
    assert set(module(**batch)) == {"classification", "non_common"}
    np.testing.assert_array_equal(batch["labels"], data.labels[batch["index"][:, 0]])


def test_the_seams_of_samples_tell_no_label():
    data = chips(24, classes=1)
    objective = CismObjective(CismLosses(tiny(1), data.names, CismTerms()), data, data, LEARNING, CismTerms())
    joined: dict[bool, list[bool]] = {True: [], False: []}
    for step in range(40):
        batch = objective.batch(step)
        for sources, shows in zip(batch["index"].tolist(), batch["labels"][:, 0].bool().tolist(), strict=True):
            assert all(data.labels[i, 0] == shows for i in sources)
            joined[shows].append(len(set(sources)) > 1)
    assert all(0.3 < np.mean(of) < 0.7 for of in joined.values()), joined


def _gradients(module: CismLosses, name: str, **batch: torch.Tensor) -> dict[str, float]:
    module.zero_grad()
    module(**batch)[name].backward()
    return {n: float(p.grad.abs().max()) for n, p in module.named_parameters() if p.grad is not None}


def test_one_class_beside_other_ground_has_something_to_compare():
    data, terms = chips(classes=1), CismTerms()
    module = CismLosses(tiny(1), data.names, terms)
    batch = CismObjective(module, data, data, LEARNING, terms).batch(0)
    secondary = _gradients(module, "secondary", **batch)
    assert secondary["secondary"] > 0  # SLSC
    assert secondary["project.weight"] > 0  # PV
    assert secondary["spatial.weight"] > 0  # PIE
    assert secondary["network.head.weight"] > 0
    assert _gradients(module, "common", **batch)["semantic.weight"] > 0  # CSM
    alone = replace(terms, other=False)
    void = CismLosses(tiny(1), data.names, alone)
    assert not any(_gradients(void, "secondary", **batch).values())


def test_prototypes_and_their_enhancement_teach_without_the_secondary_classification():
    data, terms = chips(), CismTerms(secondary=False, common=False, non_common=False, generated=False)
    module = CismLosses(tiny(), data.names, terms)
    batch = CismObjective(module, data, data, LEARNING, terms).batch(0)
    assert _gradients(module, "prototypes", **batch)["spatial.weight"] > 0
    plain = CismLosses(tiny(), data.names, replace(terms, enhancement=False))
    plain.load_state_dict(module.state_dict())
    assert module(**batch)["prototypes"].item() != pytest.approx(plain(**batch)["prototypes"].item(), abs=1e-6)


def test_the_map_that_is_kept_is_that_of_the_second_classifier():
    data, terms = chips(classes=1), CismTerms()
    module = CismLosses(tiny(1), data.names, terms).eval()
    images = torch.randn(1, 3, 64, 64)
    weight = (module.secondary[0] - module.secondary[1]) / 2 * module.typical[0]
    features = module.project(module.network.features(images)).sigmoid()
    expected = torch.einsum("d,ndhw->nhw", weight, features)[:, None]
    torch.testing.assert_close(module.localizer(images), expected)
    none = CismTerms(prototypes=False, enhancement=False, secondary=False)
    plain = CismLosses(tiny(1), data.names, none)
    assert plain.localizer is plain.network


def test_the_affinity_of_the_baseline_learns():
    data = chips()
    terms = CismTerms(False, False, 0.0, False, False, False, False, affinity=True)
    module = CismLosses(tiny(), data.names, terms)
    batch = CismObjective(module, data, data, LEARNING, terms).batch(0)
    assert set(module(**batch)) == {"classification", "affinity"}
    found = _gradients(module, "affinity", **batch)
    assert all(found[f"affinity.{part}.weight"] > 0 for part in ("query", "key", "value"))


def test_cpm_begins_in_a_training_of_one_epoch():
    request = LocalizerRequest("s2c", epochs=1)
    numbers = request.numbers
    assert request._timed(numbers).s2c.prompted_from == 1 / numbers.epochs
    assert LocalizerRequest("s2c", epochs=50)._timed(numbers).s2c.prompted_from == 1


def test_what_is_void_or_lonely_is_said(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "geolabel")
    data = ChipList(("red",), [chip(k, shows=(k == 0,)) for k in range(4)])
    terms = CismTerms(common=False, other=False)
    CismObjective(CismLosses(tiny(1), data.names, terms), data, data, LEARNING, terms)
    assert "with one class" in caplog.text
    assert "'red' is shown by 1 chip: it never has a partner" in caplog.text
    assert "made maps worse" in caplog.text


def test_partners_share_a_class_where_they_can():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    rng = np.random.default_rng(0)
    assert {partner(labels, 0, rng) for _ in range(20)} == {1}
    assert {partner(labels, 1, rng) for _ in range(50)} == {0, 2}
    assert 3 not in {partner(labels, 3, rng) for _ in range(50)}
    assert partner(labels[:1], 0, rng) == 0


# Segment maps


class Quarters:
    """Answers everything mode with the whole image and its upper left quarter."""

    window = 64
    gsd_range = (0.0, 10.0)
    calls = 0

    def __call__(self, images, prompts):
        type(self).calls += 1
        (image,) = images
        assert len(prompts[0]) == 4
        masks = FakeSegmenter()._masks(image.shape[:2], prompts[0][:2])
        masks.scores[:] = 0
        masks.scores[0] = 254
        masks.scores[1, : image.shape[0] // 2, : image.shape[1] // 2] = 254
        return [masks]


def test_the_smallest_segment_owns_a_pixel_and_tiles_share_none():
    numbers = segment_everything(np.zeros((40, 100, 3), np.uint8), Quarters(), GridPrompter(2))
    assert numbers.min() == 1
    assert len(np.unique(numbers[:20, :32])) == 1
    assert numbers[0, 0] != numbers[30, 0]
    assert len(np.unique(numbers)) > 3  # two tiles of two segments


def test_the_bundled_segmenter_finds_segments_to_contrast():
    rgb = np.random.default_rng(0).integers(60, 90, (128, 128, 3)).astype(np.uint8)
    rgb[20:60, 20:70] += 90
    rgb[80:115, 70:120] += 60
    _, recipe = Networks(device="cpu", precision="fp32").recipes("whole")
    segmenter = worker.segmenter(recipe.everything(segmenter_defaults(recipe.source).filters))
    numbers = segment_everything(rgb, segmenter, GridPrompter(4))
    # eq. 6 of S2C tells a prototype from others: one segment alone teaches nothing
    assert len({0, int(numbers[40, 45]), int(numbers[97, 95])}) == 3


def test_segment_maps_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from geolabel.engine import worker

    data = chips(3)
    monkeypatch.setattr(worker, "segmenter", lambda recipe: Quarters())
    recipe = loading.recipe("segmenter", "bundled", device="cpu")
    settings = {"filters": Filters(), "points_per_side": 2, "progress": Silent()}
    Quarters.calls = 0
    first = segment_maps(data, recipe, tmp_path, **settings)
    calls = Quarters.calls
    again = segment_maps(data, recipe, tmp_path, **settings)
    assert Quarters.calls == calls
    np.testing.assert_array_equal(first(1), again(1))
    assert first(1).shape == data.chips[1].rgb.shape[:2]
    assert segment_maps(data, replace(recipe, sha256="0"), tmp_path, **settings).folder != first.folder


def test_workers_are_for_the_method_that_segments_chips(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["train", "localizer", str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "2"]
    assert run([*words, "--method", "cam"]) == 2
    assert "--workers and --scheduler are for the segments of --method s2c" in capsys.readouterr().err


# Whole trainings


def small(method: str, **changes):
    numbers = preset_of(method, "cpu")
    fast = {"cropping": Cropping(64, strength=0.0), "batch": 4, "epochs": 1, "output_stride": 16, "points_per_side": 3}
    return replace(numbers, backbone="resnet10t", **fast, **changes)


@pytest.mark.parametrize("method", ["cam", "s2c", "cism"])
def test_a_training_makes_a_localizer_that_runs(method: str, tmp_path: Path):
    numbers = small(method)
    numbers = replace(numbers, s2c=replace(numbers.s2c, prompted_from=0.4))
    request = LocalizerRequest(method=method, init="none", gsd=0.8)
    figures = train(chips(8), tmp_path, request, preset=numbers, networks=Networks(device="cpu"))
    assert 0 <= figures["score"] <= 1
    info = read_info(tmp_path / FILE)
    assert (info.classes, info.window, info.gsd_range) == (("red", "blue"), 64, (0.8, 0.8))
    assert info.trained["method"] == method
    assert info.constant > 0
    localizer = loading.load(loading.recipe("localizer", tmp_path / FILE, device="cpu"))
    (activation,) = localizer([np.zeros((70, 90, 3), np.uint8)])
    assert activation.values.shape == (2, 5, 6)
    header = (tmp_path / "curves.csv").read_text().splitlines()[0]
    terms = {"cam": [], "s2c": ["contrast", "prompted"], "cism": ["secondary", "common", "non_common"]}[method]
    assert all(term in header for term in ["classification", *terms])


def test_a_training_begins_with_a_trunk_that_saw_photographs(tmp_path: Path):
    numbers = replace(small("cam"), schedule=Schedule(rate=0.0, decay=0.0, average=0.0))
    request, networks = LocalizerRequest(init="imagenet"), Networks(device="cpu")
    train(chips(8), tmp_path, request, preset=numbers, networks=networks)
    network, info = load_own(tmp_path / FILE, "localizer")
    assert (info.mean, info.stride) == (IMAGENET_MEAN, 8)
    for name, tensor in load_trunk("lite0").items():
        torch.testing.assert_close(network.trunk.state_dict()[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)


def test_few_cells_may_answer_for_a_chip_and_the_trunk_hardly_learns():
    request = LocalizerRequest(init="imagenet")
    found = localizers._start(request, request.numbers, chips(4))
    assert (found.info.architecture["strides"], found.info.sharpness) == ([8, 16], 1.0)
    assert (found.numbers.schedule.rate, found.numbers.schedule.trunk) == (2e-3, 0.01)
    assert found.numbers.schedule.keeps_last == 1  # the AUC does not see the map
    maps = torch.randn(2, 2, 4, 6)
    losses = ChipLosses(found.network, ["a"])
    pooled = maps.exp().mean(dim=(2, 3)).log() + found.network.bias
    torch.testing.assert_close(losses.logits(maps), pooled)
    random = LocalizerRequest(init="none")
    plain = localizers._start(random, random.numbers, chips(4))
    assert (plain.info.sharpness, plain.numbers) == (None, random.numbers)
    torch.testing.assert_close(ChipLosses(plain.network, ["a"]).logits(maps), maps.mean(dim=(2, 3)))


def _saved(path: Path, state: dict[str, torch.Tensor], *, pickled: bool) -> Path:
    torch.save(state, path) if pickled else save_file(state, path)
    return path


@pytest.mark.parametrize("pickled", [True, False])
def test_a_backbone_begins_with_the_weights_of_a_file(pickled: bool, tmp_path: Path):
    timm = pytest.importorskip("timm")
    whole = timm.create_model("resnet10t", pretrained=False)
    path = _saved(tmp_path / "weights", whole.state_dict(), pickled=pickled)
    request = LocalizerRequest(init="imagenet", backbone="resnet10t", init_weights=path)
    found = localizers._start(request, request.numbers, chips(4))
    for name, tensor in found.network.trunk.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name])
    assert found.info.mean == localizers.TIMM[0]
    other = replace(request, backbone="resnet14t")
    with pytest.raises(WeightsError, match=r"does not hold resnet14t: .* missing or of another shape"):
        localizers._start(other, other.numbers, chips(4))


def test_the_published_wrn38_is_loaded_by_its_own_names(tmp_path: Path):
    trunk = WideResNet38(shrink=16)
    part = {"norm1": "bn_branch2a", "conv1": "conv_branch2a", "norm2": "bn_branch2b1", "conv2": "conv_branch2b1"}
    part |= {"norms.0": "bn_branch2a", "norms.1": "bn_branch2b1", "norms.2": "bn_branch2b2", "skip": "conv_branch1"}
    part |= {"convs.0": "conv_branch2a", "convs.1": "conv_branch2b1", "convs.2": "conv_branch2b2"}
    counts = {2: 3, 3: 3, 4: 6, 5: 3, 6: 1, 7: 1}
    blocks = [f"b{stage}" + (f"_{k}" if k else "") for stage, count in counts.items() for k in range(count)]
    published = {"fc1000.weight": torch.zeros(1)}
    for name, tensor in trunk.state_dict().items():
        if name.startswith("blocks."):
            _, number, *layer, end = name.split(".")
            name = f"{blocks[int(number)]}.{part['.'.join(layer)]}.{end}"
        name = name.replace("stem.", "conv1a.").replace("norm.", "bn7.") if name[0] in "sn" else name
        published[name] = tensor.clone()
    path = _saved(tmp_path / "wrn.pth", published, pickled=True)
    fresh = WideResNet38(shrink=16)
    load_backbone(fresh, "wrn38", path)
    for name, tensor in trunk.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"preset": "paper"}, "ImageNet weights are not bundled, give their file with --init-weights .*resnet50"),
        ({"preset": "paper", "method": "s2c"}, "published state dict of ResNet-38d"),
        ({"preset": "paper", "init": "bundled"}, "trains resnet50, but --init bundled is another network"),
        ({"preset": "paper", "init": "resnet18.a1_in1k"}, "--preset paper trains resnet50, but --init names resnet18"),
        ({"init": "bundled", "backbone": "resnet18"}, "needs init none or imagenet, but init is bundled"),
        ({"init": "none", "init_weights": Path("a.pth")}, "is for --init imagenet, but init is none"),
        ({"init_weights": Path("a.pth")}, "uses EfficientNet-Lite0, whose weights are bundled"),
        ({"backbone": "resnet18"}, "--init imagenet of resnet18: its ImageNet weights are not bundled"),
    ],
)
def test_first_weights_that_do_not_go_together_are_refused(asked: dict, message: str):
    request = LocalizerRequest(**({"init": "imagenet"} | asked))
    with pytest.raises(OptionError, match=message):
        localizers._start(request, request.numbers, chips(4))


def test_a_training_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    data, networks = chips(8), Networks(device="cpu")
    numbers = replace(small("cam"), epochs=3)
    numbers = replace(numbers, schedule=replace(numbers.schedule, evaluations=3))
    request = LocalizerRequest(init="none")
    train(data, tmp_path / "whole", request, preset=numbers, networks=networks)
    broken = ChipList(data.classes, data.chips)
    given = {"preset": numbers, "networks": networks}

    def stop(_: int) -> np.ndarray:
        raise KeyboardInterrupt

    reads = {"left": 30}

    class Stopping:
        classes, names, labels = broken.classes, broken.names, broken.labels

        def __len__(self) -> int:
            return len(broken)

        def rgb(self, index: int) -> np.ndarray:
            reads["left"] -= 1
            return broken.rgb(index) if reads["left"] > 0 else stop(index)

    with pytest.raises(KeyboardInterrupt):
        train(Stopping(), tmp_path / "parts", request, **given)
    assert (tmp_path / "parts/state.pt").is_file()
    train(data, tmp_path / "parts", request, resume=True, **given)
    assert (tmp_path / "parts" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


@pytest.mark.parametrize(("name", "rate", "zooms"), [("landslide", 2e-5, [0.5, 2.0]), ("red", 1e-4, [0.25, 0.75])])
def test_weights_that_know_the_classes_learn_at_their_own_rate_and_size(
    name: str, rate: float, zooms: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(localizers, "activation_constant", lambda *_: 1.0)  # so short a training makes no map
    data = ChipList((name,), chips(8, classes=1).chips)
    numbers = replace(small("cam"), epochs=1, pretrained_rate=2e-5, pretrained_spread=2.0)
    numbers = replace(numbers, cropping=replace(numbers.cropping, zooms=(0.25, 0.75)))
    numbers = replace(numbers, schedule=Schedule(rate=1e-4, average=0.0, fall="poly"))
    request, networks = LocalizerRequest(init="bundled"), Networks(device="cpu")
    train(data, tmp_path, request, preset=numbers, networks=networks)
    with (tmp_path / "curves.csv").open() as file:
        assert float(next(csv.DictReader(file))["rate"]) == pytest.approx(rate)
    assert read_info(tmp_path / FILE).trained["zooms"] == zooms


def test_weights_that_were_reduced_before_are_reduced_as_much_again():
    numbers = replace(LOCALIZERS["cam", "cpu"], pretrained_spread=2.0)
    assert numbers.for_pretrained(0.5).cropping.zooms == (0.25, 1.0)
    assert numbers.for_pretrained(0.5).cropping.size == numbers.cropping.size
    assert LOCALIZERS["cam", "paper"].for_pretrained(0.5) == LOCALIZERS["cam", "paper"]


@pytest.mark.parametrize("method", ["cam", "s2c", "cism"])
def test_a_training_on_labels_looks_at_no_mask(method: str, tmp_path: Path):
    data = chips(8)

    class Labelled:
        classes, names, labels, rgb = data.classes, data.names, data.labels, data.rgb

        def __len__(self) -> int:
            return len(data)

        def chip(self, index: int) -> Chip:
            raise AssertionError(f"the mask of chip {index} was read")

    numbers = replace(small(method), epochs=0.5)
    train(Labelled(), tmp_path, LocalizerRequest(method, init="none"), preset=numbers, networks=Networks(device="cpu"))


def test_the_bundled_localizer_can_be_gone_on_with(tmp_path: Path):
    data = chips(8, classes=1)
    request = LocalizerRequest(init="bundled")
    numbers = replace(small("cam"), schedule=Schedule(rate=3e-3, average=0.0, fall="poly"))
    train(data, tmp_path, request, preset=numbers, networks=Networks(device="cpu"))
    info = read_info(tmp_path / FILE)
    assert info.architecture["name"] == "pyramid"
    assert info.classes == ("red",)
    assert info.mean == (127.0, 127.0, 127.0)


@pytest.mark.parametrize("offset", [-40.0, 0.0, 300.0])
def test_a_training_begins_with_as_many_chips_expected_as_there_are(offset: float):
    network, some = tiny().eval(), chips(16)
    with torch.no_grad():
        network.bias.fill_(offset)
    before = [raw_maps(network, some.rgb(k), LEARNING) for k in range(len(some))]
    fit_bias(network, some, LEARNING)
    after = np.stack([raw_maps(network, some.rgb(k), LEARNING).mean(axis=(1, 2)) for k in range(len(some))])
    expected = expit(after + network.bias.detach().numpy()).mean(axis=0)
    assert expected == pytest.approx(some.labels.mean(axis=0), abs=1e-5)
    assert all(np.array_equal(raw_maps(network, some.rgb(k), LEARNING), before[k]) for k in range(len(some)))


def test_a_class_that_all_chips_show_says_nothing_of_its_bias():
    network = tiny().eval()
    fit_bias(network, ChipList(("red", "blue"), [chip(k, shows=(True, False)) for k in range(4)]), LEARNING)
    assert network.bias.tolist() == [0, 0]


def test_trainings_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    networks = Networks(device="cpu")
    positive = ChipList(("red",), [chip(k, shows=(True,)) for k in range(3)])
    with pytest.raises(ChipError, match="all 3 chips"):
        train(positive, tmp_path, LocalizerRequest(), networks=networks)
    with pytest.raises(OptionError, match="crops of 100 px"):
        train(chips(), tmp_path, LocalizerRequest(size=100), networks=networks)
    with pytest.raises(WeightsError, match="nonsense cannot initialise a localizer"):
        train(chips(), tmp_path, LocalizerRequest(init="none", backbone="nonsense"), networks=networks)
    with pytest.raises(WeightsError, match=r"gone\.safetensors does not exist"):
        train(chips(), tmp_path, LocalizerRequest(init="gone.safetensors"), networks=networks)
    monkeypatch.setenv("GEOLABEL_OFFLINE", "1")
    with pytest.raises(WeightsError, match="forbids downloading resnet18"):
        train(chips(), tmp_path, LocalizerRequest(init="resnet18"), networks=networks)


def test_a_disk_that_fills_while_a_state_is_saved_is_named(tmp_path: Path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))
    try:
        with pytest.raises(OutputError, match="is the disk full"), saving_to(tmp_path):
            torch.save({"weights": torch.zeros(1 << 18)}, tmp_path / "state.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_state_of_another_network_is_refused(tmp_path: Path):
    data, networks = chips(8), Networks(device="cpu")
    train(data, tmp_path, LocalizerRequest(init="none"), preset=small("cam"), networks=networks)
    numbers = small("cam", features=16)
    with pytest.raises(WeightsError, match="the state of another training"):
        train(data, tmp_path, LocalizerRequest(init="none"), preset=numbers, networks=networks, resume=True)


def test_the_command_line_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = chips(8, classes=1)
    for one in data.chips:
        folder = tmp_path / "chips" / ("landslide" if one.labels[0] else "other")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one.rgb).save(folder / f"{one.name}.png")
    words = ["train", "localizer", str(tmp_path / "chips"), "--out", str(tmp_path / "out"), "--init", "none", "-q"]
    assert run([*words, "--epochs", "0.5", "--crops", "4", "--size", "64", "--device", "cpu", "--gsd", "1"]) == 0
    assert "localizer.safetensors" in capsys.readouterr().out
    assert run(words) == 1
    assert "exists: choose another --out" in capsys.readouterr().err
