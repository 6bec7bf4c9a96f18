"""MobileSAM: its encoder against a forward pass by the names of the published file, its masks against SamPredictor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, linear, pad

from geolabel.devices import forward
from geolabel.errors import OptionError, WeightsError
from geolabel.masks import EVERY_CANDIDATE, quantise_logits
from geolabel.models import checkpoint, loading, registry
from geolabel.models.nets import mobile_sam
from geolabel.models.nets.vit import halve
from geolabel.prompts import Prompts

State = dict[str, Tensor]


# --- the published file


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the encoder's tensors, as TinyViT 5M has them in MobileSAM's file."""

    def conv_norm(at: str, out: int, into: int, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{at}.c.weight", (out, into, size, size)
        yield from ((f"{at}.bn.{name}", (out,)) for name in ("weight", "bias", "running_mean", "running_var"))
        yield f"{at}.bn.num_batches_tracked", ()

    def affine(at: str, out: int, *into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{at}.weight", (out, *into)), (f"{at}.bias", (out,)))

    widths, depths, heads, windows = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
    yield from conv_norm("patch_embed.seq.0", 32, 3, 3)
    yield from conv_norm("patch_embed.seq.2", 64, 32, 3)
    for k, width in enumerate(widths):
        for j in range(depths[k]):
            at = f"layers.{k}.blocks.{j}"
            if k == 0:
                yield from conv_norm(f"{at}.conv1", 4 * width, width, 1)
                yield from conv_norm(f"{at}.conv2", 4 * width, 1, 3)
                yield from conv_norm(f"{at}.conv3", width, 4 * width, 1)
                continue
            yield f"{at}.attn.attention_biases", (heads[k], windows[k] ** 2)
            yield from affine(f"{at}.attn.norm", width)
            yield from affine(f"{at}.attn.qkv", 3 * width, width)
            yield from affine(f"{at}.attn.proj", width, width)
            yield from affine(f"{at}.mlp.norm", width)
            yield from affine(f"{at}.mlp.fc1", 4 * width, width)
            yield from affine(f"{at}.mlp.fc2", width, 4 * width)
            yield from conv_norm(f"{at}.local_conv", width, 1, 3)
        if k < 3:
            yield from conv_norm(f"layers.{k}.downsample.conv1", widths[k + 1], width, 1)
            yield from conv_norm(f"layers.{k}.downsample.conv2", widths[k + 1], 1, 3)
            yield from conv_norm(f"layers.{k}.downsample.conv3", widths[k + 1], widths[k + 1], 1)
    yield from affine("norm_head", 320)
    yield from affine("head", 1000, 320)
    yield "neck.0.weight", (256, 320, 1, 1)
    yield from affine("neck.1", 256)
    yield "neck.2.weight", (256, 256, 3, 3)
    yield from affine("neck.3", 256)


@pytest.fixture(scope="module")
def state() -> State:
    """Random tensors of the names and shapes of the published file."""
    generator = torch.Generator().manual_seed(0)

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(1)
        noise = torch.randn(shape, generator=generator)
        if "running_var" in name or (name.endswith("weight") and len(shape) == 1):
            return 1 + 0.2 * noise.tanh()
        if name.endswith(("bias", "running_mean", "attention_biases")):
            return 0.3 * noise
        return noise / max(1, noise[0].numel()) ** 0.5

    torch.manual_seed(1)
    decoder = {
        k: v for k, v in mobile_sam.build_mobile_sam().state_dict().items() if not k.startswith("image_encoder.")
    }
    return {f"image_encoder.{name}": tensor(name, shape) for name, shape in shapes()} | decoder


@pytest.fixture(scope="module")
def file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    torch.save(state, path)
    return path


# --- its forward pass


class Reference:
    """TinyViT (Wu et al. 2022, section 3.2) with MobileSAM's neck, on tensors by their published names."""

    def __init__(self, state: State) -> None:
        self.state = {name.removeprefix("image_encoder."): tensor for name, tensor in state.items()}

    def __call__(self, x: Tensor) -> Tensor:
        x = gelu(self.conv_norm("patch_embed.seq.0", x, stride=2))
        x = self.conv_norm("patch_embed.seq.2", x, stride=2)
        for j in range(2):
            at = f"layers.0.blocks.{j}"
            y = gelu(self.conv_norm(f"{at}.conv1", x))
            y = gelu(self.conv_norm(f"{at}.conv2", y))
            x = gelu(x + self.conv_norm(f"{at}.conv3", y))
        for k, depth, heads, window in ((1, 2, 4, 7), (2, 6, 5, 14), (3, 2, 10, 7)):
            at = f"layers.{k - 1}.downsample"
            x = gelu(self.conv_norm(f"{at}.conv1", x))
            x = gelu(self.conv_norm(f"{at}.conv2", x, stride=1 if k == 3 else 2))
            x = self.conv_norm(f"{at}.conv3", x)
            for j in range(depth):
                x = self.block(f"layers.{k}.blocks.{j}", x, heads, window)
        x = self.norm_cells("neck.1", conv2d(x, self.state["neck.0.weight"]))
        return self.norm_cells("neck.3", conv2d(x, self.state["neck.2.weight"], padding=1))

    def block(self, at: str, x: Tensor, heads: int, window: int) -> Tensor:
        x = x + self.attend(f"{at}.attn", x, heads, window)
        x = self.conv_norm(f"{at}.local_conv", x)
        y = self.norm(f"{at}.mlp.norm", x.permute(0, 2, 3, 1))
        y = self.linear(f"{at}.mlp.fc2", gelu(self.linear(f"{at}.mlp.fc1", y)))
        return x + y.permute(0, 3, 1, 2)

    def attend(self, at: str, x: Tensor, heads: int, window: int) -> Tensor:
        """Window by window; the frame is filled up with zeros at the right and the bottom."""
        (_, width, rows, cols), step = x.shape, window
        padded = pad(x, (0, -cols % step, 0, -rows % step))
        out = torch.zeros_like(padded)
        places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = (places[:, None] - places[None]).abs()
        # the published numbers of distances: in the order in which the first place meets the others
        bias = self.state[f"{at}.attention_biases"][:, apart[..., 0] * window + apart[..., 1]]
        for row in range(0, padded.shape[2], step):
            for col in range(0, padded.shape[3], step):
                cells = padded[:, :, row : row + step, col : col + step].flatten(2).transpose(1, 2)
                mixed = self.linear(f"{at}.qkv", self.norm(f"{at}.norm", cells))
                query, key, value = mixed.unflatten(2, (heads, -1)).transpose(1, 2).chunk(3, dim=3)
                shares = (query @ key.transpose(2, 3) * (width // heads) ** -0.5 + bias).softmax(dim=3)
                seen = self.linear(f"{at}.proj", (shares @ value).transpose(1, 2).flatten(2))
                out[:, :, row : row + step, col : col + step] = seen.transpose(1, 2).unflatten(2, (step, step))
        return out[:, :, :rows, :cols]

    def conv_norm(self, at: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{at}.c.weight"]
        x = conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=x.shape[1] // weight.shape[1])
        names = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(x, *(self.state[f"{at}.bn.{name}"] for name in names))

    def linear(self, at: str, x: Tensor) -> Tensor:
        return linear(x, self.state[f"{at}.weight"], self.state[f"{at}.bias"])

    def norm(self, at: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.state[f"{at}.weight"], self.state[f"{at}.bias"])

    def norm_cells(self, at: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{at}.weight"], self.state[f"{at}.bias"]
        return layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, eps=1e-6).permute(0, 3, 1, 2)


def test_the_encoder_is_the_forward_pass_of_the_published_names(state: State, file: Path) -> None:
    assert {name for name in state if name.startswith("image_encoder.")} == {f"image_encoder.{n}" for n, _ in shapes()}
    network = checkpoint.load_official(file).eval()
    frame = torch.randn(1, 3, 160, 240, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        found, expected = network.image_encoder(frame), Reference(state)(frame)
    assert found.shape == (1, 256, 10, 15)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    halve(network.image_encoder)  # as on a GPU
    with forward("cpu", "bf16"):
        rounded = network.image_encoder(frame).float()
    assert (rounded - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)


def segmenter_of(file: Path, **options: Any) -> Any:
    return loading.load(loading.recipe("segmenter", str(file), device="cpu", **options))


def test_masks_are_those_of_the_predictor(file: Path, image: np.ndarray) -> None:
    predictor = SamPredictor(checkpoint.load_official(file).eval())
    predictor.set_image(image)
    logits, quality, _ = predictor.predict(box=np.array([20.0, 10, 90, 70]), return_logits=True)
    best = int(quality.argmax())
    (masks,) = segmenter_of(file)([image], [Prompts.build(boxes=np.array([[20.0, 10, 91, 71]]))])
    assert masks.candidates.tolist() == [best + 1]
    assert masks.predicted_iou == pytest.approx(quality[best].clip(0, 1), abs=1e-5)
    assert np.abs(masks.scores[0].astype(int) - quantise_logits(logits[best])).max() <= 1
    recipe = loading.recipe("segmenter", str(file), device="cpu")
    (every,) = loading.load(recipe.everything(EVERY_CANDIDATE))(
        [image], [Prompts.build(points=np.array([[[50.0, 40]]]))]
    )
    assert len(every) <= 3


# --- files and names


def test_a_file_is_recognised_and_described(file: Path, tmp_path: Path) -> None:
    described = loading.describe(file)
    assert (described["architecture"], described["parameters"]) == ("mobile-sam", 10_140_204)
    recipe = loading.recipe("segmenter", "mobile-sam", checkpoint=file, device="cpu")
    assert (recipe.source, recipe.architecture) == (str(file), "mobile-sam")
    with pytest.raises(WeightsError, match="holds mobile-sam, but vit_b was requested: give --sam mobile-sam"):
        loading.load(loading.recipe("segmenter", "vit_b", checkpoint=file, device="cpu"))
    damaged = torch.load(file, weights_only=True)
    del damaged["image_encoder.neck.2.weight"]
    torch.save(damaged, tmp_path / "damaged.pt")
    with pytest.raises(WeightsError, match=r"1 of \d+ are missing, unknown or of another shape"):
        segmenter_of(tmp_path / "damaged.pt")


def test_a_download_has_a_published_hash() -> None:
    (network,) = registry.lookup("mobile-sam")
    assert network.sha256 is not None
    assert network.url is not None
    assert "/f706ad9c4eb7f219c00d9050e46328518ffb65d2/" in network.url  # of one commit
    with pytest.raises(OptionError, match="no graph of the segmenter"):
        loading.with_engine(loading.SegmenterRecipe("mobile.pt"), "onnx")
