"""Text-to-image networks from a folder or the Hugging Face hub.

A folder is in the format of diffusers: ``unet``, ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``. Weights
are read from safetensors only, so nothing is unpickled. Models of the hub are kept in its shared cache (``HF_HOME``);
``GEOLABEL_OFFLINE`` forbids downloads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geolabel.concepts import Grounding
from geolabel.errors import WeightsError, require
from geolabel.models import hub
from geolabel.models.diffusion import DiffusionLocalizer, DiffusionNetworks
from geolabel.models.refinement import RefinedLocalizer
from geolabel.parts import DiffusionRecipe, Localizer, Recipe

DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""Default model of the hub: Stable Diffusion 1.5, under CreativeML Open RAIL-M."""

WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""Name of the weights in each folder, without ``.safetensors``."""

CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")

TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
"""Files that a tokenizer may consist of."""


def require_diffusion() -> None:
    """Check that diffusion networks can run here; raises a GeolabelError that names what is missing."""
    require("diffusion", "diffusers", "transformers", "huggingface_hub", purpose="diffuprompter")


def locate(source: str | Path) -> Path:
    """The folder of a model: a given folder, or that of a model of the hub, downloaded if necessary.

    Parameters
    ----------
    source
        A folder, or ``OWNER/NAME`` with or without ``@REVISION``.

    Raises
    ------
    WeightsError
        If it is neither, or the model cannot be downloaded.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder.absolute()
    named = hub.parse_id(source)
    if named is None:
        raise WeightsError(
            f"{source} is neither a folder nor a model of the hub: give a folder, or OWNER/NAME[@REVISION]"
        )
    require_diffusion()
    wanted = [*CONFIGS, *(f"{part}/{name}.safetensors" for part, name in WEIGHTS.items()), "tokenizer/*"]
    return hub.snapshot(*named, wanted, _missing, size=4 * 10**9, extra="diffusion", option="--diffusion")


def _missing(folder: Path) -> list[str]:
    """Files that a folder lacks to be a model."""
    lacking = [name for name in CONFIGS if not (folder / name).is_file()]
    lacking += [f"{part}/{name}.safetensors" for part, name in WEIGHTS.items() if _variant(folder, part) is None]
    if not ((folder / "tokenizer/tokenizer.json").is_file() or (folder / "tokenizer/vocab.json").is_file()):
        lacking.append("tokenizer/vocab.json")
    return lacking


def _variant(folder: Path, part: str) -> str | None:
    # "" for full weights, "fp16" if only those exist, None if there are none
    variants = {"": f"{WEIGHTS[part]}.safetensors", "fp16": f"{WEIGHTS[part]}.fp16.safetensors"}
    return next((variant for variant, name in variants.items() if (folder / part / name).is_file()), None)


def _check(folder: Path) -> None:
    """Raise a WeightsError that names what a folder lacks to be a model."""
    lacking = _missing(folder)
    if lacking:
        raise WeightsError(
            f"{folder} is not a Stable Diffusion in the format of diffusers: {', '.join(lacking)} missing; give such a "
            "folder, with weights as safetensors"
        )


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and the SHA-256 of all files of a model.

    Raises
    ------
    WeightsError
        If the folder is not a model.
    """
    _check(folder)
    names = [*CONFIGS, *(f"tokenizer/{name}" for name in TOKENIZER)]
    for part, name in WEIGHTS.items():
        variant = _variant(folder, part)
        names.append(f"{part}/{name}{'.' if variant else ''}{variant}.safetensors")
    return hub.fingerprint(folder, names)


def recipe(source: str | Path, grounding: Grounding, like: Recipe) -> DiffusionRecipe:
    """The recipe of a diffusion network, which is downloaded if necessary.

    Parameters
    ----------
    source
        See `locate`.
    like
        Recipe of the segmenter: both run on the same device, in the same precision and batches.

    Raises
    ------
    WeightsError
        If it cannot be downloaded.
    """
    folder = locate(source)
    return DiffusionRecipe(
        str(folder), fingerprint(folder), like.device, like.precision, like.batch, grounding=grounding
    )


def localizer(recipe: DiffusionRecipe) -> Localizer:
    """Load the localizer of a recipe.

    Raises
    ------
    WeightsError
        If the model is missing or has changed.
    OptionError
        If it does not know a word or the time step.
    """
    folder = Path(recipe.source)
    digest = fingerprint(folder)
    if digest != recipe.sha256:
        raise WeightsError(f"{folder} has SHA-256 {digest}, the run was planned with {recipe.sha256}: plan it again")
    made = DiffusionLocalizer(
        load(folder), recipe.grounding, device=recipe.device, precision=recipe.precision, batch=recipe.batch
    )
    crf = recipe.grounding.crf
    return made if crf is None else RefinedLocalizer(made, crf, device=recipe.device)


def load(folder: Path) -> DiffusionNetworks:
    """Load a model, in single precision and on the CPU.

    Raises
    ------
    GeolabelError
        If diffusers or transformers are not installed.
    WeightsError
        If the folder is not such a model.
    """
    require_diffusion()
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    _check(folder)
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    try:
        with hub.without_bars("diffusers", "transformers"):
            loaded = {part: _part(kind, folder, part) for part, kind in kinds.items()}
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{folder} cannot be loaded as Stable Diffusion 1.x ({reason}): give another") from error
    return DiffusionNetworks(**loaded, tokenizer=tokenizer, alphas_cumprod=schedule.alphas_cumprod)


def _part(kind: Any, folder: Path, part: str) -> Any:
    variant = _variant(folder, part) or None
    network = kind.from_pretrained(
        folder, subfolder=part, variant=variant, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    )
    return network.float()
