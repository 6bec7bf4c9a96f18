"""The benchmarks of this checkout against those of another one, in turn: is anything slower than before?

Usage: python tests/benchmarks/before_after.py OTHER [--only NAME ...] [--pairs 9] [--limit 1.03] [--out FILE.json]

OTHER is a checkout of another version, such as ``git worktree add ../before COMMIT`` makes. Each of `BENCHMARKS` is run
by the script of its own checkout, on the package of that checkout, with the interpreter and the dependencies of this
one. Runs come in pairs, the order of the two changing from pair to pair; one pair before them is not counted.

Figures are the CPU seconds that a script prints of the code that it measures, or those of the whole process where it
prints none to enough digits. The ratio is this checkout over the other: its median over the pairs, and the interval
between two order statistics that holds the true median with a probability of 95 % or more, whatever the distribution
(of nine pairs from the second smallest to the second largest, 96 %). A figure passes if that interval reaches
`--limit` or less, and fails if the whole interval is above it; an interval on both sides needs more pairs.

The exit status is 1 if a figure fails, or a benchmark ends with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from scipy.stats import binom

HERE = Path(__file__).resolve().parents[2]

CONFIDENCE = 0.95

PROCESS = "CPU s of the process"
"""Figure of scripts that print no time to enough digits."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Benchmark:
    """A script of tests/benchmarks and the times that it prints."""

    script: str
    arguments: str = ""
    patterns: dict[str, str] = field(default_factory=dict)
    """By figure: an expression whose group is the seconds; the last match counts. Empty for those of the process."""


BENCHMARKS = {
    "extract": Benchmark("extract.py", "overhead --size 1536", {"CPU s/Mpx": r"median ([\d.]+) CPU s/Mpx"}),
    "tiles": Benchmark("scaling.py", "tiles --tiles 2500", {"CPU ms a tile": r"([\d.]+) ms CPU a tile"}),
    "polygonize": Benchmark(
        "polygonize.py",
        "--size 4096 --objects 1500 --repeats 3",
        {"CPU s": r'"geolabel_seconds": ([\d.]+)', "CPU s, cleaned": r'"cleaned_with_attributes_seconds": ([\d.]+)'},
    ),
    "engines": Benchmark(
        "engines.py",
        "--repeats 5",
        {f"CPU s, {part}": rf"{part} +torch ([\d.]+) s" for part in ("localizer", "encoder", "decoder")},
    ),
    "seams": Benchmark("seams.py", "--size 768 --points 4 --overlaps 128"),
    "segment": Benchmark("segment.py", "--size 1024 --points 8 --tiles 1"),
    "instances": Benchmark("instances.py", "--scenes 1 --size 768"),
    "cost_model": Benchmark("cost_model.py", "check --calibrate 768 --size 1536"),
}
"""Benchmarks whose CPU seconds repeat, and that need no data and no second core."""


def import_root(checkout: Path, folder: Path) -> Path:
    """Make a folder from which the package of a checkout is imported, and return it."""
    package = folder / "geolabel"
    package.mkdir(parents=True)
    for entry in (checkout / "geolabel").iterdir():
        (package / entry.name).symlink_to(entry)
    (package / "cli").symlink_to(checkout / "cli")
    return folder


def run(benchmark: Benchmark, checkout: Path, root: Path) -> Figures:
    """Run a benchmark of one checkout once.

    Raises
    ------
    RuntimeError
        If it ends with an error, or does not print its figures.
    """
    script = checkout / "tests" / "benchmarks" / benchmark.script
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), *benchmark.arguments.split()],
            env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            cwd=root,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{script} ended with {process.returncode}:\n{text[-2000:]}")
    if not benchmark.patterns:
        return {PROCESS: used.ru_utime + used.ru_stime}
    found = {name: re.findall(pattern, text) for name, pattern in benchmark.patterns.items()}
    if missing := [name for name, values in found.items() if not values]:
        raise RuntimeError(f"{script} does not print {missing[0]}:\n{text[-2000:]}")
    return {name: float(values[-1]) for name, values in found.items()}


def interval(ratios: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Order statistics that hold the true median of ratios; the smallest and the largest where there are too few.

    Source: the sign test turned round; `binom.ppf` counts the values that may be left out on each side.
    """
    ranked = sorted(ratios)
    outside = max(0, int(binom.ppf((1 - confidence) / 2, len(ranked), 0.5)) - 1)
    return ranked[outside], ranked[-1 - outside]


@dataclass(frozen=True)
class Row:
    """Times of one figure, pair by pair."""

    benchmark: str
    figure: str
    this: list[float]
    other: list[float]

    @property
    def ratios(self) -> list[float]:
        """This checkout over the other, of each pair."""
        return [one / two for one, two in zip(self.this, self.other, strict=True)]

    def verdict(self, limit: float) -> str:
        """Whether the ratio is at most `limit`."""
        low, high = interval(self.ratios)
        return "passes" if high <= limit else "slower" if low > limit else "undecided"

    def markdown(self, limit: float) -> str:
        """One line of the table."""
        low, high = interval(self.ratios)
        cells = [self.benchmark, self.figure, f"{median(self.other):.4g}", f"{median(self.this):.4g}"]
        cells += [f"{median(self.ratios):.3f}", f"{low:.3f} to {high:.3f}", self.verdict(limit)]
        return f"| {' | '.join(cells)} |"


def compare(name: str, other: Path, pairs: int) -> list[Row]:
    """Run a benchmark of both checkouts in turn, after one pair that is not counted."""
    benchmark = BENCHMARKS[name]
    taken: dict[Path, list[Figures]] = {HERE: [], other: []}
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        roots = {checkout: import_root(checkout, Path(folder) / str(k)) for k, checkout in enumerate(taken)}
        for number in range(pairs + 1):
            for checkout in (HERE, other) if number % 2 else (other, HERE):
                found = run(benchmark, checkout, roots[checkout])
                if number:
                    taken[checkout].append(found)
            print(f"{name}: pair {number} of {pairs}", file=sys.stderr, flush=True)
    return [Row(name, key, *([one[key] for one in taken[of]] for of in (HERE, other))) for key in taken[HERE][0]]


def main() -> int:
    """Read the command line, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--limit", type=float, default=1.03)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows, failed = [], False
    print("| benchmark | figure | other | this | ratio | 95 % | |\n|---|---|---|---|---|---|---|", flush=True)
    for name in given.only:
        try:
            rows += (found := compare(name, given.other.resolve(), given.pairs))
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        print(*(row.markdown(given.limit) for row in found), sep="\n", flush=True)
        if given.out:
            kept = [vars(row) | {"ratios": row.ratios, "interval": interval(row.ratios)} for row in rows]
            given.out.write_text(json.dumps(kept, indent=1) + "\n")
    return int(failed or any(row.verdict(given.limit) == "slower" for row in rows))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
