"""Diffusion cross-attention as activation, on a tiny network of random weights built from configs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="needs the extra geolabel[diffusion]")
pytest.importorskip("transformers", reason="needs the extra geolabel[diffusion]")

from geolabel.concepts import Grounding, parse_concepts
from geolabel.errors import OptionError, WeightsError
from geolabel.models import diffusion_files
from geolabel.models.diffusion import (
    AttentionRecorder,
    DiffusionLocalizer,
    DiffusionNetworks,
    combined,
    noisy,
    recording,
    stretched,
    token_columns,
)
from geolabel.models.refinement import RefinedLocalizer
from geolabel.parts import Localizer
from geolabel.testing import FakeLocalizer, write_diffusion

SIDES = (2, 4, 8, 16)
"""Of the tiny network's maps; Stable Diffusion 1.x has 8, 16, 32 and 64 at 512 px."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffusion(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def networks(folder: Path) -> DiffusionNetworks:
    return diffusion_files.load(folder)


def image(seed: int = 0, height: int = 128, width: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def text(networks: DiffusionNetworks, prompt: str) -> Tensor:
    tokens = networks.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
    embedding: Tensor = networks.text_encoder(tokens.input_ids)[0]
    return embedding


def clean(networks: DiffusionNetworks, pixels: np.ndarray) -> Tensor:
    scaled = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    latent: Tensor = networks.vae.encode(scaled).latent_dist.mode() * networks.vae.config.scaling_factor
    return latent


def localizer(
    networks: DiffusionNetworks, classes: str = "landslide", batch: int = 3, **given: Any
) -> DiffusionLocalizer:
    return DiffusionLocalizer(networks, Grounding(parse_concepts(classes), **{"draws": 4} | given), batch=batch)


# --- the recording processor


@torch.inference_mode()
def test_a_recorded_pass_answers_as_the_default_one(networks: DiffusionNetworks) -> None:
    own = {name: type(part) for name, part in networks.unet.attn_processors.items()}
    latent, words = torch.randn(2, 4, 16, 16), text(networks, "Photo of a landslide").expand(2, -1, -1)
    expected = networks.unet(latent, 40, encoder_hidden_states=words).sample
    with recording(networks.unet, [4]):
        recorded = {name for name, part in networks.unet.attn_processors.items() if isinstance(part, AttentionRecorder)}
        got = networks.unet(latent, 40, encoder_hidden_states=words).sample
    assert torch.allclose(got, expected, atol=1e-5, rtol=0)
    assert expected.abs().max() > 0.1  # or the comparison would say nothing
    assert recorded == {name for name in own if ".attn2." in name}
    assert len(recorded) == 10
    assert {name: type(part) for name, part in networks.unet.attn_processors.items()} == own


def test_the_network_has_its_own_processors_again_after_an_error(networks: DiffusionNetworks) -> None:
    own = networks.unet.attn_processors
    with pytest.raises(RuntimeError), recording(networks.unet, [4]):
        raise RuntimeError
    assert networks.unet.attn_processors == own


@torch.inference_mode()
def test_every_place_shares_its_attention_out_among_all_tokens(networks: DiffusionNetworks) -> None:
    latent, words = torch.randn(2, 4, 16, 16), text(networks, "Photo of a landslide").expand(2, -1, -1)
    with recording(networks.unet, range(77)) as recorder:
        networks.unet(latent, 40, encoder_hidden_states=words)
    for maps, side in zip(recorder.pyramid(), SIDES, strict=True):
        assert maps.shape == (2, side, side)
        assert torch.allclose(maps * 77, torch.ones_like(maps), atol=1e-5)  # the mean of 77 tokens


@torch.inference_mode()
def test_memory_is_that_of_the_maps_asked_for(networks: DiffusionNetworks) -> None:
    words = text(networks, "Photo of a landslide")
    for columns, batch in (([4], 1), ([4], 3), (list(range(77)), 3)):
        with recording(networks.unet, columns) as recorder:
            networks.unet(torch.randn(batch, 4, 16, 16), 40, encoder_hidden_states=words.expand(batch, -1, -1))
        kept = sum(maps.untyped_storage().nbytes() for maps in recorder.sums.values())
        assert kept == batch * sum(side**2 for side in SIDES) * 4
        assert recorder.layers == {4: 1, 16: 3, 64: 3, 256: 3}


# --- the equations


def test_eq_4_by_hand() -> None:
    pyramid = [torch.tensor([[[0.2, 0.1], [0.0, 0.2]]]), torch.tensor([[[0.0, 0.3], [0.1, 0.6]]])]
    mean = combined(pyramid)  # of 1, .5, 0, 1 and 0, .5, 1/6, 1
    assert mean[0].tolist() == [[0.5, 0.5], [pytest.approx(1 / 12), 1.0]]
    assert stretched(mean)[0].flatten().tolist() == pytest.approx([5 / 11, 5 / 11, 0, 1])


def test_coarse_maps_are_brought_to_the_finest_before_they_are_averaged() -> None:
    mean = combined([torch.tensor([[[3.0]]]), torch.tensor([[[1.0, 2.0], [0.0, 4.0]]])])
    assert mean[0].tolist() == [[0.625, 0.75], [0.5, 1.0]]


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_constant_map_becomes_zeros(value: float) -> None:
    assert stretched(torch.full((1, 2, 2), value)).tolist() == [[[0, 0], [0, 0]]]
    assert not combined([torch.zeros(1, 2, 2)]).isnan().any()


def test_noise_has_the_variance_that_the_schedule_says(networks: DiffusionNetworks) -> None:
    alpha = float(networks.alphas_cumprod[40])
    assert (1 - alpha) ** 0.5 == pytest.approx(0.195, abs=0.002)  # of 1000 steps, scaled linear from .00085 to .012
    latent, noise = torch.randn(400, 4, 16, 16), torch.randn(400, 4, 16, 16)
    added = noisy(latent, noise, alpha) - alpha**0.5 * latent
    assert float(added.var()) == pytest.approx(1 - alpha, rel=0.02)


@torch.inference_mode()
def test_the_spread_of_the_mean_falls_with_the_root_of_the_draws(networks: DiffusionNetworks) -> None:
    # Eq. 8, with draws of the network, before Norm.
    latent, words = clean(networks, image()), text(networks, "Photo of a landslide")
    alpha, source = float(networks.alphas_cumprod[40]), torch.Generator().manual_seed(3)
    draws = []
    for _ in range(15):
        noise = torch.randn(20, 4, 16, 16, generator=source)
        with recording(networks.unet, [4]) as recorder:
            networks.unet(noisy(latent, noise, alpha), 40, encoder_hidden_states=words.expand(20, -1, -1))
        draws.append(combined(recorder.pyramid()))
    maps = torch.cat(draws)
    single = maps.std(dim=0).square().mean().sqrt()
    assert single > 1e-4
    for count in (4, 10):
        spread = maps.unflatten(0, (-1, count)).mean(dim=1).std(dim=0).square().mean().sqrt()
        assert float(spread / single) == pytest.approx(count**-0.5, rel=0.1)


# --- words


@pytest.mark.parametrize(
    ("word", "columns"), [("landslide", [4]), ("mudslide", [4, 5]), ("storage tank", [4, 5]), ("a", [3])]
)
def test_tokens_of_a_word_are_found_after_the_start_token(
    networks: DiffusionNetworks, word: str, columns: list[int]
) -> None:
    prompt = "photo of a" if word == "a" else f"photo of a {word}"
    assert token_columns(networks.tokenizer, prompt, word) == columns


@pytest.mark.parametrize(
    ("word", "message"), [("滑坡", "does not know '滑坡'"), ("zyzzyva", "splits it into 7"), ("é", "does not know")]
)
def test_words_that_the_tokenizer_does_not_know(networks: DiffusionNetworks, word: str, message: str) -> None:
    with pytest.raises(OptionError, match=f"{message}.*give another word"):
        localizer(networks, f"landslide/{word}")


def test_a_prompt_that_is_too_long(networks: DiffusionNetworks) -> None:
    with pytest.raises(OptionError, match="82 tokens, the limit is 77"):
        localizer(networks, template="photo " * 79 + "{}")


def test_a_time_step_beyond_the_schedule(networks: DiffusionNetworks) -> None:
    with pytest.raises(OptionError, match="ends at 999"):
        localizer(networks, timestep=1000)


# --- the localizer


@torch.inference_mode()
def test_the_activation_is_the_mean_of_draws_that_are_stretched_each(networks: DiffusionNetworks) -> None:
    # Eq. 9, with two words of two and of one token, each draw on its own.
    latent, source = clean(networks, image()), torch.Generator().manual_seed(7)
    alpha, total, peaks = float(networks.alphas_cumprod[40]), torch.zeros(16, 16), []
    noises = [torch.randn(4, 16, 16, generator=source) for _ in range(4)]
    for prompt, columns in (("Photo of a mudslide", [4, 5]), ("Photo of an airplane", [4])):
        for noise in noises:
            with recording(networks.unet, columns) as recorder:
                networks.unet(noisy(latent, noise, alpha), 40, encoder_hidden_states=text(networks, prompt))
            total += stretched(combined(recorder.pyramid()))[0]
            peaks.append(np.mean([float(maps.max()) for maps in recorder.pyramid()]))
    (got,) = localizer(networks, "mudslide/airplane", seed=7)([image()])
    assert got.values == pytest.approx(stretched(total[None] / 8).numpy(), abs=1e-4)
    assert got.raw_max == pytest.approx(np.mean(peaks), rel=1e-4)
    assert got.classes == ("mudslide",)
    assert (got.local_probability == got.raw_max).all()
    assert got.stride == 8


def test_the_first_of_many_draws_are_those_of_few(networks: DiffusionNetworks) -> None:
    few, many = localizer(networks, draws=2, batch=1), localizer(networks, draws=5, batch=1)
    assert torch.equal(few._draw(), many._draw()[:2])


def test_the_batch_changes_nothing_but_last_digits(networks: DiffusionNetworks) -> None:
    (one,), (three,) = (localizer(networks, batch=batch)([image()]) for batch in (1, 3))
    assert one.values == pytest.approx(three.values, abs=1e-3)


def test_the_same_image_gives_the_same_bytes(networks: DiffusionNetworks) -> None:
    first, second = localizer(networks)([image(1), image(1)])
    assert first.values.tobytes() == second.values.tobytes()
    (other,) = localizer(networks, seed=1)([image(1)])
    assert other.values.tobytes() != first.values.tobytes()


def test_an_image_smaller_than_the_window_has_finer_cells(networks: DiffusionNetworks) -> None:
    part = localizer(networks)
    (half,), (odd,) = part([image(2, 64, 64)]), part([image(2, 50, 64)])
    assert (half.stride, half.values.shape) == (4, (1, 16, 16))
    assert (odd.stride, odd.values.shape) == (4, (1, 13, 16))
    assert odd.values.min() == 0  # stretched within the image: the padding is gone by then
    assert odd.values.max() == 1
    enlarged = np.asarray(image(2, 64, 64)).repeat(2, axis=0).repeat(2, axis=1)
    (twice,) = part([enlarged])
    assert np.corrcoef(half.values.ravel(), twice.values.ravel())[0, 1] > 0.5


def test_an_image_larger_than_the_window_is_refused(networks: DiffusionNetworks) -> None:
    part = localizer(networks)
    assert (part.window, part.stride) == (128, 8)
    with pytest.raises(ValueError, match="exceeds the network's window of 128"):
        part([image(0, 128, 129)])


# --- refined by the CRF


def test_a_refined_map_follows_the_image() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 29:] = 200
    blurred = FakeLocalizer(stride=8, function=lambda image: np.where(np.arange(64) < 24, 0.2, 0.7) * np.ones((64, 1)))
    part: Localizer = RefinedLocalizer(blurred, threshold=0.4)
    (activation,) = part([pixels])
    assert activation.values.shape == (1, 64, 64)
    assert activation.stride == part.stride == 1
    assert activation.local_probability.shape == (1, 64, 64)
    assert ((activation.values[0] > 0.4) == (np.arange(64) >= 29)).mean() > 0.99
    (before,) = blurred([pixels])
    assert ((before.values[0].repeat(8, 0).repeat(8, 1) > 0.4) == (np.arange(64) >= 29)).mean() < 0.95


# --- folders and the hub


def test_a_fingerprint_is_that_of_the_files(folder: Path, tmp_path: Path) -> None:
    again = write_diffusion(tmp_path / "again")
    assert diffusion_files.fingerprint(again) == diffusion_files.fingerprint(folder)
    other = write_diffusion(tmp_path / "other", seed=1)
    assert diffusion_files.fingerprint(other) != diffusion_files.fingerprint(folder)


def test_a_folder_without_a_model_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "vae" / "diffusion_pytorch_model.safetensors").rename(broken / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"vae/diffusion_pytorch_model\.safetensors missing"):
        diffusion_files.load(broken)


def test_a_damaged_model_is_named(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "unet" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"broken cannot be loaded as Stable Diffusion 1\.x"):
        diffusion_files.load(broken)


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_model(source: str) -> None:
    with pytest.raises(WeightsError, match="is neither a folder"):
        diffusion_files.locate(source)


def test_without_network_and_weights_there_are_two_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def unreachable(**request: Any) -> str:
        raise OSError("no such host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(WeightsError, match=r"no such host.*run hf download owner/model.*or give the folder"):
        diffusion_files.locate("owner/model")
    monkeypatch.setenv("GEOLABEL_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"forbids downloads.*run hf download.*or give the folder"):
        diffusion_files.locate("owner/model@main")


def test_a_model_in_the_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def cached(**request: Any) -> str:
        asked.append(request)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    monkeypatch.setenv("GEOLABEL_OFFLINE", "1")
    assert diffusion_files.locate("owner/model@v1") == folder
    (request,) = asked
    assert (request["repo_id"], request["revision"], request["local_files_only"]) == ("owner/model", "v1", True)
    assert not [pattern for pattern in request["allow_patterns"] if pattern.endswith(".bin")]
