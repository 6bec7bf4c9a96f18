"""Successors of Segment Anything, built by the library ``transformers`` from a folder.

A folder is untrusted. From its ``config.json``, only fields of the classes named here are read, with limits; the
network they describe is compared with the weights before memory is allocated; no other class, code or pickle is loaded.

Sources: Kirillov et al. (2023), "Segment Anything"; Ke et al. (2023), "Segment Anything in High Quality"; Ravi et al.
(2024), "SAM 2: Segment Anything in Images and Videos"; Zhou et al. (2025), "EdgeTAM: On-Device Track Anything Model";
Carion et al. (2025), "SAM 3: Segment Anything with Concepts", whose tracker is run here, and whose detector is run by
`geolabel.models.concept_maps`. Since SAM 2 an image is stretched to the frame, and masks are enlarged to the
image directly.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from geolabel.devices import compiled, exact
from geolabel.errors import WeightsError, require
from geolabel.models import hub
from geolabel.models.checkpoint import DAMAGE, LARGEST, LEAST
from geolabel.models.engines import Points, PromptedNetwork, bucket
from geolabel.models.nets.vit import halve
from geolabel.models.on_device import upload
from geolabel.models.on_torch import OnDevice
from geolabel.parsing import read_json
from geolabel.parts import SegmenterRecipe
from geolabel.types import AnyArray, UInt8Array

MAX_NUMBER, MAX_VALUES, MAX_LAYERS = 1 << 14, 256, 128
"""Limits for descriptions: channels and pixels, values in a list, layers."""

MAX_QUERIES = 1024
"""Maximum number of objects of a detector; SAM 3 has 200."""

MAX_WORDS = 1 << 17
"""Maximum vocabulary; CLIP's has 49,408 tokens."""

MAX_CELLS = 256
"""Maximum number of cells along a side of the frame, since positions of all are stored."""

MAX_OPERATIONS = 10**14
"""Maximum operations for an image. The largest SAM of 2023 takes 6e12; oversized attention windows take any number."""


@dataclass(frozen=True)
class Family:
    """Networks of one class of transformers."""

    model: str
    """Name of the class."""
    configs: Mapping[str, str]
    """Configuration classes by their place in ``config.json``."""
    processor: str
    """Image processor class, with the mean and standard deviation of the family."""
    stretches: bool = True
    """See `geolabel.models.engines.PromptedNetwork`."""
    sorts: bool = False
    """Whether candidates are sorted by predicted IoU. That is undone, since their meaning depends on the token."""
    inside: str = ""
    """Part of ``config.json`` that describes the network; empty for all of it."""
    unread: str = "(?!)"
    """Pattern of the names of tensors of other networks in the same file."""


def _configs(prefix: str, **others: str) -> dict[str, str]:
    parts = {
        "": "",
        "vision_config": "Vision",
        "prompt_encoder_config": "PromptEncoder",
        "mask_decoder_config": "MaskDecoder",
    }
    return {place: f"{prefix}{part}Config" for place, part in parts.items()} | others


_BACKBONE = "vision_config.backbone_config"

SAM = Family("SamModel", _configs("Sam"), "SamImageProcessor", stretches=False)

SAM_HQ = Family("SamHQModel", _configs("SamHQ"), "SamImageProcessor", stretches=False, sorts=True)

SAM2 = Family("Sam2Model", _configs("Sam2", **{_BACKBONE: "Sam2HieraDetConfig"}), "Sam2ImageProcessor")

EDGETAM = Family("EdgeTamModel", _configs("EdgeTam", **{_BACKBONE: "TimmWrapperConfig"}), "Sam2ImageProcessor")

SAM3 = Family(
    "Sam3TrackerModel",
    _configs("Sam3Tracker", vision_config="Sam3VisionConfig", **{_BACKBONE: "Sam3ViTConfig"}),
    "Sam3ImageProcessor",
)

FAMILIES = {
    "sam": SAM,
    "sam_hq": SAM_HQ,
    "sam2": SAM2,
    "sam2_video": SAM2,
    "edgetam": EDGETAM,
    "edgetam_video": EDGETAM,
    "sam3_tracker": SAM3,
    "sam3_tracker_video": SAM3,
    "sam3_video": replace(SAM3, inside="tracker_config", unread=r"detector_model\.(?!vision_encoder\.backbone\.)"),
}
"""Families by the ``model_type`` of ``config.json``. Video parts of a network are not loaded."""

REPVIT = "repvit_m1"
"""The backbone of EdgeTAM. Others are refused: timm would resolve the name and might download it."""


@dataclass(frozen=True)
class Embedding:
    """The encoder's output for one image."""

    inputs: Mapping[str, Any]
    """Inputs of the network's decoder."""
    coarse: Tensor
    """(D, h, w)"""


class TransformersSam(OnDevice):
    """A network of transformers as a `geolabel.models.engines.PromptedNetwork`.

    Parameters
    ----------
    model
        It is moved to `device` and set to evaluation.
    family
        Family of the network.
    normalisation
        Mean and standard deviation of red, green and blue, 0..1; defaults are the family's.
    device, precision
        A torch device; see `geolabel.devices.Precision`. Positions of prompts are always encoded in single precision,
        since eight bits cannot distinguish neighbouring pixels. In ``bf16`` on a GPU, the encoder's weights are stored
        as bf16, and the decoder computes in TF32.
    batch
        Images per call of the encoder.
    compile_encoder
        Whether to compile the encoder with torch.compile, for a fixed shape: all calls then have `batch` images.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        *,
        normalisation: Mapping[str, Sequence[float]] | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        batch: int = 8,
        compile_encoder: bool = False,
    ) -> None:
        import transformers

        super().__init__(device, precision)
        self._model: Any = model.to(device).eval()
        encoder: Any = self._model.prompt_encoder
        self.window, self.cells = int(encoder.input_image_size), int(encoder.image_embedding_size[0])
        self.width, self.batch, self.stretches = int(encoder.hidden_size), batch, family.stretches
        self._sorts = family.sorts
        if self.apart and precision == "bf16":
            halve(model.get_submodule("vision_encoder"))
        encode = cast("Callable[[Tensor], Any]", self._model.get_image_embeddings)
        self._encode = compiled(encode) if compile_encoder else encode
        self._one_shape = compile_encoder
        frame = {"height": self.window, "width": self.window}
        padded: dict[str, Any] = {"size": {"longest_edge": self.window}, "pad_size": frame}
        sizes = {"size": frame} if family.stretches else padded
        self._processor = getattr(transformers, family.processor)(**sizes, **(normalisation or {}))
        for module in self._model.modules():
            if type(module).__name__.endswith("PositionalEmbedding"):
                module.forward = exact(device)(module.forward)

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image in the encoder's frame."""
        if self.stretches:
            return self.window, self.window
        share = self.window / max(size)
        return int(size[0] * share + 0.5), int(size[1] * share + 0.5)

    def encode(self, images: Sequence[UInt8Array]) -> list[Embedding]:
        """Embeddings of up to `batch` images (H, W, 3)."""
        size = self.batch if self._one_shape else bucket(len(images), self.batch)
        frames = frames_of(images, self._processor, self.window, size, self._device)
        maps = self._encode(frames)
        return [self._embedding(maps, k) for k in range(len(images))]

    def _embedding(self, maps: Any, k: int) -> Embedding:
        if isinstance(maps, Tensor):  # SAM
            own = maps[k : k + 1].float()
            return Embedding({"image_embeddings": own}, own[0])
        if isinstance(maps, tuple):  # SAM-HQ, with features of the global attention layers; the decoder takes the first
            own, early = (level[k : k + 1].float() for level in (maps[0], maps[1][0]))
            return Embedding({"image_embeddings": own, "intermediate_embeddings": [early]}, own[0])
        levels = [level[k : k + 1].float() for level in maps]
        return Embedding({"image_embeddings": levels}, levels[-1][0])

    def features(self, embedding: Embedding) -> Tensor:
        """(D, h, w) features of the encoder."""
        return embedding.coarse

    def decode(
        self, embedding: Embedding, points: Points | None, boxes: AnyArray | None, *, single: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Candidates of K prompts of one kind; see `geolabel.models.engines.PromptedNetwork`."""
        asked: dict[str, Tensor] = {}
        if points is not None:
            coords, labels = (self._tensor(given)[None] for given in points)
            asked = {"input_points": coords.float(), "input_labels": labels.long()}
        if boxes is not None:
            asked["input_boxes"] = self._tensor(boxes)[None].float()
        with self._decoding(), self._unsorted() as given:
            found = self._model(**embedding.inputs, **asked, multimask_output=not single)
        masks, quality = found.pred_masks[0].float(), found.iou_scores[0].float()
        if not given or single:
            return masks, quality
        order = torch.sort(given[0][0, :, 1:], dim=1, descending=True).indices.argsort(dim=1)
        return masks.take_along_dim(order[..., None, None], dim=1), quality.take_along_dim(order, dim=1)

    @contextmanager
    def _unsorted(self) -> Iterator[list[Tensor]]:
        # Collects the predicted IoU (1, K, 4) of all tokens in a call of a decoder that sorts its candidates.
        given: list[Tensor] = []
        if not self._sorts:
            yield given
            return
        head = self._model.mask_decoder.iou_prediction_head
        hook = head.register_forward_hook(lambda _module, _inputs, answer: given.append(answer))
        try:
            yield given
        finally:
            hook.remove()


_prompted: type[PromptedNetwork] = TransformersSam


def frames_of(images: Sequence[UInt8Array], processor: Any, side: int, count: int, device: str) -> Tensor:
    """(count, 3, side, side) of images (H, W, 3), processed like in transformers, padded with zeros."""
    sent = upload(images, device) if torch.device(device).type != "cpu" else list(images)
    given = processor(sent, return_tensors="pt", device=device, input_data_format="channels_last")
    frames = torch.zeros((count, 3, side, side), device=device)
    frames[: len(images)] = given["pixel_values"]
    return frames


# --- folders ---------------------------------------------------------------------------------------------------------


def family_of(folder: Path, given: Mapping[str, Any], families: Mapping[str, Family], why: str) -> Family:
    """The family of a folder's network, by the model type in its configuration.

    Parameters
    ----------
    why
        Why another type is refused, for the message.

    Raises
    ------
    WeightsError
        If the type is unknown.
    """
    family = families.get(given["model_type"])
    if family is None:
        raise WeightsError(
            f"{folder} holds a network of type {given['model_type'][:40]!r}, which {why}: known are "
            f"{', '.join(families)}; give one of these"
        )
    return family


def load_segmenter(recipe: SegmenterRecipe, folder: Path) -> PromptedNetwork:
    """Load the network of a folder.

    Raises
    ------
    GeolabelError
        If transformers is not installed.
    WeightsError
        If the folder is damaged, or holds something else.
    """
    given = hub.read_config(folder)
    family = family_of(folder, given, FAMILIES, "geolabel does not run")
    require("sam", "transformers", purpose=f"the segmenter of {folder}")
    return TransformersSam(
        load_model(family, given, folder, check_masks),
        family,
        normalisation=normalisation(folder),
        device=recipe.device,
        precision=recipe.precision,
        batch=recipe.batch,
        compile_encoder=recipe.compile == "on",
    )


def load_model(family: Family, given: dict[str, Any], folder: Path, check: Callable[[Any], None]) -> nn.Module:
    """Load the model of a folder with its weights, in single precision and on the CPU.

    Parameters
    ----------
    given
        Content of ``config.json``.
    check
        Receives the model without weights, on torch's device ``meta``; runs it once, and raises a ValueError if it is
        unsuitable.

    Raises
    ------
    WeightsError
        If it cannot be loaded.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    kind = getattr(transformers, family.model)
    try:
        config = _config(family, given[family.inside] if family.inside else given)
        _check_size(kind, config, folder, check)
        state = {name: tensor for file in hub.weights_of(folder) for name, tensor in _tensors(file, family.unread)}
        with hub.without_bars("transformers"), _quiet():
            model, report = kind.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, dtype=torch.float32
            )
    except (*DAMAGE, StrictDataclassError, ZeroDivisionError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsError(f"{folder} cannot be loaded as {family.model} ({reason[:300]}): give another") from error
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise WeightsError(
            f"the weights in {folder} do not fit its {hub.CONFIG}: {len(lacking)} tensors are missing, such as "
            f"{lacking[0]}; the folder is damaged"
        )
    made: nn.Module = model.requires_grad_(False)
    return made


def _tensors(file: Path, unread: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as held:
        for name in held.keys():  # noqa: SIM118
            if not re.match(unread, name):
                yield name, held.get_tensor(name)


def _config(family: Family, given: Mapping[str, Any], at: str = "") -> Any:
    """The configuration of a network, with only the fields that its classes declare."""
    import transformers

    kind = getattr(transformers, family.configs[at])
    if kind is transformers.TimmWrapperConfig:
        return _repvit(given)
    values: dict[str, Any] = {}
    for name in inspect.get_annotations(kind):
        inner = f"{at}.{name}" if at else name
        if name not in given:
            continue
        if inner in family.configs:
            values[name] = _config(family, given[name], inner)
        else:
            values[name] = _plausible(given[name], name)
    return kind(**values)


def _repvit(given: Mapping[str, Any]) -> Any:
    import transformers

    name = given["architecture"]
    if not (isinstance(name, str) and re.fullmatch(rf"{REPVIT}(\.\w+)?", name)):
        raise ValueError(f"its backbone is {str(name)[:40]!r}, not {REPVIT}")
    maps = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    return transformers.TimmWrapperConfig(architecture=REPVIT, model_args=maps)


def _plausible(value: Any, name: str) -> Any:
    """The value unchanged, if it is plausible."""
    if name == "rope_parameters" and isinstance(value, dict) and len(value) <= MAX_VALUES:
        return {str(key): _plausible(one, str(key)) for key, one in value.items()}
    if isinstance(value, list):
        if len(value) > MAX_VALUES:
            raise ValueError(f"{name} has {len(value)} values")
        return [_plausible(one, name) for one in value]
    if isinstance(value, dict) or (isinstance(value, str) and len(value) > 64):
        raise TypeError(f"{name} is {str(value)[:40]}")
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= _largest(name)):
        raise ValueError(f"{name} is {value}")
    return value


def _largest(name: str) -> int:
    if name == "num_queries":
        return MAX_QUERIES
    if name == "vocab_size" or name.endswith("token_id"):
        return MAX_WORDS
    return MAX_LAYERS if any(word in name for word in ("layers", "blocks", "depth", "num_", "levels")) else MAX_NUMBER


def _check_size(kind: Any, config: Any, folder: Path, check: Callable[[Any], None]) -> None:
    """Refuse a network with more weights than the files have, or with an endless computation.

    A pass without data shows whether the parts fit together.
    """
    with torch.device("meta"), _quiet():  # a description may ask for more memory than the tensors of the files need
        model = kind(config)
    held, wanted = hub.count_parameters(folder), sum(parameter.numel() for parameter in model.parameters())
    if wanted > held:
        raise ValueError(f"it has {wanted} weights, but the files hold {held}")
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counted:
        check(model)
    if counted.get_total_flops() > MAX_OPERATIONS:
        raise ValueError(f"an image takes {counted.get_total_flops():.0e} operations, more than {MAX_OPERATIONS:.0e}")


def check_masks(model: Any) -> None:
    """Check for `load_model`: a segmenter returns three masks, with four cells per embedding cell along each side."""
    side, cells = int(model.prompt_encoder.input_image_size), int(model.prompt_encoder.image_embedding_size[0])
    check_frame(side, cells)
    found = model(pixel_values=torch.empty(1, 3, side, side), input_boxes=torch.empty(1, 1, 4)).pred_masks
    if found.shape[:3] != (1, 1, 3) or found.shape[3:] != (4 * cells, 4 * cells):
        raise ValueError(f"its masks have the shape {tuple(found.shape)}")


def check_frame(side: int, cells: int) -> None:
    """Raise a ValueError if `side` pixels and `cells` cells along a side do not fit."""
    if not (LEAST <= side <= LARGEST // 4 and 1 <= cells <= MAX_CELLS):
        raise ValueError(f"its images have {side} px a side, {cells} cells")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's loading report on stderr; its problems become errors here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about layers without weights
            yield
    finally:
        logging.set_verbosity(level)


def normalisation(folder: Path) -> dict[str, list[float]]:
    """Mean and standard deviation in a folder's configuration; empty to use the family's."""
    for name in hub.PROCESSOR:
        if not (folder / name).is_file():
            continue
        try:
            given = read_json(folder / name, limit=hub.MAX_CONFIG_BYTES)
            given = given.get("image_processor", given)
            found = {key: [float(value) for value in given[key]] for key in ("image_mean", "image_std") if key in given}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise WeightsError(f"{folder / name} cannot be read ({error}): give another folder") from error
        sound = all(len(v) == 3 and all(math.isfinite(x) and 0 <= x <= 1 for x in v) for v in found.values())
        if not sound or min(found.get("image_std", [1])) <= 0:
            raise WeightsError(f"{folder / name} lacks mean and deviation of three colours: give another folder")
        return found
    return {}
