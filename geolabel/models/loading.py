"""Recipes of networks by name or file, and loading them; names are those of `geolabel.models.registry`.

Only tensors are unpickled: the official SAM files are read with ``weights_only=True``, all others are safetensors.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from geolabel.activation import Normalisation
from geolabel.clusters import ClusterChoice
from geolabel.concepts import Asked
from geolabel.devices import keep_freed_memory
from geolabel.errors import OptionError, WeightsError
from geolabel.io.downloads import sha256
from geolabel.masks import EVERY_CANDIDATE, Filters, Selection
from geolabel.models import hub, registry
from geolabel.models.engines import Engine, every_graph_file, graph_files
from geolabel.parsing import parse_json
from geolabel.parts import (
    ConceptRecipe,
    DiffusionRecipe,
    EverythingRecipe,
    Everywhere,
    EverywhereRecipe,
    Localizer,
    LocalizerRecipe,
    NoMasks,
    NoSegmenterRecipe,
    Recipe,
    Segmenter,
    SegmenterRecipe,
    WordsRecipe,
)

if TYPE_CHECKING:
    from geolabel.models.checkpoint import NetworkInfo
    from geolabel.models.engines import MapNetwork, PromptedNetwork

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

PROMPTS_OF_FOLDERS = 16
"""Prompts per call of the decoder on a CPU. Decoders since SAM 2 copy the fine features of an image for each prompt, so
smaller calls need less memory."""

SAM_GSD_RANGE = (0.01, 1000.0)
"""Metres. The official networks were trained on photographs of every scale, so the localizer's range decides."""


def recipe(
    role: registry.Role,
    name: str | Path = "bundled",
    *,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    engine: Engine = "torch",
    batch: int | None = None,
    selection: Selection = "best_iou",
    normalisation: Normalisation = "constant",
) -> LocalizerRecipe | SegmenterRecipe:
    """The recipe of a network. A published network is downloaded if necessary.

    Parameters
    ----------
    name
        A published network, the path of a file or of a folder, or ``OWNER/NAME[@REVISION]`` of the hub.
    checkpoint
        A file instead of the published one; `name` then declares which official network it holds, unless it is
        ``bundled``.
    device, precision
        See `devices.resolve_device` and `devices.resolve_precision`.
    engine
        See `with_engine`.
    batch
        Images per forward call; None for `default_batch`.
    selection, normalisation
        See `parts.SegmenterRecipe` and `parts.LocalizerRecipe`; each applies to its role only.

    Raises
    ------
    WeightsError
        If the file is missing or not the published one.
    OptionError
        If the device, precision or engine is not available.
    """
    from geolabel.devices import resolve_device, resolve_precision

    device = resolve_device(device)
    source, digest, architecture = _source(role, name, checkpoint)
    made: dict[str, Any] = {
        "source": source,
        "sha256": digest,
        "device": device,
        "precision": resolve_precision(precision, device),
        "batch": default_batch(device) if batch is None else batch,
    }
    if role == "localizer":
        return with_engine(LocalizerRecipe(**made, normalisation=normalisation), engine)
    made |= {"selection": selection, "architecture": architecture}
    if selection == "overlap":  # the labeler, which has the activation, chooses among all candidates
        return with_engine(EverythingRecipe(**made, filters=EVERY_CANDIDATE), engine)
    return with_engine(SegmenterRecipe(**made), engine)


def with_engine(recipe: AnyRecipe, engine: Engine) -> AnyRecipe:
    """The same recipe for an engine; ONNX Runtime runs networks with graphs beside them, on a CPU.

    Raises
    ------
    OptionError
        If ONNX Runtime cannot run the network.
    """
    if engine == "torch":
        return replace(recipe, engine=engine, graphs=())
    if isinstance(recipe, SegmenterRecipe) and recipe.compile == "on":
        raise OptionError("--compile on: PyTorch compiles, and --engine onnx runs ONNX Runtime; omit one of them")
    if recipe.device != "cpu" or recipe.precision != "fp32":
        raise OptionError(
            f"engine onnx: ONNX Runtime runs networks on the CPU in fp32, not on {recipe.device} in "
            f"{recipe.precision}: give --device cpu --precision fp32, or --engine torch"
        )
    files = [] if isinstance(recipe, WordsRecipe) else graph_files(file_of(recipe), _kind_of_graphs(recipe))
    if not files or not all(file.is_file() for file in files):
        raise OptionError(
            f"engine onnx: there is no graph of the {recipe.role} {recipe.source} for ONNX Runtime: give --engine auto "
            "or torch, or write one for a network of geolabel with geolabel train graphs"
        )
    return replace(recipe, engine=engine, graphs=tuple(map(sha256, files)))


def everything(
    recipe: SegmenterRecipe, filters: Filters, *, features: bool = False, clusters: ClusterChoice | None = None
) -> EverythingRecipe:
    """The recipe of the same network and engine, which returns every candidate that passes `filters`.

    Raises
    ------
    OptionError
        If the engine is ONNX Runtime, and there are no graphs for this mode.
    """
    return with_engine(recipe.everything(filters, features=features, clusters=clusters), cast("Engine", recipe.engine))


def _kind_of_graphs(recipe: Recipe) -> str:
    return "everything" if isinstance(recipe, EverythingRecipe) else recipe.role


ADAPTED = "adapted"
"""Key in a file's training record that describes how it was adapted; see `geolabel.adapt`."""


def is_adapted(recipe: Recipe) -> bool:
    """Whether a network was adapted, and still has the graphs beside it that were written with it."""
    files = graph_files(Path(recipe.source), recipe.role)
    if type(recipe) not in (LocalizerRecipe, SegmenterRecipe) or not all(file.is_file() for file in files):
        return False
    from geolabel.models.checkpoint import read_info
    from geolabel.models.on_onnx import is_graph

    own = Path(recipe.source).is_absolute() and ADAPTED in read_info(recipe.source).trained
    return own and all(map(is_graph, files))


def default_batch(device: str) -> int:
    """8 on a GPU, and 1 on a CPU, where larger batches are no faster and a padded last batch wastes time."""
    return 1 if device == "cpu" else 8


def _source(role: registry.Role, name: str | Path, checkpoint: str | Path | None) -> tuple[str, str, str]:
    # Source, SHA-256 and architecture of the weights, for a recipe.
    if checkpoint is not None:
        path = Path(checkpoint).absolute()
        network = registry.lookup(str(name), role)[0]
        if network.hub is not None:
            raise OptionError(f"--sam-checkpoint {checkpoint}: {name} is a folder: give --sam FOLDER alone")
        return str(path), sha256(path), "" if network.bundled else str(name)
    path = Path(name).absolute()
    if _is_folder(role, name):
        if role == "localizer":
            held = _published(role, name) or path.is_dir()
            what = "what is kept in a folder" if held else "there is no such file, and a network of the hub"
            raise OptionError(
                f"localizer {name}: {what} is asked in words: give --method sam3 and --classes with it, or give a file "
                "of geolabel train localizer"
            )
        return *_in_folder(role, name), ""
    published = _published(role, name)
    if published is not None:
        registry.fetch(published)
        return published.name, registry.verify(published) if published.sha256 else sha256(published.path), ""
    if not path.is_file():
        registry.lookup(str(name), role)  # raises an error that lists the known names
    return str(path), sha256(path), ""


def _published(role: str, name: str | Path) -> registry.Published | None:
    return next((p for p in registry.PUBLISHED if (p.name, p.role) == (str(name), role)), None)


def _is_folder(role: registry.Role, name: str | Path) -> bool:
    # Whether a network is stored as a folder, local or on the hub.
    network = _published(role, name)
    if network is not None:
        return network.hub is not None
    path = Path(name).absolute()
    return path.is_dir() or (not path.is_file() and hub.parse_id(name) is not None)


def _in_folder(role: registry.Role, name: str | Path) -> tuple[str, str]:
    # Source and SHA-256 of a network stored as a folder, downloaded if necessary.
    words, network = role == "localizer", _published(role, name)
    path = Path(name).absolute()
    if network is None and path.is_dir():
        return str(path), hub.digest(path, words=words)
    model = str(name) if network is None else str(network.hub)
    folder = hub.fetch(model, words=words) if network is None else registry.fetch(network)
    return hub.named(model, folder), hub.digest(folder, words=words)


CONCEPTS = "sam3"
"""Default network for classes in words."""


def concept_recipe(name: str | Path | None, asked: Asked, like: Recipe) -> ConceptRecipe:
    """The recipe of a network that segments concepts, which is downloaded if necessary.

    Parameters
    ----------
    name
        A published network, a folder, or ``OWNER/NAME[@REVISION]`` of the hub; None for `CONCEPTS`.
    like
        Recipe of the segmenter: both run on the same device, in the same precision and batches.

    Raises
    ------
    OptionError
        If it is a file, or not the name of a network for classes in words.
    WeightsError
        If it cannot be downloaded.
    """
    name = CONCEPTS if name is None else name
    if not _is_folder("localizer", name):
        raise OptionError(
            f"localizer {name}: it is not asked in words: give {CONCEPTS}, the folder of such a network, or "
            "OWNER/NAME[@REVISION] of the Hugging Face hub"
        )
    source, digest = _in_folder("localizer", name)
    return ConceptRecipe(source, digest, like.device, like.precision, like.batch, asked=asked)


def bundled_gsd_range() -> tuple[float, float]:
    """Finest and coarsest ground sample distance, metres, that both default networks support; read without torch.

    Raises
    ------
    WeightsError
        If a file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    ranges = []
    for path in map(registry.fetch, registry.lookup("bundled")):
        try:
            with safe_open(path, framework="np") as file:
                ranges.append(parse_json(file.metadata()["geolabel"])["gsd_range"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} does not state its gsd range ({error}): install geolabel again") from error
    finest, coarsest = zip(*ranges, strict=True)
    return max(finest), min(coarsest)


def file_of(recipe: Recipe) -> Path:
    """File or folder of the network of a recipe; a published network is downloaded if necessary.

    Raises
    ------
    WeightsError
        If it cannot be downloaded.
    """
    words = isinstance(recipe, ConceptRecipe)
    if (words or recipe.role == "segmenter") and hub.parse_id(recipe.source):
        return hub.fetch(recipe.source, words=words)
    published = _published(recipe.role, recipe.source)
    return registry.fetch(published) if published else Path(recipe.source)


def load(recipe: Recipe) -> Localizer | Segmenter:
    """Load the part that a recipe describes.

    Raises
    ------
    WeightsError
        If its file is missing, has changed since the recipe was made, or is not such a network.
    """
    keep_freed_memory()
    if isinstance(recipe, DiffusionRecipe):
        from geolabel.models import diffusion_files

        return diffusion_files.localizer(recipe)
    if isinstance(recipe, EverywhereRecipe):
        return Everywhere(recipe.classes)
    if isinstance(recipe, NoSegmenterRecipe):
        return NoMasks()
    path = file_of(recipe)
    expected = [(path, recipe.sha256)]
    if recipe.engine == "onnx":
        expected += zip(graph_files(path, _kind_of_graphs(recipe)), recipe.graphs, strict=True)
    for file, digest in expected:
        found = hub.digest(file, words=isinstance(recipe, ConceptRecipe))
        if found != digest:
            raise WeightsError(f"{file} has SHA-256 {found}, the run was planned with {digest}: plan it again")
    if isinstance(recipe, SegmenterRecipe):
        return _segmenter(recipe, path)
    if isinstance(recipe, ConceptRecipe):
        from geolabel.models.concept_maps import load_concepts

        return load_concepts(recipe, path)
    assert isinstance(recipe, LocalizerRecipe)
    return _localizer(recipe, path)


def _localizer(recipe: LocalizerRecipe, path: Path) -> Localizer:
    from geolabel.models.cam import CamLocalizer
    from geolabel.models.checkpoint import read_info

    if read_info(path).kind == "student":
        return _student(recipe, path)
    network, info = maps_of(recipe, path)
    return CamLocalizer(network, info, batch=recipe.batch, normalisation=recipe.normalisation)


def maps_of(recipe: Recipe, path: Path) -> tuple[MapNetwork, NetworkInfo]:
    """The network of a localizer's recipe, in its engine, from the file `path`; and its description.

    Raises
    ------
    WeightsError
        If the file holds something else.
    """
    if recipe.engine == "onnx":
        from geolabel.models.on_onnx import OnnxMaps

        maps = OnnxMaps(path)
        return maps, maps.info
    from geolabel.models.checkpoint import load_localizer
    from geolabel.models.on_torch import TorchMaps

    network, info = load_localizer(path)
    return TorchMaps(network, device=recipe.device, precision=recipe.precision), info


def _student(recipe: Recipe, path: Path) -> Localizer:
    from geolabel.models.cam import DenseLocalizer
    from geolabel.models.checkpoint import load_own

    network, info = load_own(path, "student")
    return DenseLocalizer(network, info, device=recipe.device, precision=recipe.precision, batch=recipe.batch)


def _segmenter(recipe: SegmenterRecipe, path: Path) -> Segmenter:
    network, gsd_range = _prompted(recipe, path)
    if not isinstance(recipe, EverythingRecipe):
        from geolabel.models.sam import SamSegmenter

        size = {"prompts_per_batch": PROMPTS_OF_FOLDERS} if path.is_dir() and recipe.device == "cpu" else {}
        return SamSegmenter(network, gsd_range=gsd_range, selection=recipe.selection, **size)
    from geolabel.models.engines import PROMPTS_CPU
    from geolabel.models.everything import PROMPTS_GPU, EverythingSegmenter

    everything = EverythingSegmenter(
        network,
        gsd_range=gsd_range,
        filters=recipe.filters,
        features=recipe.features,
        # Selection among candidates, and mosaics of clusters, need scores.
        scores=recipe.clusters is not None or recipe.filters == EVERY_CANDIDATE,
        prompts_per_batch=PROMPTS_CPU if recipe.device == "cpu" else PROMPTS_GPU,
    )
    return everything if recipe.clusters is None else _of_clusters(everything, recipe.clusters)


def _prompted(recipe: SegmenterRecipe, path: Path) -> tuple[PromptedNetwork, tuple[float, float]]:
    # The network of a segmenter's recipe, in its engine, and its gsd range.
    if path.is_dir():
        from geolabel.models.on_transformers import load_segmenter

        return load_segmenter(recipe, path), SAM_GSD_RANGE
    if recipe.engine == "onnx":
        from geolabel.models.on_onnx import OnnxEverything, OnnxSam

        kind = OnnxEverything if isinstance(recipe, EverythingRecipe) else OnnxSam
        network = kind(path, batch=recipe.batch)
        return network, network.info.gsd_range
    from segment_anything.modeling import Sam

    from geolabel.models.checkpoint import is_safetensors, load_official, load_own
    from geolabel.models.on_torch import TorchSam

    gsd_range, resize = SAM_GSD_RANGE, True
    if is_safetensors(path):
        sam, info = load_own(path, "segmenter")
        if not isinstance(sam, Sam):
            raise WeightsError(f"{path} claims to be a segmenter but holds a {type(sam).__name__}: give another file")
        gsd_range, resize = info.gsd_range, False
    else:
        sam = load_official(path, recipe.architecture)
    place: dict[str, Any] = {"device": recipe.device, "precision": recipe.precision, "batch": recipe.batch}
    return TorchSam(sam, resize=resize, compile_encoder=recipe.compile == "on", **place), gsd_range


def _of_clusters(segmenter: Segmenter, choice: ClusterChoice) -> Segmenter:
    from geolabel.datasets.pseudo_labels import load_clusters
    from geolabel.models.everything import ClusterSegmenter

    path = Path(choice.path)
    content = load_clusters(path)
    if sha256(path) != choice.sha256:
        raise WeightsError(f"{path} has changed since the run was planned: plan it again")
    return ClusterSegmenter(segmenter, content.clusters, choice.class_names, content.source.max_share)


def describe(path: Path, *, words: bool = False) -> dict[str, Any]:
    """Summary of weights: SHA-256, bytes, number of parameters, description, and graphs beside the file.

    Parameters
    ----------
    path
        A file, or the folder of a network.
    words
        Whether the folder's network reads words.

    Raises
    ------
    WeightsError
        If it is missing, damaged, or not a network.
    """
    from geolabel.models.checkpoint import is_safetensors, load_checkpoint, official_name, official_state

    if path.is_dir():
        return hub.describe(path, words=words)
    digest = sha256(path)
    if is_safetensors(path):
        state, info = load_checkpoint(path)
        graphs = {file.name: sha256(file) for file in every_graph_file(path, info.kind) if file.is_file()}
        described = asdict(info) | ({"graphs": graphs} if graphs else {})
    else:
        state = official_state(path)
        described = {"kind": "segmenter", "architecture": official_name(state, path)}
    parameters = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
    return {"file": str(path), "sha256": digest, "bytes": path.stat().st_size, "parameters": parameters} | described
