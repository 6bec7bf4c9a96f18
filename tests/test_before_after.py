"""The comparison of two checkouts: its interval, its verdicts, and the package that a script is run on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import before_after  # noqa: E402
from before_after import Benchmark, Row, import_root, interval, run  # noqa: E402


def test_of_nine_pairs_the_interval_leaves_one_out_on_each_side():
    assert interval([9, 1, 5, 2, 8, 3, 7, 4, 6]) == (2, 8)
    assert interval([3, 1, 2]) == (1, 3)  # too few for any to be left out


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "passes"), (1.03, "passes"), (1.2, "slower")])
def test_a_figure_is_judged_by_its_interval(ratio: float, verdict: str):
    assert Row("extract", "CPU s", [ratio] * 9, [1.0] * 9).verdict(1.03) == verdict
    mixed = [0.9] * 4 + [1.2] * 5
    assert Row("extract", "CPU s", mixed, [1.0] * 9).verdict(1.03) == "undecided"


def test_figures_are_read_from_what_a_script_prints(tmp_path: Path):
    script = tmp_path / "tests/benchmarks/one.py"
    script.parent.mkdir(parents=True)
    script.write_text("import sys; print('warm 9.0 s'); print('took 2.5 s'); sys.exit(len(sys.argv) - 1)")
    found = Benchmark("one.py", patterns={"CPU s": r"([\d.]+) s"})
    assert run(found, tmp_path, tmp_path) == {"CPU s": 2.5}
    assert run(Benchmark("one.py"), tmp_path, tmp_path)[before_after.PROCESS] > 0
    with pytest.raises(RuntimeError, match="does not print ms"):
        run(Benchmark("one.py", patterns={"ms": r"([\d.]+) ms"}), tmp_path, tmp_path)
    with pytest.raises(RuntimeError, match="ended with 1"):
        run(Benchmark("one.py", "argument"), tmp_path, tmp_path)


def test_a_script_runs_on_the_package_of_its_own_checkout(tmp_path: Path):
    other = tmp_path / "other"
    for name, seconds in (("geolabel", 2), ("cli", 3), ("tests/benchmarks", 0)):
        (other / name).mkdir(parents=True)
        (other / name / "__init__.py").write_text(f"SECONDS = {seconds}\n")
    code = "import geolabel, geolabel.cli; print(geolabel.SECONDS * geolabel.cli.SECONDS, 's')"
    (other / "tests/benchmarks/one.py").write_text(code)
    root = import_root(other, tmp_path / "root")
    assert run(Benchmark("one.py", patterns={"CPU s": r"(\d+) s"}), other, root) == {"CPU s": 6}


def test_every_benchmark_names_a_script():
    assert all((BENCHMARKS / one.script).is_file() for one in before_after.BENCHMARKS.values())
