"""Concepts of SAM 3 as activation: each object matching a word, at its score.

SAM 3's detector reads a noun phrase and returns instances, each with a mask and a score, and the presence of the
concept in the image, by which scores are multiplied. The activation of a pixel is the highest score of the instances
covering it: thresholded, the map is the union of the instances that the library keeps at that threshold. Unlike
`geolabel.models.diffusion`, SAM 3 also estimates whether a class is present; that is the class probability, compared
with the gate. Of several words for a class, the highest score is used.

Source: Carion et al. (2025), "SAM 3: Segment Anything with Concepts", and its implementation in ``transformers``;
scores and masks follow its ``post_process_instance_segmentation``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from geolabel.activation import LEVELS, Activation
from geolabel.concepts import Asked, word_pieces
from geolabel.errors import OptionError, WeightsError, require
from geolabel.models import hub
from geolabel.models.engines import bucket
from geolabel.models.nets.vit import halve
from geolabel.models.on_torch import OnDevice
from geolabel.models.on_transformers import Family, check_frame, family_of, frames_of, load_model, normalisation
from geolabel.parsing import check_regular, read_json
from geolabel.parts import ConceptRecipe, Localizer
from geolabel.types import Float32Array, UInt8Array

GSD_RANGE = (0.01, 1000.0)
"""Metres. The network was trained on photographs of every scale."""

TOKENS = 32
"""Maximum tokens of a prompt, including start and end; shorter prompts are padded."""

EDGE = 0.5
"""Probability above which an instance covers a pixel, as in the library."""

AT_ONCE = 16
"""Number of masks enlarged at once."""

MAX_VOCABULARY_BYTES = 1 << 24
"""Maximum size of a tokenizer file; CLIP's has 2 MB."""

DETECTOR = Family(
    "Sam3Model",
    {
        "": "Sam3Config",
        "vision_config": "Sam3VisionConfig",
        "vision_config.backbone_config": "Sam3ViTConfig",
        "text_config": "CLIPTextConfig",
        "geometry_encoder_config": "Sam3GeometryEncoderConfig",
        "detr_encoder_config": "Sam3DETREncoderConfig",
        "detr_decoder_config": "Sam3DETRDecoderConfig",
        "mask_decoder_config": "Sam3MaskDecoderConfig",
    },
    "Sam3ImageProcessor",
)

FAMILIES = {
    "sam3": DETECTOR,
    "sam3_video": replace(DETECTOR, inside="detector_config", unread=r"tracker_(model|neck)\."),
}
"""Families by the ``model_type`` of ``config.json``."""


@dataclass(frozen=True)
class _Word:
    """An encoded word."""

    features: Any
    """Output of the text encoder, in the form of the network's forward pass."""
    mask: Tensor
    """(1, tokens) 1 for tokens that are not padding."""


class ConceptLocalizer(OnDevice):
    """SAM 3's detector as a `parts.Localizer`; see the module.

    An image is stretched to the network's square frame. It is encoded once for all classes.

    Parameters
    ----------
    model
        A ``Sam3Model``; it is moved to `device` and set to evaluation.
    tokenizer
        A ``CLIPTokenizer``.
    asked
        The classes.
    processed
        Mean and standard deviation of red, green and blue, 0..1; defaults are those of SAM 3.
    device, precision
        A torch device; see `geolabel.devices.Precision`. In ``bf16`` on a GPU, the encoder's weights are stored as
        bf16.
    batch
        Images per call of the encoder.

    Raises
    ------
    OptionError
        If the tokenizer does not know a word, or a phrase is too long.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        asked: Asked,
        *,
        processed: Mapping[str, Sequence[float]] | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        batch: int = 8,
    ) -> None:
        import transformers

        super().__init__(device, precision)
        self._model = model.to(device).eval()
        if self.apart and precision == "bf16":
            halve(model.get_submodule("vision_encoder"))
        self._asked = self._only = asked
        self._batch = batch
        self._side = int(model.config.image_size)
        size = {"size": {"height": self._side, "width": self._side}}
        self._processor = getattr(transformers, DETECTOR.processor)(**size, **(processed or {}))
        with self.running():
            self._words = {word: self._read(tokenizer, word) for one in asked.concepts for word in one.words}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._asked.classes

    @property
    def window(self) -> int:
        """Side in pixels of the network's frame, and of the largest image it accepts."""
        return self._side

    @property
    def stride(self) -> int:
        """Maps have the resolution of their image."""
        return 1

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest supported ground sample distance, metres."""
        return GSD_RANGE

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3), red first, H and W up to `window`.

        Raises
        ------
        ValueError
            If an image is larger.
        """
        found: list[Activation] = []
        with self.running():
            for start in range(0, len(images), self._batch):
                group = images[start : start + self._batch]
                for image in group:
                    if max(image.shape[:2]) > self.window:
                        raise ValueError(f"an image of {image.shape[:2]} px exceeds the window of {self.window} px")
                frames = frames_of(group, self._processor, self._side, bucket(len(group), self._batch), self._device)
                seen = self._model.get_vision_features(frames)
                found += [self._activation(_of_image(seen, k), image.shape[:2]) for k, image in enumerate(group)]
        return found

    def only(self, classes: Collection[str]) -> ConceptLocalizer:
        """The same network for images that show only some of the classes; the maps of other classes are 0."""
        fewer = copy(self)
        fewer._only = Asked(tuple(one for one in self._asked.concepts if one.name in classes))
        return fewer

    def _activation(self, seen: Any, size: tuple[int, ...]) -> Activation:
        maps = torch.zeros((len(self.classes), *size), device=self._device)
        presence = torch.zeros(len(self.classes), device=self._device)
        for k, concept in enumerate(self._asked.concepts):
            for word in concept.words if concept in self._only.concepts else ():
                scores, masks, present = self._instances(seen, self._words[word])
                presence[k] = torch.maximum(presence[k], present)
                maps[k] = torch.maximum(maps[k], _surest(scores, masks, size))
        values: Float32Array = self.host(maps)
        shown = np.broadcast_to(self.host(presence)[:, None, None], values.shape)
        return Activation(values, shown, values.max(axis=(1, 2)), self.stride, self.classes)

    def _instances(self, seen: Any, word: _Word) -> tuple[Tensor, Tensor, Tensor]:
        # Scores (Q,), masks (Q, h, w) in 0..1, and the presence of the concept.
        found = self._model(vision_embeds=seen, text_embeds=word.features, attention_mask=word.mask)
        present = found.presence_logits[0, 0].float().sigmoid()
        return found.pred_logits[0].float().sigmoid() * present, found.pred_masks[0].float().sigmoid(), present

    def _read(self, tokenizer: Any, word: str) -> _Word:
        word_pieces(tokenizer, word)
        given = tokenizer(word, padding="max_length", max_length=TOKENS, return_tensors="pt").to(self._device)
        count = int(given.input_ids.shape[1])
        if count > TOKENS:
            raise OptionError(f"class {word!r} has {count} tokens, the limit is {TOKENS}: give a shorter name")
        features = self._model.get_text_features(input_ids=given.input_ids, attention_mask=given.attention_mask)
        return _Word(features, given.attention_mask)


def _of_image(seen: Any, k: int) -> Any:
    # The encoder's features of one image of a batch.
    names = "fpn_hidden_states", "fpn_position_encoding"
    return type(seen)(**{name: tuple(level[k : k + 1] for level in seen[name]) for name in names})


def _surest(scores: Tensor, masks: Tensor, size: tuple[int, ...]) -> Tensor:
    # (H, W) highest score of the instances that cover a pixel; scores that round to grey value 0 are skipped.
    surest = torch.zeros(size, device=scores.device)
    shown = scores > 0.5 / LEVELS
    masks, scores = masks[shown], scores[shown]
    for start in range(0, len(scores), AT_ONCE):  # there may be none
        some = slice(start, start + AT_ONCE)
        enlarged = interpolate(masks[some][None], size, mode="bilinear", align_corners=False)[0]
        surest = torch.maximum(surest, torch.where(enlarged > EDGE, scores[some, None, None], 0.0).amax(dim=0))
    return surest


_localizer: type[Localizer] = ConceptLocalizer


# --- folders ---------------------------------------------------------------------------------------------------------


def load_concepts(recipe: ConceptRecipe, folder: Path) -> Localizer:
    """Load the localizer of a folder.

    Raises
    ------
    GeolabelError
        If transformers is not installed.
    OptionError
        If the network cannot read a word.
    WeightsError
        If the folder is damaged, or holds something else.
    """
    given = hub.read_config(folder)
    family = family_of(folder, given, FAMILIES, "reads no words")
    require("sam", "transformers", purpose=f"the localizer of {folder}")
    model: Any = load_model(family, given, folder, _check_detector)
    return ConceptLocalizer(
        model,
        _tokenizer(folder, model.config.text_config.vocab_size),
        recipe.asked,
        processed=normalisation(folder),
        device=recipe.device,
        precision=recipe.precision,
        batch=recipe.batch,
    )


def _check_detector(model: Any) -> None:
    # Check for `load_model`.
    side, patch = int(model.config.image_size), int(model.config.vision_config.backbone_config.patch_size)
    check_frame(side, side // patch)
    # the decoder reads the value of a tensor there, which meta tensors do not have
    model.detr_decoder.register_forward_pre_hook(
        lambda _model, given, named: (given, named | {"spatial_shapes": None}), with_kwargs=True
    )
    found = model(pixel_values=torch.empty(1, 3, side, side), input_ids=torch.zeros(1, TOKENS, dtype=torch.long))
    queries, cells = int(model.config.detr_decoder_config.num_queries), 4 * (side // patch)
    if found.pred_masks.shape != (1, queries, cells, cells) or found.presence_logits.shape != (1, 1):
        raise ValueError(f"its masks have the shape {tuple(found.pred_masks.shape)}")


def _tokenizer(folder: Path, tokens: int) -> Any:
    """The tokenizer of a folder, built from its vocabulary and merges; nothing else of its files is used.

    Parameters
    ----------
    tokens
        Size of the network's vocabulary.
    """
    from transformers import CLIPTokenizer

    try:
        vocabulary, merges = _pieces(folder)
        made = CLIPTokenizer(vocab=vocabulary, merges=merges)
        highest = max([len(made) - 1, *vocabulary.values()])
    except Exception as error:  # the Rust library raises plain exceptions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f"the tokenizer of {folder} cannot be read ({reason[:200]}): give another folder") from error
    if highest >= tokens:
        raise WeightsError(
            f"the tokenizer of {folder} has a token {highest}, but its network has {tokens}: the folder is damaged"
        )
    return made


def _pieces(folder: Path) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    whole, vocabulary, merges = (folder / name for name in hub.VOCABULARY)
    if whole.is_file():
        model = read_json(whole, limit=MAX_VOCABULARY_BYTES)["model"]
        return model["vocab"], [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    check_regular(merges)
    with merges.open("rb") as file:
        text = file.read(MAX_VOCABULARY_BYTES + 1)
    if len(text) > MAX_VOCABULARY_BYTES:
        raise ValueError(f"{merges.name} is larger than {MAX_VOCABULARY_BYTES} bytes")
    lines = [line for line in text.decode("utf-8").split("\n") if line and not line.startswith("#version")]
    return read_json(vocabulary, limit=MAX_VOCABULARY_BYTES), [tuple(line.split(" ")) for line in lines]
