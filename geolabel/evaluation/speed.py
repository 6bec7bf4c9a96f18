"""Speed of Segment Anything on this machine, compared with hardware limits: ``geolabel bench speed``.

Ceilings are measured in the same run: matrix products, copies on the device and to it, and the disk. Networks have
random weights, which take the same time, and need torch, torchvision and segment-anything. Rows for the path of a scene
also need geolabel's other dependencies, and are omitted with a reason if these are missing.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.nn.functional import interpolate

from geolabel.devices import compiled, exact, forward, products, resolve_device, resolve_precision
from geolabel.errors import OptionError
from geolabel.models.nets import vit
from geolabel.types import UInt8Array

if TYPE_CHECKING:
    from geolabel.prompts import Prompts

ENCODERS = {
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}
"""Width, blocks, heads, and the blocks of global attention of the official encoders."""

PATCH, WINDOW, NECK = 16, 14, 256

GSD = 0.5
"""Pixel size in metres, for square kilometres per hour."""

Figures = dict[str, float]
Table = dict[str, Figures]


@dataclass(frozen=True)
class Measure:
    """What is measured, and how long.

    Raises
    ------
    OptionError
        If a name is unknown or a number is invalid.
    """

    models: tuple[str, ...] = tuple(ENCODERS)
    device: str = "auto"
    precision: str = "auto"
    batch: int = 0
    """Tiles per call of the encoder; 0 for 8 on a GPU and 1 on a CPU."""
    side: int = 1024
    """Side in pixels of a tile, a multiple of 16."""
    prompts: int = 32
    """Points in a tile."""
    compiled: bool = False
    """Whether to measure compiled encoders, too."""
    seconds: float = 2.0
    """Minimum time of a row, after a warm-up call."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in ENCODERS]
        if unknown or not self.models:
            raise OptionError(
                f"no network is called {', '.join(unknown) or 'nothing'}: known are {', '.join(ENCODERS)}"
            )
        if self.side < 2 * PATCH or self.side % PATCH:
            raise OptionError(f"a side of {self.side} px: give a multiple of {PATCH} from {2 * PATCH} on")
        if self.prompts < 1 or self.batch < 0 or not self.seconds > 0:
            raise OptionError("prompts, batch and seconds must be positive")

    def settled(self) -> Measure:
        """The same with ``auto`` resolved."""
        device = resolve_device(self.device)
        batch = self.batch or (1 if device == "cpu" else 8)
        return replace(self, device=device, precision=resolve_precision(self.precision, device), batch=batch)


def operations(model: str, side: int = 1024) -> float:
    """Floating point operations of an official encoder for one tile, two for each multiply-add.

    Counted are matrix products: patches, queries, keys, values and outputs, scores and their weighted sums, relative
    positions, both layers of each perceptron, and the neck. Windows are padded, as in the network.
    """
    width, depth, _, everywhere = ENCODERS[model]
    cells = side // PATCH
    padded = -(-cells // WINDOW) * WINDOW
    total = 2.0 * cells**2 * (3 * PATCH**2 * width + width * NECK + 9 * NECK**2)
    for block in range(depth):
        seen, span = (cells, cells) if block in everywhere else (padded, WINDOW)
        total += 2.0 * seen**2 * 4 * width**2 + 2.0 * cells**2 * 8 * width**2
        total += 2.0 * seen**2 * (2 * span**2 * width + 2 * span * width)
    return total


def build(model: str, side: int) -> Sam:
    """An official network with random weights, for tiles of `side` pixels."""
    width, depth, heads, everywhere = ENCODERS[model]
    cells = side // PATCH
    encoder = ImageEncoderViT(
        img_size=side,
        patch_size=PATCH,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        out_chans=NECK,
        use_rel_pos=True,
        window_size=WINDOW,
        global_attn_indexes=everywhere,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    decoder = MaskDecoder(
        transformer_dim=NECK,
        transformer=TwoWayTransformer(depth=2, embedding_dim=NECK, mlp_dim=2048, num_heads=8),
        iou_head_hidden_dim=256,
    )
    prompts = PromptEncoder(NECK, (cells, cells), (side, side), mask_in_chans=16)
    return Sam(encoder, prompts, decoder).eval().requires_grad_(False)


def bench_speed(asked: Measure | None = None, *, profile: Path | None = None) -> dict[str, Any]:
    """Measure ceilings, encoders, the stages of a tile, and the path of a scene.

    Parameters
    ----------
    profile
        Path for a trace of one batch of tiles of the last network, for Perfetto or chrome://tracing.

    Returns
    -------
    dict
        Plain values: ``machine``, ``asked``, ``ceilings``, ``encoders``, ``stages``, ``predictor``, and ``left_out``
        with reasons. Rows are by name, and figures name their units.

    Raises
    ------
    OptionError
        If the device or the precision is not available.
    OutputError
        If the file of the trace exists.
    """
    given = (asked or Measure()).settled()
    if profile is not None:
        from geolabel.outputs import check_target

        check_target(profile, overwrite=False, suffixes=(".json",))
    clock = _Clock(given.device, given.seconds)
    ceilings = _ceilings(given, clock)
    encoders: Table = {}
    stages: dict[str, Table] = {}
    predictor: Table = {}
    left_out: dict[str, str] = {}
    for name in given.models:
        torch.manual_seed(0)
        exactly = build(name, given.side).to(given.device)
        sam = _as_it_runs(exactly, given)
        encoders[name] = _encoder(name, sam, given, clock, ceilings)
        if given.compiled:
            try:
                encoders[f"{name}, compiled"] = _encoder(name, sam, given, clock, ceilings, compiles=True)
            except Exception as error:  # noqa: BLE001  # a missing compiler must not lose the other rows
                left_out[f"{name}, compiled"] = str(getattr(error, "inner_exception", error)).partition("\n")[0]
        if given.device.startswith("cuda"):
            encoders[f"{name}, tf32"] = _encoder(name, exactly, replace(given, precision="tf32"), clock, ceilings)
        stages[name] = _stages(sam, given, clock)
        try:
            predictor[name] = _beside_predictor(sam, exactly, given, clock)
        except ImportError as error:
            left_out[f"predictor {name}"] = f"geolabel's own path needs {error.name}"
        if profile is not None and name == given.models[-1]:
            _trace(sam, given, profile)
        del sam, exactly
    return {
        "machine": _machine(given.device),
        "asked": asdict(given) | {"models": list(given.models)},
        "ceilings": ceilings,
        "encoders": encoders,
        "stages": stages,
        "predictor": predictor,
        "left_out": left_out,
    }


def table(found: Mapping[str, Any]) -> str:
    """The figures of `bench_speed` as Markdown."""
    lines = [f"{found['machine']}", "", "| ceiling | |", "|---|---|"]
    lines += [f"| {name} | {_digits(value)} |" for name, value in found["ceilings"].items()]
    for title in ("encoders", "predictor"):
        lines += _rows(title, found[title])
    for name, rows in found["stages"].items():
        lines += _rows(f"stages of {name}", rows)
    lines += [f"\nleft out: {name}: {reason}" for name, reason in found["left_out"].items()]
    return "\n".join(lines)


def _rows(title: str, rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    if not columns:
        return []
    head = ["", f"| {title} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    return head + [
        f"| {name} | {' | '.join(_digits(figures[c]) if c in figures else '' for c in columns)} |"
        for name, figures in rows.items()
    ]


def _digits(value: float) -> str:
    return f"{value:.4g}"


def _machine(device: str) -> str:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _as_it_runs(sam: Sam, given: Measure) -> Sam:
    """A network whose encoder has the weight precision that geolabel uses on the device."""
    if given.device == "cpu" or given.precision != "bf16":
        return sam
    halved = copy.deepcopy(sam)
    vit.halve(halved.image_encoder)
    return halved


# --- time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clock:
    """Times calls on a device that works asynchronously."""

    device: str
    seconds: float

    @property
    def on_gpu(self) -> bool:
        """Whether there is a device besides the processor."""
        return self.device != "cpu"

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        elif self.device == "mps":
            torch.mps.synchronize()

    def each(self, call: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of a call, and the share of them in which the device, or all threads of the processor, were busy."""
        call()
        self.wait()
        count, start, used = 0, time.perf_counter(), time.process_time()
        while count == 0 or time.perf_counter() - start < self.seconds:
            call()
            count += 1
            if self.on_gpu:
                self.wait()
        wall = time.perf_counter() - start
        busy = (time.process_time() - used) / wall / torch.get_num_threads()
        return wall / count, self._busy(call, wall / count) if self.on_gpu else min(1.0, busy)

    def _busy(self, call: Callable[[], Any], wall: float) -> float:
        # kernel time of one call over its duration, without the overhead of the profiler
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiler

        with profiler(activities=[ProfilerActivity.CUDA]) as traced:
            call()
            self.wait()
        kernels = sum(float(event.self_device_time_total) for event in traced.key_averages())
        return min(1.0, kernels / 1e6 / wall)


def _running(given: Measure) -> AbstractContextManager[None]:
    return forward(given.device, given.precision)


def _peak_gb(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:  # like geolabel.engine.tasks.peak_bytes, whose imports may be missing
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


# --- ceilings --------------------------------------------------------------------------------------------------------


def _ceilings(given: Measure, clock: _Clock) -> Figures:
    gpu = clock.on_gpu
    size, copied = (8192, 1 << 30) if gpu else (1024, 1 << 26)
    found: Figures = {}
    cuda = given.device.startswith("cuda")
    for name, kind in (("bf16", torch.bfloat16), ("tf32", torch.float32), ("fp32", torch.float32)):
        if (name == "bf16" and given.precision != "bf16") or (name == "tf32" and not cuda):
            continue
        left, right = (torch.randn(size, size, device=given.device, dtype=kind) for _ in range(2))
        with products(name):
            seconds, _ = clock.each(partial(torch.mm, left, right))
        found[f"matrix product {name}, TFLOP/s"] = 2 * size**3 / seconds / 1e12
    source = torch.ones(copied, dtype=torch.uint8, device=given.device)
    seconds, _ = clock.each(partial(torch.empty_like(source).copy_, source))
    found["copy on the device, read and written, GB/s"] = 2 * copied / seconds / 1e9
    if gpu:
        host = torch.ones(copied, dtype=torch.uint8, pin_memory=given.device.startswith("cuda"))
        seconds, _ = clock.each(partial(source.copy_, host, non_blocking=True))
        found["host to device, GB/s"] = copied / seconds / 1e9
        seconds, _ = clock.each(partial(host.copy_, source, non_blocking=True))
        found["device to host, GB/s"] = copied / seconds / 1e9
    return found | _disk(1 << 26)


def _disk(size: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bytes"
        start = time.perf_counter()
        with path.open("wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # read from the disk instead of the page cache
                os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        written = time.perf_counter() - start
        start = time.perf_counter()
        path.read_bytes()
        read = time.perf_counter() - start
    return {"disk, written, GB/s": size / written / 1e9, "disk, read, GB/s": size / read / 1e9}


# --- networks --------------------------------------------------------------------------------------------------------


def _encoder(
    name: str, sam: Sam, given: Measure, clock: _Clock, ceilings: Figures, *, compiles: bool = False
) -> Figures:
    if given.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(given.device)
    frames = torch.randn(given.batch, 3, given.side, given.side, device=given.device)
    encode = partial(vit.encode, sam.image_encoder)
    with _running(given):
        seconds, busy = clock.each(partial(compiled(encode) if compiles else encode, frames))
    tiles, work = given.batch / seconds, operations(name, given.side)
    ceiling = ceilings[f"matrix product {given.precision}, TFLOP/s"]
    return {
        "TFLOP a tile": work / 1e12,
        "TFLOP/s": work * tiles / 1e12,
        "share of the ceiling": work * tiles / 1e12 / ceiling,
        "tiles/s": tiles,
        "Mpx/s": tiles * given.side**2 / 1e6,
        "km2/h at 0.5 m": tiles * (given.side * GSD) ** 2 * 3600 / 1e6,
        "busy": busy,
        "peak GB": _peak_gb(given.device),
    }


def _images(given: Measure) -> list[UInt8Array]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (given.side, given.side, 3)).astype(np.uint8) for _ in range(given.batch)]


def _points(given: Measure) -> Tensor:
    return torch.rand((given.prompts, 1, 2), generator=torch.Generator().manual_seed(0)) * given.side


def _stages(sam: Sam, given: Measure, clock: _Clock) -> Table:
    # For a batch of tiles: each stage alone, and all of them in sequence.
    images, points = _images(given), _points(given).to(given.device)
    labels = torch.ones(points.shape[:2], device=given.device)
    mean, std = sam.pixel_mean, sam.pixel_std

    def upload() -> Tensor:
        stack = torch.from_numpy(np.stack(images))
        if given.device.startswith("cuda"):
            stack = stack.pin_memory()
        frames: Tensor = (stack.to(given.device, non_blocking=True).permute(0, 3, 1, 2).float() - mean) / std
        return frames

    def encode(frames: Tensor) -> Tensor:
        return vit.encode(sam.image_encoder, frames).float()

    def decode(embeddings: Tensor) -> list[tuple[Tensor, Tensor]]:
        with exact(given.device):
            sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
            places = sam.prompt_encoder.get_dense_pe()
        rounded = given.device != "cpu" and given.precision == "bf16"  # as in geolabel's decoder
        with torch.autocast(torch.device(given.device).type, enabled=False) if rounded else nullcontext():
            return [sam.mask_decoder(one[None], places, sparse, dense, multimask_output=True) for one in embeddings]

    def masks(answers: list[tuple[Tensor, Tensor]]) -> Tensor:
        chosen = [low[torch.arange(len(low)), quality.argmax(dim=1)] for low, quality in answers]
        whole = interpolate(torch.stack(chosen).float(), (given.side, given.side), mode="bilinear", align_corners=False)
        scores: Tensor = (whole.sigmoid_() * 254).round_().to(torch.uint8)
        return scores

    steps: dict[str, Callable[[Any], Any]] = {
        "upload and normalise": lambda _: upload(),
        "encode": encode,
        "decode": decode,
        "masks at full size": masks,
        "copy to the host": lambda scores: scores.cpu(),
    }

    def all_of_it() -> Any:
        value: Any = None
        for step in steps.values():
            value = step(value)
        return value

    found: Table = {}
    value: Any = None
    with _running(given):
        for name, step in steps.items():
            seconds, busy = clock.each(partial(step, value))
            found[name] = {"s a tile": seconds / given.batch, "busy": busy}
            value = step(value)
        seconds, busy = clock.each(all_of_it)
    for figures in found.values():
        figures["share of all"] = figures["s a tile"] * given.batch / seconds
    return found | {"all": {"s a tile": seconds / given.batch, "busy": busy, "tiles/s": given.batch / seconds}}


def _beside_predictor(sam: Sam, exactly: Sam, given: Measure, clock: _Clock) -> Figures:
    # geolabel's segmenter with its settings for scenes, and SamPredictor tile by tile in fp32, with the same prompts.
    from segment_anything import SamPredictor

    from geolabel.models.on_torch import TorchSam
    from geolabel.models.sam import SamSegmenter
    from geolabel.prompts import Prompts

    images, points = _images(given), _points(given)
    asked = Prompts.build(points=points[:, 0].double().numpy())
    network = TorchSam(sam, resize=False, device=given.device, precision=given.precision, batch=given.batch)
    segment = SamSegmenter(network, gsd_range=(0.1, 10.0))
    ours, busy = clock.each(lambda: segment(images, [asked] * len(images)))
    with network.running():
        alone, _ = clock.each(lambda: network.encode(images))
    predictor = SamPredictor(exactly)
    predictor.transform.target_length = given.side
    labels = torch.ones(points.shape[:2], device=given.device)

    def predict() -> None:
        for image in images:
            predictor.set_image(image)
            predictor.predict_torch(points.to(given.device), labels, multimask_output=True)[0].cpu()

    with torch.inference_mode():
        theirs, _ = clock.each(predict)
    return {
        "tiles/s": given.batch / ours,
        "encoder alone over all": alone / ours,
        "busy": busy,
        "SamPredictor, fp32, tiles/s": given.batch / theirs,
        "times as fast": theirs / ours,
    } | _fitting(sam, asked, given)


def _fitting(sam: Sam, asked: Prompts, given: Measure) -> Figures:
    # Result of --batch auto, and tiles per second with it.
    if not given.device.startswith("cuda"):
        return {}
    from geolabel.models.on_torch import TorchSam
    from geolabel.models.sam import SamSegmenter
    from geolabel.models.tuning import MAX_BATCH, fitting_batch

    where: dict[str, Any] = {"device": given.device, "precision": given.precision, "batch": MAX_BATCH}
    segment = SamSegmenter(TorchSam(sam, resize=False, **where), gsd_range=(0.1, 10.0))
    (image,) = _images(replace(given, batch=1))
    batch = fitting_batch(lambda count: partial(segment, [image] * count, [asked] * count), given.device)
    seconds, _ = _Clock(given.device, given.seconds).each(partial(segment, [image] * batch, [asked] * batch))
    return {"batch auto": batch, "tiles/s with it": batch / seconds}


def _trace(sam: Sam, given: Measure, path: Path) -> None:
    from torch.profiler import profile as profiler

    from geolabel.outputs import replacing

    with profiler() as traced:
        _stages(sam, replace(given, seconds=1e-9), _Clock("cpu", 1e-9))
    with replacing(path, overwrite=False) as part:
        traced.export_chrome_trace(str(part))
