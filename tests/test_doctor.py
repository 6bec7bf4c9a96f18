"""What `geolabel doctor` finds, and what shells complete."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import geolabel
from geolabel import doctor
from geolabel.cli.main import run as command
from geolabel.doctor import Finding
from geolabel.errors import WeightsError
from geolabel.qgis import install


def of(check, name: str) -> Finding:
    (found,) = [finding for finding in check() if finding.name == name]
    return found


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a cache, a profile of QGIS, and misleading variables."""
    for name in ("PROJ_DATA", "PROJ_LIB", "GDAL_DATA", "GDAL_DRIVER_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GEOLABEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(install.CUSTOM, str(tmp_path / "qgis"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "MIN_MEMORY", 0)
    monkeypatch.setattr(doctor, "MIN_DISK", 0)
    return tmp_path


def test_all_is_well_where_the_tests_run(nowhere: Path, capsys: pytest.CaptureFixture[str]):
    assert command(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    found = {one["name"]: one for one in said["findings"]}
    assert {"GDAL", "PROJ", "PyTorch", "ONNX Runtime", "bundled localizer", "bundled segmenter", "cache"} <= {*found}
    assert found["cache"]["found"].startswith(f"{nowhere / 'cache'}, not created yet, ")
    assert not [one for one in said["findings"] if one["advice"]]


def test_what_is_to_be_done_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    found = [Finding("GDAL", True, "3.10"), Finding("cache", False, "/x is full", "make room")]
    monkeypatch.setattr(doctor, "diagnose", lambda: found)
    assert command(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok    GDAL   3.10",
        "warn  cache  /x is full",
        "             -> make room",
    ]


def test_a_database_of_another_proj_is_found(nowhere: Path):
    script = "from geolabel.doctor import _proj\nfor one in _proj(): print([one.name, one.ok, one.found, one.advice])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PROJ_DATA": str(nowhere)},
    )
    (warned,) = [line for line in done.stdout.splitlines() if "False" in line]
    assert "proj.db" in warned
    assert "it reads another installation's database: unset PROJ_DATA" in warned


def test_versions_of_proj_that_disagree_are_found(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_northing_of_rasterio", lambda: 0.0)
    assert [one.advice for one in doctor._proj()][-1].startswith("the two disagree on coordinates")
    with pytest.raises(ValueError, match=r"gives an easting of 400000\.00 m instead of 500000\.00 m"):
        doctor._checked(4e5, 0, 5e5)


def test_a_variable_that_leads_nowhere_is_found(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GDAL_DATA", str(nowhere / "missing"))
    assert of(doctor._gdal, "GDAL_DATA").advice == "it does not exist: unset GDAL_DATA"
    monkeypatch.setenv("GDAL_DATA", str(nowhere))
    assert of(doctor._gdal, "GDAL_DATA").ok


def test_formats_that_gdal_lacks_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "VECTOR_DRIVERS", ("GPKG", "Nonesuch"))
    assert of(doctor._gdal, "GDAL").advice == "GDAL lacks Nonesuch: install rasterio and pyogrio again"


def test_networks_that_are_damaged_or_others_are_found(monkeypatch: pytest.MonkeyPatch):
    def damaged(network):
        if network.role == "segmenter":
            raise WeightsError("segmenter.safetensors is damaged")
        return "0" * 64

    monkeypatch.setattr(doctor.registry, "verify", damaged)
    localizer, segmenter = doctor._networks()
    assert localizer.advice.startswith("it is not the released file")
    assert (segmenter.found, segmenter.advice) == ("segmenter.safetensors is damaged", "install geolabel again")


def test_a_library_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    def broken():
        yield Finding("first", True, "fine")
        raise OSError("libcudart.so.13: cannot open shared object file\nmore")

    monkeypatch.setattr(doctor, "_CHECKS", {"PyTorch": broken})
    first, second = doctor.diagnose()
    assert first.ok
    assert second == Finding(
        "PyTorch",
        False,
        "OSError: libcudart.so.13: cannot open shared object file",
        "install geolabel again, into a new environment",
    )


def test_folders_without_room_or_that_are_files_are_found(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    (nowhere / "file").touch()
    monkeypatch.setenv("GEOLABEL_CACHE", str(nowhere / "file" / "cache"))
    found = of(doctor._folders, "cache")
    assert found.found.endswith("cannot be written to")
    assert found.advice == "set GEOLABEL_CACHE to another folder"
    (nowhere / "cache").mkdir()
    (nowhere / "cache" / "a").write_bytes(b"0" * 3_000_000)
    monkeypatch.setenv("GEOLABEL_CACHE", str(nowhere / "cache"))
    monkeypatch.setattr(doctor, "MIN_DISK", 1 << 62)
    found = of(doctor._folders, "cache")
    assert ", holds 3 MB, " in found.found
    assert found.advice == "make room, or set GEOLABEL_CACHE to another folder"


@pytest.mark.skipif(sys.platform == "win32", reason="scripts are no programs there")
def test_a_command_of_another_environment_is_found(nowhere: Path):
    other = nowhere / "geolabel"
    other.write_text("#!/bin/sh\n")
    other.chmod(other.stat().st_mode | stat.S_IXUSR)
    assert "activate the intended environment" in of(doctor._package, "command").advice
    other.unlink()
    own = Path(sys.executable).with_name("geolabel")
    if own.exists():
        other.symlink_to(own)  # as tools make it for a command
        assert of(doctor._package, "command").ok


def test_an_older_plugin_in_qgis_is_found(nowhere: Path):
    (nowhere / "qgis" / "profiles" / "default").mkdir(parents=True)
    (folder,) = geolabel.install_plugin()["folders"]
    assert of(doctor._qgis, "QGIS plugin").ok
    text = (Path(folder) / "metadata.txt").read_text()
    (Path(folder) / "metadata.txt").write_text(text.replace(f"version={geolabel.__version__}", "version=0.1.0"))
    found = of(doctor._qgis, "QGIS plugin")
    assert (found.advice, found.found.split(",")[0]) == ("run geolabel qgis install", "0.1.0")


# --- completion ------------------------------------------------------------------------------------------------------


def completed(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("_GEOLABEL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"geolabel {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
    with pytest.raises(SystemExit):
        command([])
    return capsys.readouterr().out.split()


def test_commands_options_values_and_files_are_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert completed("ext", monkeypatch, capsys) == ["plain,extract"]
    assert completed("qgis un", monkeypatch, capsys) == ["plain,uninstall"]
    assert completed("extract --min-conf", monkeypatch, capsys) == ["plain,--min-confidence"]
    assert completed("extract --method al", monkeypatch, capsys) == ["plain,alps"]
    assert completed("extract sce", monkeypatch, capsys) == ["file,sce"]
    assert completed("extract --run-dir ru", monkeypatch, capsys) == ["file,ru"]
    assert completed("extract --gsd 1", monkeypatch, capsys) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_its_shell(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert f"_GEOLABEL_COMPLETE={shell}_complete" in text
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)
