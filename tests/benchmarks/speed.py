"""``geolabel bench speed`` where only torch, torchvision, segment-anything and NumPy are: one run for gpu.sh.

Usage: python tests/benchmarks/speed.py OUT [--models vit_b,vit_l,vit_h] [--side 1024] [--prompts 32] [--seconds 2]
       [--device auto] [--precision auto] [--batch 0] [--compile] [--trace]

Writes OUT/speed.json, OUT/speed.md and, with ``--trace``, OUT/trace.json, and prints the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from geolabel.evaluation.speed import Measure, bench_speed, table


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default="vit_b,vit_l,vit_h")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--compile", dest="compiled", action="store_true")
    parser.add_argument("--trace", action="store_true")
    given = vars(parser.parse_args())
    out, trace = given.pop("out"), given.pop("trace")
    out.mkdir(parents=True, exist_ok=True)
    asked = Measure(tuple(given.pop("models").split(",")), **given)
    found = bench_speed(asked, profile=out / "trace.json" if trace else None)
    (out / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "speed.md").write_text(table(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
