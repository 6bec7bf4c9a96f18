"""What a run says at its end, and what is shown while it works."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from typing import Any

import click
import pytest

from geolabel.cli.options import Session
from geolabel.cli.summary import of_estimate, of_extraction, of_polygons, of_scores, of_segments
from geolabel.cli.terminal import Bars, Lines, announce, duration, extent, loading, progress_bar, readable
from geolabel.engine.tasks import Weighed
from geolabel.errors import OptionError

FIGURES: dict[str, Any] = {
    "landslides": 26,
    "area_m2": 31_600.4,
    "mean_confidence": 0.612,
    "candidates": 3,
    "prompts": 40,
    "masks": 38,
    "tiles": 36,
    "tiles_without_data": 0,
    "tiles_failed": 0,
    "gaps": 0,
    "tasks": 80,
    "tasks_kept": 0,
    "seconds": {"localize": 6.2, "segment": 8.8},
    "pixels_per_second": 279_620,
    "area_km2": 1.049,
    "seconds_per_km2": 14.3,
    "peak_mb": {"host.example:4711": 1134},
}

EMPTY = FIGURES | {"landslides": 0, "area_m2": 0.0, "mean_confidence": None, "candidates": 0}


def test_a_summary_speaks_in_the_units_of_a_person() -> None:
    assert of_extraction("slides.gpkg", FIGURES, dense=False) == {
        "landslides": "26, 3.16 ha of 105 ha",
        "confidence": "0.61 on average, of 0 to 1",
        "candidates": "3, less likely: in the layer candidates",
        "time": "15 s, 14 s per km2",
        "memory": "1.1 GB",
        "output": "slides.gpkg",
        "next": "open slides.gpkg in QGIS, and set status to accepted or rejected as you look",
    }


@pytest.mark.parametrize("suffix", ["gpkg", "zip", "kmz", "parquet", "geojson", "fgb", "shp"])
def test_candidates_are_named_where_the_format_holds_them(suffix: str) -> None:
    where = "in the layer candidates" if suffix in ("gpkg", "zip", "kmz") else "not in this format"
    assert of_extraction(f"slides.{suffix}", FIGURES, dense=False)["candidates"] == f"3, less likely: {where}"


@pytest.mark.parametrize(
    "rows",
    [
        of_extraction("slides.gpkg", FIGURES, dense=False),
        of_extraction("slides.gpkg", EMPTY, dense=False),
        of_scores("scores.tif", FIGURES),
        of_segments("segments.gpkg", FIGURES | {"segments": 7}),
    ],
)
def test_a_summary_names_no_host_and_shows_no_brackets_of_python(rows: dict[str, str]) -> None:
    assert not re.search(r"[{}\[\]]|host\.example", " ".join(rows.values()))


def test_gaps_and_tiles_without_data_are_told_and_so_is_what_was_kept() -> None:
    rows = of_extraction(
        "a.gpkg", FIGURES | {"gaps": 2, "tiles_without_data": 4, "tasks_kept": 60, "seconds_per_km2": None}, dense=False
    )
    assert rows["gaps"].startswith("2: parts of the scene")
    assert rows["no data"] == "4 of 36 tiles"
    assert rows["time"] == "15 s; 60 of 80 tasks are from the earlier run"


@pytest.mark.parametrize(
    ("found", "whole", "said"),
    [
        (16_244, 0.262, "3, 1.62 ha of 26.2 ha"),
        (6_500_000, 105, "3, 6.5 km2 of 105 km2"),
        (52_000, 105, "3, 0.052 km2 of 105 km2"),
        (5_200, 105, "3, 0.52 ha of 105 km2"),
        (400, 0.262, "3, 0.04 ha of 26.2 ha"),
        (40, 0.262, "3, 40 m2 of 26.2 ha"),
        (400, 0.0009, "3, 400 m2 of 900 m2"),
    ],
)
def test_a_part_is_said_in_the_unit_of_the_whole_unless_it_is_tiny(found: float, whole: float, said: str) -> None:
    assert (
        of_extraction("a.gpkg", FIGURES | {"landslides": 3, "area_m2": found, "area_km2": whole}, dense=False)[
            "landslides"
        ]
        == said
    )


def test_a_raster_without_landslides_says_what_to_try_and_nothing_of_a_review() -> None:
    rows = of_polygons("a.gpkg", {"landslides": 0, "area_m2": 0.0})
    assert rows["landslides"] == "none"
    assert "--threshold" in rows["try"]
    assert "next" not in rows
    assert of_polygons("a.gpkg", {"landslides": 2, "area_m2": 5e4})["landslides"] == "2, 5 ha"


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((0, 0, 0), "no reviews and no edits"),
        ((1, 0, 2), "1 kept, 0 rejected; 2 found on that ground are left out"),
    ],
)
def test_a_review_without_reviewed_polygons_says_so(counts: tuple[int, int, int], said: str) -> None:
    figures = FIGURES | dict(zip(("kept", "rejected", "left_out"), counts, strict=True))
    assert of_extraction("a.gpkg", figures, dense=False)["review"] == said


def test_several_processes_share_the_memory() -> None:
    rows = of_scores("a.tif", FIGURES | {"peak_mb": {"a:1": 512, "b:2": 1024}})
    assert rows["memory"] == "1.0 GB in the largest of 2 processes"


@pytest.mark.parametrize(
    ("figures", "dense", "says"),
    [
        ({"prompts": 0}, False, "--gate 0.2"),
        ({"prompts": 4}, False, "--score-threshold 0.3"),
        ({"prompts": 0}, True, "--score-threshold 0.3"),
        ({"candidates": 5}, False, "--min-confidence 0 makes landslides of the 5 candidates"),
        ({"candidates": 5, "reasons": {"slope": 2, "confidence": 3}}, False, "makes landslides of the 3 candidates"),
        ({"candidates": 5, "reasons": {"slope": 5}}, False, "the column reason of the layer candidates explains why"),
        ({"tiles_without_data": 36}, False, "no tile has valid pixels"),
    ],
)
def test_where_nothing_was_found_it_says_what_to_try(figures: dict[str, Any], dense: bool, says: str) -> None:
    rows = of_extraction("a.gpkg", EMPTY | figures, dense=dense)
    assert rows["landslides"] == "none in 105 ha"
    assert says in rows["try"]
    assert "try" not in of_extraction("a.gpkg", FIGURES, dense=dense)


def test_an_estimate_gives_the_time_for_a_square_kilometre() -> None:
    figures = {
        "scene": "a.tif",
        "working_grid": "2048 x 2048 px at 0.5 m",
        "device": "cpu",
        "area_km2": 1.049,
        "localizer_tiles": 36,
        "memory_mb": 900,
        "seconds_without_landslides": 4.2,
        "seconds_with_landslides_everywhere": 8.4,
        "seconds_per_km2_without_landslides": 4.0,
        "seconds_per_km2_with_landslides_everywhere": 8.0,
    }
    rows = of_estimate(figures)
    assert rows["time per km2"] == "4 s to 8 s"
    assert rows["time"].startswith("4.2 s without a landslide, 8.4 s with landslides everywhere")
    assert rows["area"] == "105 ha"


def test_numbers_have_the_unit_of_their_size() -> None:
    assert [duration(s) for s in (0.42, 3.14, 59.6, 240, 7200)] == ["0.42 s", "3.1 s", "60 s", "4 minutes", "2.0 hours"]
    assert [extent(a) for a in (0, 940, 1000, 26e4, 9.3e6, 4.2e7, 1.234e9)] == [
        "0 m2",
        "940 m2",
        "0.1 ha",
        "26 ha",
        "930 ha",
        "42 km2",
        "1,234 km2",
    ]


def test_values_are_printed_as_a_person_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        readable({"AP": 0.25, "kept": True, "no": None, "bands": [3, 2, 1]})
        == "AP 0.25, kept yes, no none, bands 3, 2, 1"
    )
    announce({"try": "this\nthat", "a_b": 1}, as_json=False)
    assert capsys.readouterr().out == "try  this\n     that\na b  1\n"


# While it works


class Terminal(io.StringIO):
    """A stderr that a person looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def context() -> click.Context:
    return click.Context(click.Command("extract"), obj=Session())


def test_a_pass_that_ended_leaves_one_line_and_is_not_drawn_again(
    context: click.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(context) as progress:
        assert isinstance(progress, Bars)
        for number in range(40):  # more passes than a terminal has lines
            assert list(progress.track(iter("ab"), f"localize {number}/40", 2)) == ["a", "b"]
        assert list(progress.track(iter(()), "segment 1/1", 0)) == []
        assert progress.display.tasks == []
    ended = re.findall(r"((?:localize|segment) \d+/\d+): \d of \d tasks in", shown.getvalue())
    assert ended == [*(f"localize {number}/40" for number in range(40)), "segment 1/1"]


def test_without_a_terminal_progress_is_lines(context: click.Context, capsys: pytest.CaptureFixture[str]) -> None:
    with loading(context), progress_bar(context) as progress:
        assert isinstance(progress, Lines)
        assert list(progress.track(iter("abc"), "merge", 3)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["preparing", "merge: 3 tasks"]
    assert re.fullmatch(r"merge: 3 of 3 tasks in \d+\.\d s", lines[2])
    assert len(lines) == 3
    with progress_bar(context) as progress:
        assert list(progress.track(iter("a"), "prompt", 1)) == ["a"]
    first, last = capsys.readouterr().err.splitlines()
    assert first == "prompt: 1 task"
    assert last.startswith("prompt: 1 of 1 task in ")


def test_the_time_left_follows_the_work_and_not_the_number_of_tasks(
    context: click.Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress_bar(context) as progress:
        assert list(progress.track(Weighed(iter("abc"), [1, 1, 6]), "label", 3)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:3] == [
        "label: 1 of 3 tasks, about 2 minutes left",  # 7 of 8 parts, after 20 s for one
        "label: 2 of 3 tasks, about 2 minutes left",  # 6 of 8, after 40 s for two
    ]


def test_a_bar_follows_the_work(context: click.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(context) as progress:
        assert isinstance(progress, Bars)
        shares = []
        for _ in progress.track(Weighed(iter("abc"), [1, 1, 6]), "label", 3):
            (task,) = progress.display.tasks
            shares.append((task.completed, task.total, task.fields["done"], task.fields["count"]))
    assert shares == [(0, 8, 0, 3), (1, 8, 1, 3), (2, 8, 2, 3)]


def test_a_program_reads_progress_as_json(
    context: click.Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOLABEL_PROGRESS", "json")
    monkeypatch.setattr("geolabel.cli.terminal.RECORD_EVERY", 0.0)
    with progress_bar(context, "preparing") as progress:
        assert list(progress.track(iter("abc"), "merge", 3)) == ["a", "b", "c"]
    records = [tuple(json.loads(line).values()) for line in capsys.readouterr().err.splitlines()]
    assert records == [("preparing", 0, None), *(("merge", done, 3) for done in range(4))]
    monkeypatch.setenv("GEOLABEL_PROGRESS", "bars")
    with pytest.raises(OptionError, match="GEOLABEL_PROGRESS=bars: progress for programs is json"), loading(context):
        pass


def test_quiet_shows_neither_loading_nor_progress(context: click.Context, capsys: pytest.CaptureFixture[str]) -> None:
    context.obj.quiet = True
    with loading(context), progress_bar(context) as progress:
        assert list(progress.track(iter("a"), "merge", 1)) == ["a"]
    assert capsys.readouterr().err == ""


def test_on_a_terminal_loading_goes_when_it_is_done(context: click.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with loading(context):
        time.sleep(0.2)  # it is drawn twelve times a second
    before, _, after = shown.getvalue().rpartition("preparing")
    assert before
    assert "\x1b[2K" in after, "the line is erased"
