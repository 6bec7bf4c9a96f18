"""PyTorch and ONNX Runtime on the same images, in turn, each on one thread: CPU seconds of a call, and what differs.

Usage: python tests/benchmarks/engines.py [--side 512] [--prompts 8] [--repeats 11]
                                           [--localizer FILE] [--segmenter FILE]

Medians over the repeats. The segmenter is asked about its whole window, with a box and a point for every prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geolabel.models import registry
from geolabel.models.checkpoint import load_localizer, load_own
from geolabel.models.on_onnx import OnnxMaps, OnnxSam
from geolabel.models.on_torch import TorchMaps, TorchSam
from geolabel.synthetic import synthesize

Calls = Sequence[tuple[str, Callable[[], Any]]]


def in_turn(calls: Calls, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each call."""
    taken: dict[str, list[float]] = {name: [] for name, _ in calls}
    for _ in range(repeats + 1):
        for name, call in calls:
            start = time.process_time()
            call()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def report(what: str, calls: Calls, repeats: int) -> None:
    """Print the times of two calls that answer the same, and the largest difference between their answers."""
    (torchs, onnx), difference = in_turn(calls, repeats).values(), 0.0
    for one, other in zip(*(call() for _, call in calls), strict=True):
        difference = max(difference, float(np.abs(np.asarray(one) - np.asarray(other)).max()))
    print(f"{what:<12} torch {torchs:.4f} s  onnx {onnx:.4f} s  ratio {torchs / onnx:.2f}  difference {difference:.1e}")


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--localizer", type=Path, default=registry.lookup("bundled", "localizer")[0].path)
    parser.add_argument("--segmenter", type=Path, default=registry.lookup("bundled", "segmenter")[0].path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    network, info = load_localizer(given.localizer)
    image = synthesize(given.side, seed=900_101).rgb
    pixels = np.moveaxis(image, 2, 0)[None].astype(np.float32) - np.reshape(info.mean, (1, 3, 1, 1)).astype(np.float32)
    pixels /= np.reshape(info.std, (1, 3, 1, 1)).astype(np.float32)
    maps = (TorchMaps(network), OnnxMaps(given.localizer))
    report(
        "localizer",
        [(name, lambda m=m: [m(pixels)]) for name, m in zip(("torch", "onnx"), maps, strict=True)],
        given.repeats,
    )
    sam: Any = load_own(given.segmenter, "segmenter")[0]
    networks: Any = (TorchSam(sam, resize=False, batch=1), OnnxSam(given.segmenter))
    side = networks[0].window
    view = synthesize(side, seed=900_102).rgb
    report("encoder", [(type(n).__name__, lambda n=n: [n.host(n.encode([view]))]) for n in networks], given.repeats)
    corners = np.sort(np.random.default_rng(0).integers(0, side, (given.prompts, 2, 2)), axis=1).astype(np.float32)
    points = corners.mean(axis=1, keepdims=True), np.ones((given.prompts, 1), np.int32)
    asked = points, corners.reshape(-1, 4)
    embedded = {id(n): n.encode([view])[0] for n in networks}
    report(
        "decoder",
        [
            (type(n).__name__, lambda n=n: [n.host(part) for part in n.decode(embedded[id(n)], *asked)])
            for n in networks
        ],
        given.repeats,
    )


if __name__ == "__main__":
    main()
