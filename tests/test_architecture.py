"""The rings of the design, read from the import statements: what may know of what."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ORDER = (
    "urls", "errors", "extras", "names", "parsing", "scratch", "outputs", "made", "folders", "types", "kinds", "units",
    "bands", "tiles", "scene", "resampling",
    "radiometry", "fills", "activation", "prompts", "masks", "mosaic", "labels", "chips", "agreement", "seams",
    "identity", "polygons", "reprojection", "geodesy", "metrics",
    "confidence", "clusters", "concepts",
)  # fmt: skip
"""Ring 0 from left to right: a module imports what stands to its left."""

PARTS = (
    "crf", "devices", "labelers", "localizers", "networks", "parts", "pictures", "pipeline", "prompters", "segmenters",
    "synthetic", "trainers",
)  # fmt: skip
WORLD = ("datasets", "io", "weights")
RUN = ("bench", "cli", "methods", "run", "testing", "__init__")

RING = dict.fromkeys(ORDER, 0) | dict.fromkeys(PARTS, 1) | dict.fromkeys(WORLD, 2) | dict.fromkeys(RUN, 3)

NUMBERS = {"affine", "numpy", "pyproj", "scipy", "shapely", "skimage"}
NETWORKS = {
    "PIL",
    "google",
    "lightning",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "psutil",
    "pycocotools",
    "safetensors",
    "segment_anything",
    "segmentation_models_pytorch",
    "sklearn",
    "timm",
    "torch",
    "torchvision",
}
FILES = {
    "fsspec",
    "geopandas",
    "pandas",
    "platformdirs",
    "pooch",
    "pyogrio",
    "rasterio",
    "rioxarray",
    "torchgeo",
    "xarray",
}
MODELS = {"diffusers", "huggingface_hub", "transformers"}
LIBRARIES = {0: NUMBERS, 1: NUMBERS | NETWORKS, 2: NUMBERS | NETWORKS | FILES | MODELS}
"""What each ring may use; ring 3 may use everything."""


@cache
def files() -> list[Path]:
    return sorted([*(ROOT / "geolabel").rglob("*.py"), *(ROOT / "cli").glob("*.py")])


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def name_of(path: Path) -> str:
    """Dotted name below geolabel: ``io.scenes``, ``cli.main``, ``networks``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "cli" else parts[1:]
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def home_of(name: str) -> str:
    return name.split(".")[0]


def imports(path: Path) -> Iterator[str]:
    """Absolute names that a file imports, wherever in it; those that only a type checker reads are left out."""
    tree = tree_of(path)
    for_checkers = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    modules = {name_of(file) for file in files()}
    for node in ast.walk(tree):
        if node in for_checkers:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or home_of(name_of(path)) == "cli", f"{path}: relative import"
            module = "geolabel.cli" if node.level else node.module
            tail = f".{node.module}" if node.level and node.module else ""
            for alias in node.names:
                inner = f"{module}{tail}.{alias.name}"
                yield inner if inner.removeprefix("geolabel.") in modules else f"{module}{tail}"


def own_imports(path: Path) -> set[str]:
    return {name.removeprefix("geolabel.") for name in imports(path) if name.startswith("geolabel.")}


def libraries(path: Path) -> set[str]:
    return {home_of(name) for name in imports(path)} - {"geolabel", "__future__"} - set(sys.stdlib_module_names)


def test_every_module_has_a_ring():
    assert {home_of(name_of(path)) for path in files()} <= set(RING)
    assert len(files()) > 50


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_a_module_imports_only_inward(path: Path):
    ring = RING[home_of(name_of(path))]
    outward = {name for name in own_imports(path) if RING[home_of(name)] > ring}
    assert not outward


@pytest.mark.parametrize("name", ORDER)
def test_ring_0_imports_only_to_its_left(name: str):
    left = set(ORDER[: ORDER.index(name)])
    assert own_imports(ROOT / "geolabel" / f"{name}.py") <= left


@pytest.mark.parametrize("path", [p for p in files() if RING[home_of(name_of(p))] < 3], ids=name_of)
def test_a_ring_uses_only_its_libraries(path: Path):
    assert libraries(path) <= LIBRARIES[RING[home_of(name_of(path))]]


def test_the_library_does_not_know_the_command_line():
    knowing = [name_of(p) for p in files() if home_of(name_of(p)) != "cli" and "cli" in map(home_of, own_imports(p))]
    assert not knowing
    assert not [name_of(p) for p in files() if home_of(name_of(p)) != "cli" and {"click", "rich"} & libraries(p)]


def test_dask_is_named_in_one_file_and_clients_are_opened_by_the_command_line():
    naming = {name_of(path) for path in files() if {"dask", "distributed"} & libraries(path)}
    assert {name for name in naming if home_of(name) != "cli"} == {"run.execute"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_nothing_is_printed_and_nothing_is_unpickled(path: Path):
    for function, call in calls(path):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert function != "print", f"line {call.lineno}: the library logs, the command line echoes"
        assert function not in {"pickle.load", "pickle.loads", "joblib.load", "eval", "exec"}, f"line {call.lineno}"
        if function == "torch.load":
            assert keywords.get("weights_only") == "True", f"line {call.lineno}"
        if function in {"np.load", "numpy.load"}:
            assert keywords.get("allow_pickle") == "False", f"line {call.lineno}"


def test_workers_parse_no_python():
    """Which fails now and then where threads do it at once (CPython 3.11): NumPy's files begin with a literal."""
    parsing = {"np.load", "np.save", "np.savez", "np.savez_compressed", "ast.parse", "ast.literal_eval"}
    found = {name_of(path) for path in files() for function, _ in calls(path) if function in parsing}
    assert found == {"trainers.pictures"}  # read in one thread, before the training


def test_what_strangers_send_is_opened_in_few_places():
    """Where GDAL is told what such a file may not do."""
    reading = {
        "rasterio.open": {"io.vsi", "io.formats", "io.opening"},
        "pyogrio.list_layers": {"io.features"},
        "pyogrio.read_info": {"io.features"},
        "pyogrio.read_dataframe": {"io.features"},
    }
    for path in files():
        for function, call in calls(path):
            writes = len(call.args) > 1 and ast.unparse(call.args[1]) in ("'w'", "'r+'")
            if function in reading and not writes:
                assert name_of(path) in reading[function], f"{path}, line {call.lineno}"


def test_json_and_pictures_are_read_in_one_place_each():
    """Where their size and depth are bounded, and decoders of other formats are left out."""
    for path in files():
        for function, call in calls(path):
            plain = [ast.unparse(argument) for argument in call.args]
            if function in {"json.loads", "json.load"} and not plain[0].startswith("json.dumps("):
                assert name_of(path) == "parsing", f"{path}, line {call.lineno}"
            if function == "Image.open" and not plain[0].startswith("io.BytesIO("):
                assert name_of(path) == "pictures", f"{path}, line {call.lineno}"


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_files_are_read_in_one_sitting(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
