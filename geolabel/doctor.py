"""Checks of the machine and the environment, with advice."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil

import geolabel
from geolabel.devices import count_cores, count_gpus
from geolabel.errors import GeolabelError
from geolabel.io.downloads import cache_folder, offline
from geolabel.models import registry
from geolabel.models.defaults import BUNDLED
from geolabel.models.hub import cache_of
from geolabel.models.measured_accuracy import of_bundled
from geolabel.qgis.install import installed_plugins

log = logging.getLogger(__name__)

DRIVERS, VECTOR_DRIVERS = ("GTiff", "COG", "VRT"), ("GPKG", "FlatGeobuf")
"""GDAL formats that every run writes."""

LON_LAT, UTM = "EPSG:4326", "EPSG:32648"

MERIDIAN = 105.0, 27.0, 500_000.0
"""Longitude and latitude of a point on the central meridian of `UTM`, and its easting in metres."""

NEAR_M = 0.01
"""Tolerance in metres between two versions of PROJ."""

EXTRAS = {"train": "lightning", "sam": "transformers", "diffusion": "diffusers"}
"""Extras of the package, each with a module that only it installs."""

MIN_MEMORY, MIN_DISK = 4 << 30, 2 << 30
"""Free bytes needed by a run of a typical scene."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    """Name of the check, such as ``PROJ``."""
    ok: bool
    """Whether it passed."""
    found: str
    """What was found."""
    advice: str = ""
    """What to do if it failed."""


def diagnose() -> list[Finding]:
    """Check this machine and environment.

    Libraries are exercised, not only asked for their version: each PROJ transforms a coordinate, and each engine loads
    the bundled networks.

    Returns
    -------
    The findings, in a fixed order. A check that fails with an unexpected error is a finding too.
    """
    return [finding for name, check in _CHECKS.items() for finding in _tried(name, check)]


def _tried(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        for finding in check():
            found.append(finding)  # noqa: PERF402 - findings before an error are kept
    except Exception as error:  # a broken library may raise anything, which is what this looks for
        log.debug("check of %s", name, exc_info=True)
        text = str(error).splitlines()[0] if str(error) else "no message"
        advice = "install geolabel again, into a new environment"
        found.append(Finding(name, False, f"{type(error).__name__}: {text}", advice))
    return found


# --- Python and the command ------------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    bits = "64" if sys.maxsize > 2**32 else "32"
    found = f"{platform.python_version()}, {bits} bits, {platform.system()} {platform.machine()}, {sys.executable}"
    ok = bits == "64"
    yield Finding("Python", ok, found, "" if ok else "install a 64-bit Python: PyTorch needs it")


def _package() -> Iterator[Finding]:
    home = Path(geolabel.__file__).parent
    installed = metadata.version("geolabel")
    same = installed == geolabel.__version__
    advice = "" if same else f"pip says {installed}: install geolabel again"
    yield Finding("geolabel", same, f"{geolabel.__version__}, {home}", advice)
    command = shutil.which("geolabel")
    if command is None:
        yield Finding("command", True, "not on the PATH: activate the environment, or call it by its absolute path")
    else:
        scripts = {Path(sys.executable).parent, Path(sys.prefix) / "bin", Path(sys.prefix) / "Scripts"}
        own = any(_same(Path(command).parent, folder) for folder in scripts) or _leads_into(Path(command), scripts)
        advice = "" if own else f"this is {sys.prefix}: activate the intended environment, or call it by its path"
        yield Finding("command", own, command, advice)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _leads_into(path: Path, folders: set[Path]) -> bool:
    """Whether a symbolic link leads to a file in one of the folders."""
    return any(_same(path.resolve().parent, folder) for folder in folders)


def _extras() -> Iterator[Finding]:
    here = [name for name, module in EXTRAS.items() if find_spec(module)]
    missing = [name for name in EXTRAS if name not in here]
    found = ", ".join([*here, *(f"{name} not installed" for name in missing)])
    yield Finding("extras", True, found)


# --- GDAL and PROJ ---------------------------------------------------------------------------------------------------


def _gdal() -> Iterator[Finding]:
    import pyogrio
    import rasterio

    other = ".".join(map(str, pyogrio.__gdal_version__))
    found = f"{rasterio.__gdal_version__} in rasterio {rasterio.__version__}, {other} in pyogrio {pyogrio.__version__}"
    with rasterio.Env() as environment:
        missing = [name for name in DRIVERS if name not in environment.drivers()]
    missing += [name for name in VECTOR_DRIVERS if "w" not in pyogrio.list_drivers().get(name, "")]
    advice = f"GDAL lacks {', '.join(missing)}: install rasterio and pyogrio again" if missing else ""
    yield Finding("GDAL", not missing, found, advice)
    yield from _variables(("GDAL_DATA", "GDAL_DRIVER_PATH"))


def _proj() -> Iterator[Finding]:
    import pyproj
    import rasterio

    with_pyproj = _northing_of_pyproj()
    yield Finding("PROJ", True, f"{pyproj.proj_version_str} in pyproj, {pyproj.datadir.get_data_dir()}")
    version = f"{rasterio.__proj_version__} in rasterio"
    try:
        with_rasterio = _northing_of_rasterio()
    except (rasterio.errors.RasterioError, ValueError) as error:
        given = [name for name in ("PROJ_DATA", "PROJ_LIB") if os.environ.get(name)]
        way = f"unset {' and '.join(given)}" if given else "install rasterio again"
        text = str(error).splitlines()[0]
        yield Finding("PROJ", False, f"{version}: {text}", f"it reads another installation's database: {way}")
    else:
        same = abs(with_pyproj - with_rasterio) <= NEAR_M
        advice = "" if same else "the two disagree on coordinates: install both again, into a new environment"
        yield Finding("PROJ", same, version, advice)
    yield from _variables(("PROJ_DATA", "PROJ_LIB"))


def _northing_of_pyproj() -> float:
    import pyproj

    lon, lat, easting = MERIDIAN
    x, y = pyproj.Transformer.from_crs(LON_LAT, UTM, always_xy=True).transform(lon, lat)
    return _checked(x, y, easting)


def _northing_of_rasterio() -> float:
    from rasterio.crs import CRS
    from rasterio.warp import transform

    lon, lat, easting = MERIDIAN
    xs, ys = transform(CRS.from_string(LON_LAT), CRS.from_string(UTM), [lon], [lat])
    return _checked(xs[0], ys[0], easting)


def _checked(x: float, y: float, easting: float) -> float:
    if abs(x - easting) > NEAR_M:
        raise ValueError(f"{LON_LAT} to {UTM} gives an easting of {x:.2f} m instead of {easting:.2f} m")
    return float(y)


def _variables(names: tuple[str, ...]) -> Iterator[Finding]:
    """Variables that lead to files of another installation, if set."""
    for name in names:
        value = os.environ.get(name)
        if value:
            there = any(Path(part).exists() for part in value.split(os.pathsep))
            advice = "" if there else f"it does not exist: unset {name}"
            note = ": files of another installation are used" if there else ""
            yield Finding(name, there, f"{value}{note}", advice)


# --- networks --------------------------------------------------------------------------------------------------------


def _torch() -> Iterator[Finding]:
    import torch

    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    yield Finding("PyTorch", True, f"{torch.__version__}, {built}, {torch.get_num_threads()} threads")
    cards = count_gpus()
    for number in range(cards):
        card = torch.cuda.get_device_properties(number)
        size = f"{card.total_memory / 2**30:.0f} GiB"
        works = torch.ones(4, device=f"cuda:{number}").sum().item() == 4
        advice = "" if works else "its sums are wrong: update the driver of the GPU, or give --device cpu"
        yield Finding(f"cuda:{number}", works, f"{card.name}, {size}", advice)
    if torch.version.cuda and not cards:
        yield Finding("GPU", True, "none that PyTorch sees: networks run on the CPU")
    if torch.backends.mps.is_available():
        yield Finding("mps", True, "Apple GPU; used only with --device mps")


def _onnx() -> Iterator[Finding]:
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    ok = "CPUExecutionProvider" in providers
    found = f"{onnxruntime.__version__}, {', '.join(providers)}"
    yield Finding("ONNX Runtime", ok, found, "" if ok else "install onnxruntime again")


def _networks() -> Iterator[Finding]:
    expected = of_bundled().networks
    for network in registry.lookup(BUNDLED):
        name = f"bundled {network.role}"
        try:
            digest = registry.verify(network)
        except (GeolabelError, OSError) as error:
            yield Finding(name, False, str(error), "install geolabel again")
            continue
        same = digest == expected.get(network.role)
        advice = "" if same else "it is not the released file: install geolabel again, unless you replaced it"
        yield Finding(name, same, f"SHA-256 {digest[:16]}..., loaded by PyTorch and by ONNX Runtime", advice)


# --- room ------------------------------------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    free = psutil.virtual_memory().available
    enough = free >= MIN_MEMORY
    advice = "" if enough else "close other programs, or give --tile-size 256 and --batch 1"
    found = f"{free / 2**30:.1f} GiB free of {psutil.virtual_memory().total / 2**30:.1f} GiB, {count_cores()} cores"
    yield Finding("memory", enough, found, advice)


def _folders() -> Iterator[Finding]:
    cache = cache_folder()
    yield _folder("cache", cache, "set GEOLABEL_CACHE to another folder")
    yield _folder("cache of the hub", cache_of("OWNER/NAME").parent, "set HF_HOME to another folder")
    yield _folder("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to another folder")
    yield _folder("this folder", Path.cwd(), "write outputs elsewhere")
    if offline():
        yield Finding("downloads", True, "forbidden by GEOLABEL_OFFLINE")


def _folder(name: str, path: Path, advice: str) -> Finding:
    """Whether a folder, or the one it would be created in, is writable and has enough space."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        return Finding(name, False, f"{path} cannot be written to", advice)
    free = shutil.disk_usage(there).free
    held = f", holds {_size(path) / 1e6:.0f} MB" if path == there and "cache" in name else ""
    missing = "" if path == there else ", not created yet"
    found = f"{path}{missing}{held}, {free / 2**30:.0f} GiB free"
    return Finding(name, free >= MIN_DISK, found, f"make room, or {advice}" if free < MIN_DISK else "")


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, each counted once, without links."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if not path.is_symlink():
                total += path.stat().st_size
    return total


def _qgis() -> Iterator[Finding]:
    for folder, version in installed_plugins():
        same = version == geolabel.__version__
        advice = "" if same else "run geolabel qgis install"
        yield Finding("QGIS plugin", same, f"{version or 'of no version'}, {folder}", advice)


_CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "Python": _python,
    "geolabel": _package,
    "extras": _extras,
    "GDAL": _gdal,
    "PROJ": _proj,
    "PyTorch": _torch,
    "ONNX Runtime": _onnx,
    "bundled networks": _networks,
    "memory": _machine,
    "folders": _folders,
    "QGIS plugin": _qgis,
}
"""Checks by the name of their subject."""
