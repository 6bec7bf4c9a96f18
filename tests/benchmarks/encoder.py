"""The encoder of an official Segment Anything: segment-anything's own forward pass and `geolabel.models.nets.vit`.

Usage: python tests/benchmarks/encoder.py own|fused [--model vit_b] [--threads 1]

Random weights, one image, one pass. Each way is a process of its own, since peak memory is that of the process: what
it takes beyond the network is printed, with processor seconds, which a busy machine changes little.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from segment_anything import sam_model_registry

from geolabel.devices import keep_freed_memory
from geolabel.models.nets import vit


def peak_mb() -> float:
    """Maximum memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=["own", "fused"])
    parser.add_argument("--model", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    encoder = sam_model_registry[given.model]().image_encoder.eval().requires_grad_(False)
    frames = torch.randn(1, 3, encoder.img_size, encoder.img_size)
    before = peak_mb()
    with torch.inference_mode():
        start = time.process_time()
        found = encoder(frames) if given.way == "own" else vit.encode(encoder, frames)
        seconds = time.process_time() - start
    print(
        f"{given.way}: {seconds:.1f} s, {peak_mb() - before:.0f} MiB beyond the network, mean {found.abs().mean():.6f}"
    )


if __name__ == "__main__":
    main()
