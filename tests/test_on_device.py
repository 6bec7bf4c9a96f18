"""The path over a device: images as they are, weights in bf16, masks that are made there, one copy each way a batch.

The device is a stand-in: a processor whose tensors count what waits for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from segment_anything.modeling import Sam
from test_folded import SIDE, drawing, official
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from geolabel.engine import worker
from geolabel.extraction.request import Networks
from geolabel.masks import EVERY_CANDIDATE, FULL, FeaturedMasks, Filters, Masks, quantise_logits
from geolabel.models import loading, refinement
from geolabel.models.defaults import segmenter_defaults
from geolabel.models.engines import SelectiveNetwork
from geolabel.models.everything import EverythingSegmenter
from geolabel.models.nets.vit import halve
from geolabel.models.on_device import Crops, boxes_of, quantise, upload
from geolabel.models.on_torch import TorchSam
from geolabel.models.sam import SamSegmenter
from geolabel.parts import SegmenterRecipe
from geolabel.prompters import GridPrompter
from geolabel.prompts import Prompts

WAITING = ("item", "tolist", "numpy", "cpu", "nonzero", "unique", "__bool__", "__int__", "__float__", "masked_select")
"""Functions of tensors for which the host waits until the device has done what is asked of it."""


class Waits(TorchFunctionMode):
    """Counts calls that would wait for a device, and the bytes that they bring."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("__getitem__", "__setitem__") and chosen_by_flags(args[1]):
            name = "nonzero"  # how many are true has to be known
        if name in WAITING:
            self.calls[name] += 1
            self.bytes += args[0].nbytes if name == "cpu" else 0
        return function(*args, **(kwargs or {}))


def chosen_by_flags(index: Any) -> bool:
    """Whether an index of a tensor has a boolean tensor in it."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(3)
    network = drawing()
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    for head in network.mask_decoder.output_hypernetworks_mlps:
        head.layers[-1].weight.data *= 10  # logits on both sides of the edge, and far from it
    return network.eval().requires_grad_(False)


@contextmanager
def counted() -> Iterator[Waits]:
    with Waits() as waits:
        yield waits


def ask(sam: Sam, apart: bool, batch: int = 2, **options: Any) -> tuple[list[Masks], Waits]:
    random = np.random.default_rng(0)
    images = [random.integers(0, 255, (SIDE - 8 * k, SIDE, 3)).astype(np.uint8) for k in range(3)]
    points = [random.uniform(0, 40, (count, 2)) for count in (40, 3, 21)]
    prompts = [Prompts.build(points=some) for some in points]
    boxed = Prompts.build(boxes=np.array([[2, 3, 30, 40.0], [10, 5, 50, 30]]))
    prompts[1] = Prompts.concatenate([prompts[1][:2], boxed, prompts[1][2:]])  # kinds take turns
    network = TorchSam(sam, resize=False, batch=batch)
    network.apart = apart
    segment = SamSegmenter(network, gsd_range=(0.1, 10), prompts_per_batch=16, **options)
    with counted() as waits:
        return segment(images, prompts), waits


@pytest.mark.parametrize("selection", ["best_iou", "whole", "single"])
def test_masks_are_those_of_the_path_of_a_processor(sam: Sam, selection: str) -> None:
    for found, expected in zip(
        ask(sam, True, selection=selection)[0], ask(sam, False, selection=selection)[0], strict=True
    ):
        assert np.array_equal(found.prompt_ids, expected.prompt_ids)
        assert np.array_equal(found.candidates, expected.candidates)
        np.testing.assert_allclose(found.predicted_iou, expected.predicted_iou, atol=1e-6)
        np.testing.assert_allclose(found.stability, expected.stability, atol=2e-3)
        difference = abs(found.scores.astype(int) - expected.scores)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3  # logits in the middle between two scores, to a last digit
        assert len(np.unique(expected.scores)) > 5


def test_a_batch_of_images_waits_once_and_copies_once(sam: Sam) -> None:
    found, waits = ask(sam, True)
    assert waits.calls == {"cpu": 2, "numpy": 2}  # three images in batches of two: 64 prompts in seven calls
    assert waits.bytes == sum(masks.scores.nbytes + 12 * len(masks) for masks in found)
    before = ask(sam, False)[1]
    assert before.calls["cpu"] > 64


def test_scores_are_those_of_the_host() -> None:
    logits = np.concatenate([np.linspace(-8, 8, 4001), [-1e-4, 0, 1e-4, -200, 200]]).astype(np.float32)
    found = quantise(torch.from_numpy(logits)).numpy()
    assert (found != quantise_logits(logits)).mean() < 1e-3
    assert (found >= 127).tolist() == (logits >= 0).tolist()


class Pinned:
    """`torch.empty`, which notes what is to be pinned: memory of a processor has to do for it."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.empty = torch.empty

    def __call__(self, size: Any, *, pin_memory: bool = False, **given: Any) -> torch.Tensor:
        if pin_memory:
            self.bytes.append(size)
        return self.empty(size, **given)


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(0, 255, (height, width + 5, 3)).astype(np.uint8)[:, 5:] for height, width in sizes]


def test_images_travel_as_they_are_all_at_once() -> None:
    images = pictures((4, 6), (3, 3))
    images[1] = images[1][::-1]
    found = upload(images, "cpu")
    assert all(np.array_equal(sent.numpy(), image) for sent, image in zip(found, images, strict=True))
    assert found[0].untyped_storage().data_ptr() == found[1].untyped_storage().data_ptr()
    assert upload([], "cpu") == []


def test_images_wait_for_a_gpu_in_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images, memory = pictures((4, 6), (3, 3)), Pinned()
    monkeypatch.setattr(torch, "empty", memory)
    found = worker.waiting(SegmenterRecipe("bundled", device="cuda:1"), images)
    assert memory.bytes == [3 * (4 * 6 + 3 * 3)]
    assert all(
        np.array_equal(copy, image) and copy.flags.c_contiguous for copy, image in zip(found, images, strict=True)
    )
    for elsewhere in (SegmenterRecipe("bundled"), SegmenterRecipe("bundled", device="mps")):
        assert worker.waiting(elsewhere, images) is images
    assert len(memory.bytes) == 1


def test_a_device_resizes_as_a_processor_does_to_a_grey_value(sam: Sam) -> None:
    images = pictures((SIDE, 40), (100, 30), (20, 31), (SIDE, SIDE))
    network = TorchSam(sam)
    expected = list(network._pixels(images))
    network.apart = True
    for found, other in zip(network._pixels(images), expected, strict=True):
        assert found.shape == other.shape
        assert (found.float() - other.float()).abs().max() <= 1


def test_embeddings_are_those_of_images_that_a_processor_prepares(sam: Sam) -> None:
    images, network = pictures((SIDE, 40), (50, SIDE)), TorchSam(sam, resize=False, batch=2)
    with network.running():
        expected = network.encode(images)
        network.apart = True
        assert torch.equal(network.encode(images), expected)


def test_on_a_device_in_bf16_decoders_choose_in_single_precision(sam: Sam) -> None:
    exact, rough = (TorchSam(sam, resize=False, precision=precision, batch=1) for precision in ("fp32", "bf16"))
    rough.apart = True
    with exact.running():
        embedding = exact.encode(pictures((SIDE, SIDE)))[0]
    asked = np.array([[[9.0, 9]], [[40, 30]]], np.float32), np.ones((2, 1), np.int32)
    found = []
    for network in (exact, rough):
        with network.running():
            likely = network.decode_likely(embedding, asked, None, -np.inf, (SIDE, SIDE))
            found.append([*network.decode(embedding, asked, None), *likely])
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", [official, drawing])
def test_weights_in_bf16_answer_as_weights_that_each_call_casts(kind: Callable[[], Sam]) -> None:
    torch.manual_seed(3)
    images = pictures((SIDE, SIDE), (50, 40))
    network = TorchSam(kind().eval(), resize=False, precision="bf16", batch=2)
    with network.running():
        expected = network.encode(images)
        halve(network.sam.image_encoder)
        assert torch.equal(network.encode(images), expected)
    kept = {p.dtype for n, p in network.sam.image_encoder.named_parameters() if "norm" not in n and p.ndim > 1}
    assert torch.bfloat16 in kept
    assert {p.dtype for p in network.sam.mask_decoder.parameters()} == {torch.float32}


RACING = {"bincount", "cumsum", "histc", "index_add", "index_copy", "max_unpool2d", "median", "nll_loss_forward", "put"}
RACING |= {"nll_loss2d_forward", "scatter", "scatter_add", "scatter_reduce"}
"""Operations whose result on a GPU depends on which thread comes first, as torch lists those that
`torch.use_deterministic_algorithms` changes or refuses. Not here: what is so for gradients alone, and ``index_put``,
since no place is written twice."""


class Operations(TorchDispatchMode):
    """Names of the operations that are run; but for sums of whole numbers, which are exact in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__.removesuffix("_")
        if name != "cumsum" or not torch.equal(args[0], args[0].round()):  # segment-anything counts cells so
            self.names.add(name)
        return function(*args, **(kwargs or {}))


def everything(sam: Sam) -> Any:
    network = TorchSam(sam, resize=False, batch=1)
    network.apart = True
    segment = EverythingSegmenter(network, gsd_range=(0.1, 10), filters=EVERY_CANDIDATE, features=True)
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    return segment([image], [Prompts.build(points=np.array([[9.0, 9], [40, 30]]))])


def crf(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(refinement, "sums", refinement.sorted_sums)  # as on a GPU
    random = np.random.default_rng(0)
    image, share = random.integers(0, 255, (16, 20, 3)).astype(np.uint8), random.random((1, 16, 20), np.float32)
    refinement.Pamr(side=16)(image, share)
    return refinement.DenseCrf()(image, np.concatenate([share, 1 - share]))


@pytest.mark.parametrize("path", ["prompts", "everything", "refined maps"])
def test_no_result_depends_on_which_thread_of_a_gpu_comes_first(
    sam: Sam, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.use_deterministic_algorithms(True)  # raises for what has no such form on a processor either
    try:
        with Operations() as run:
            {"prompts": lambda: ask(sam, True), "everything": lambda: everything(sam)}.get(
                path, lambda: crf(monkeypatch)
            )()
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(run.names) > 10
    assert run.names.isdisjoint(RACING), run.names & RACING


def test_sums_of_a_field_on_a_processor_would_race_on_a_gpu() -> None:
    with Operations() as run:
        refinement.sums([(torch.zeros(3, dtype=torch.long), torch.ones(3))], 2)(torch.ones(1, 3))
    assert run.names & RACING == {"index_add"}


# --- everything mode -------------------------------------------------------------------------------------------------


def ask_everything(network: TorchSam, apart: bool, filters: Filters, **options: Any) -> tuple[list[Masks], Waits]:
    network.apart = apart
    random = np.random.default_rng(0)
    images = [random.integers(0, 255, (SIDE - 9 * k, SIDE, 3)).astype(np.uint8) for k in range(3)]
    prompts = [GridPrompter(6).over(*image.shape[:2]) for image in images]
    segment = EverythingSegmenter(network, gsd_range=(0.1, 10), filters=filters, prompts_per_batch=16, **options)
    with counted() as waits:
        return segment(images, prompts), waits


class Unselective(TorchSam):
    """A network that makes all masks first, as those of transformers do."""

    decode_likely = None  # type: ignore[assignment]


KEPT = Filters(predicted_iou=0, stability=0.05, duplicate=1)


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize("scores", [False, True])
def test_everything_is_what_a_processor_finds(sam: Sam, scores: bool, resize: bool) -> None:
    """Bits are the edge of the same masks; features are those under them."""
    network = TorchSam(sam, resize=resize, batch=2)
    found, _ = ask_everything(network, True, KEPT, features=True, scores=scores)
    expected, _ = ask_everything(network, False, KEPT, features=True)
    assert sum(map(len, expected)) > 20
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, FeaturedMasks)
        assert isinstance(other, FeaturedMasks)
        assert np.array_equal(one.prompt_ids, other.prompt_ids)
        assert np.array_equal(one.candidates, other.candidates)
        assert (one.binary != other.binary).mean() < 1e-3
        assert set(np.unique(one.scores)) <= {0, FULL} or scores
        if scores:
            assert abs(one.scores.astype(int) - other.scores).max() <= 1
        np.testing.assert_allclose(one.stability, other.stability, atol=2e-3)
        np.testing.assert_allclose(one.features, other.features, atol=1e-2)


@pytest.mark.parametrize("kind", [TorchSam, Unselective])
def test_everything_waits_once_for_each_call_and_twice_for_an_image(sam: Sam, kind: type[TorchSam]) -> None:
    network = kind(sam, resize=False, batch=2)
    assert isinstance(network, SelectiveNetwork) == (kind is TorchSam)
    found, waits = ask_everything(network, True, KEPT, features=True, scores=False)
    calls, images, batches = 9, 3, 2  # 36 points in calls of 16
    assert waits.calls.pop("numpy") > 0  # for which a copy was waited before, if it needed one
    assert waits.calls == {"cpu": calls + images + batches}
    candidates = 3 * 36 * images
    figures = 4 * candidates + 5 * 4 * candidates  # predicted IoU of all; stability and box of those that are likely
    assert waits.bytes < figures + sum(4 * masks.features.size + masks.scores.size / 8 + 1 for masks in found)


def test_nothing_that_passes_is_no_mask(sam: Sam) -> None:
    never = Filters(predicted_iou=1, stability=1)
    for scores in (False, True):
        found, _ = ask_everything(TorchSam(sam, resize=False), True, never, features=True, scores=scores)
        assert [(len(masks), masks.scores.shape[1]) for masks in found] == [(0, 64), (0, 55), (0, 46)]


def test_bits_are_those_of_numpy() -> None:
    masks = torch.from_numpy(np.random.default_rng(1).uniform(size=(3, 9, 7)) < 0.4)
    crops = Crops(boxes_of(masks).numpy(), scores=False)
    content = crops.pack([crops.of(masks.float() - 0.5, slice(0, 3))]).numpy()
    inside = [mask[crops._within(k)].ravel() for k, mask in enumerate(masks.numpy())]
    assert np.array_equal(content, np.packbits(np.concatenate(inside)))
    drawn = np.zeros((3, 9, 7), np.uint8)
    crops.draw(content, drawn)
    assert np.array_equal(drawn, masks.numpy() * FULL)


def test_a_tile_of_the_bundled_segmenter_brings_less_than_ten_megabytes() -> None:
    """A grid of 6 x 6 points has its share of a limit for 32 x 32."""
    recipe = Networks(device="cpu", engine="torch").recipes()[1]
    segment = loading.load(loading.everything(recipe, segmenter_defaults(None).filters, features=True))
    assert isinstance(segment, EverythingSegmenter)
    segment._network.apart = True
    image = (ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(512, 512, 3)), (9, 9, 0)) * 2000 + 110).clip(
        0, 255
    )
    with counted() as waits:
        (found,) = segment([image.astype(np.uint8)], [GridPrompter(6).over(512, 512)])
    limit = 10e6 * 36 / 32**2
    assert waits.calls["cpu"] == 5 + 2
    assert waits.bytes < limit < found.scores.nbytes
