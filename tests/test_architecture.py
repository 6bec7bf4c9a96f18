"""The rings of the design, read from the import statements: what may know of what."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ORDER = (
    "urls",
    "errors",
    "parsing",
    "settings",
    "scratch",
    "outputs",
    "folder_record",
    "folders",
    "types",
    "bands",
    "tiles",
    "scene",
    "resampling",
    "radiometry",
    "nodata",
    "activation",
    "prompts",
    "masks",
    "mosaic",
    "labels",
    "chips",
    "spans",
    "splitting",
    "cross_tile_matching",
    "polygons",
    "geodesy",
    "terrain",
    "change",
    "registration",
    "metrics",
    "clusters",
    "concepts",
    "image_files",
    "devices",
    "parts",
    "prompters",
    "labelers",
    "testing",
    "weights",
    "synthetic",
    "io",
    "io.read",
    "io.write",
    "viewing",
    "datasets",
    "models.nets",
    "models",
    "engine",
    "extraction",
    "review",
    "labeling",
    "training",
    "methods",
    "adaptation",
    "evaluation",
    "qgis.plugin",
    "qgis",
    "doctor",
    "api",
    "cli",
)
"""Modules and packages from left to right: each imports what stands to its left, also for type checkers alone."""

RING_0 = ORDER[: ORDER.index("image_files")]
"""Numbers and records: nothing that opens a file of a scene or runs a network."""

NETWORKS_ONLY = (*ORDER[ORDER.index("image_files") : ORDER.index("testing")], "synthetic", "models.nets", "training")
"""Modules that a machine with torch and no raster library runs."""

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
    "matplotlib",
    "pandas",
    "platformdirs",
    "pooch",
    "pyarrow",
    "pyogrio",
    "rasterio",
    "rioxarray",
    "torchgeo",
    "xarray",
}
MODELS = {"diffusers", "huggingface_hub", "transformers"}


ALONE = ("qgis.plugin",)
"""What QGIS loads without geolabel; it imports nothing of it."""


@cache
def files() -> list[Path]:
    return sorted([*(ROOT / "geolabel").rglob("*.py"), *(ROOT / "cli").glob("*.py")])


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def name_of(path: Path) -> str:
    """Dotted name below geolabel: ``io.read.scenes``, ``cli.main``, ``networks``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "cli" else parts[1:]
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def home_of(name: str) -> str:
    """The entry of `ORDER` that a module is in, or the first part of another name."""
    parts = name.split(".")
    inner = ".".join(parts[:2])
    return inner if inner in ORDER else parts[0]


def imports(path: Path, *, for_checkers: bool = True) -> Iterator[str]:
    """Absolute names that a file imports, wherever in it."""
    tree = tree_of(path)
    left_out = {
        inner
        for node in ast.walk(tree)
        if not for_checkers and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    modules = {name_of(file) for file in files()}
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or home_of(name_of(path)) in ("cli", *ALONE), f"{path}: relative import"
            package = home_of(name_of(path))
            module = f"geolabel.{package}" if node.level else node.module
            tail = f".{node.module}" if node.level and node.module else ""
            for alias in node.names:
                inner = f"{module}{tail}.{alias.name}"
                yield inner if inner.removeprefix("geolabel.") in modules else f"{module}{tail}"


def own_imports(path: Path) -> set[str]:
    return {name.removeprefix("geolabel.") for name in imports(path) if name.startswith("geolabel.")}


def libraries(path: Path) -> set[str]:
    return (
        {name.split(".")[0] for name in imports(path, for_checkers=False)}
        - {"geolabel", "__future__"}
        - set(sys.stdlib_module_names)
    )


def test_every_module_has_a_place():
    assert {home_of(name_of(path)) for path in files()} <= {*ORDER, "__init__"}
    assert len(files()) > 50


@pytest.mark.parametrize("path", [p for p in files() if name_of(p) != "__init__"], ids=name_of)
def test_a_module_imports_only_to_its_left(path: Path):
    home = home_of(name_of(path))
    left = {*ORDER[: ORDER.index(home) + 1], "__init__"}
    right = {name for name in own_imports(path) if home_of(name) not in left}
    assert not right


@pytest.mark.parametrize("path", [p for p in files() if home_of(name_of(p)) in RING_0], ids=name_of)
def test_ring_0_uses_numbers_only(path: Path):
    assert libraries(path) <= NUMBERS


@pytest.mark.parametrize("path", [p for p in files() if home_of(name_of(p)) in NETWORKS_ONLY], ids=name_of)
def test_networks_and_trainings_need_no_raster_library(path: Path):
    assert libraries(path) <= NUMBERS | NETWORKS


@pytest.mark.parametrize(
    "path", [p for p in files() if home_of(name_of(p)) not in ("cli", *ORDER[ORDER.index("engine") :])], ids=name_of
)
def test_libraries_are_known(path: Path):
    assert libraries(path) - {"hypothesis"} <= NUMBERS | NETWORKS | FILES | MODELS


def test_the_plugin_of_qgis_knows_nothing_of_geolabel():
    plugin = [path for path in files() if home_of(name_of(path)) in ALONE]
    assert len(plugin) > 3
    for path in plugin:
        assert all(home_of(name) in ALONE for name in own_imports(path)), name_of(path)
        assert libraries(path) <= {"qgis", "processing"}, name_of(path)


def test_the_engine_has_no_word_of_landslides():
    """Passes, the types of their records and run keys are handed in."""
    engine = [path for path in files() if home_of(name_of(path)) == "engine"]
    assert len(engine) > 5
    for path in engine:
        assert "landslide" not in path.read_text(encoding="utf-8").lower(), name_of(path)


def test_the_library_does_not_know_the_command_line():
    knowing = [name_of(p) for p in files() if home_of(name_of(p)) != "cli" and "cli" in map(home_of, own_imports(p))]
    assert not knowing
    assert not [name_of(p) for p in files() if home_of(name_of(p)) != "cli" and {"click", "rich"} & libraries(p)]


def test_dask_is_named_in_one_file_and_clients_are_opened_by_the_command_line():
    naming = {name_of(path) for path in files() if {"dask", "distributed"} & libraries(path)}
    assert {name for name in naming if home_of(name) != "cli"} == {"engine.executors"}


METHOD_NAMES = {"apsam", "s2c", "cism", "alps", "diffuprompter", "sam3"}
"""Methods; ``bundled`` is a network, and among first weights a choice beside files."""

COMPARED = {"training": METHOD_NAMES} | dict.fromkeys(
    ("engine", "extraction", "labeling", "methods"), METHOD_NAMES | {"bundled"}
)
"""Names that no module of a package compares."""


@pytest.mark.parametrize("path", [p for p in files() if home_of(name_of(p)) in COMPARED], ids=name_of)
def test_names_of_methods_and_bundled_networks_are_not_compared(path: Path):
    """A method is chosen in the registry, and what suits a network is looked up."""
    compared = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Compare)]
    constants = {inner.value for node in compared for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
    assert not constants & COMPARED[home_of(name_of(path))]


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
    assert found == {"training.bundled_data"}  # read in one thread, before the training


def test_what_strangers_send_is_opened_in_few_places():
    """Where GDAL is told what such a file may not do."""
    reading = {
        "rasterio.open": {"io.read.files", "io.read.formats", "io.read.opening"},
        "pyogrio.list_layers": {"io.read.features"},
        "pyogrio.read_info": {"io.read.features"},
        "pyogrio.read_dataframe": {"io.read.features"},
    }
    for path in files():
        for function, call in calls(path):
            writes = len(call.args) > 1 and ast.unparse(call.args[1]) in ("'w'", "'r+'")
            if function in reading and not writes:
                assert name_of(path) in reading[function], f"{path}, line {call.lineno}"


def test_json_and_images_are_read_in_one_place_each():
    """Where their size and depth are bounded, and decoders of other formats are left out."""
    for path in files():
        for function, call in calls(path):
            plain = [ast.unparse(argument) for argument in call.args]
            if function in {"json.loads", "json.load"} and not plain[0].startswith("json.dumps("):
                assert home_of(name_of(path)) in ("parsing", *ALONE), f"{path}, line {call.lineno}"
            if function == "Image.open" and not plain[0].startswith("io.BytesIO("):
                assert name_of(path) == "image_files", f"{path}, line {call.lineno}"


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_files_are_read_in_one_sitting(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
