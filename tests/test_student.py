"""Students: their loss, their training in miniature, what they say of chips, and what stops them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss

from geolabel.cli.main import run
from geolabel.datasets.chips import PaintedChips, read_painted
from geolabel.datasets.pseudo_labels import PseudoLabels, PseudoLabelWriter
from geolabel.errors import ChipError, OptionError, TrainingError, WeightsError
from geolabel.extraction.request import Networks
from geolabel.labels import IGNORE, LabelMap
from geolabel.models import registry
from geolabel.models.cam import DenseLocalizer
from geolabel.models.checkpoint import load_checkpoint, load_own, read_info
from geolabel.models.nets import build
from geolabel.models.nets.student import ResUNet, zoomed_probabilities
from geolabel.models.nets.trunk import IMAGENET_MEAN, IMAGENET_STD, load_trunk
from geolabel.parts import Localizer
from geolabel.training.first_weights import TIMM, load_bundled_trunk, load_imagenet_trunk
from geolabel.training.fit import Schedule
from geolabel.training.image_labels import Learning
from geolabel.training.presets import MODELS, STUDENTS
from geolabel.training.samples import Cropping
from geolabel.training.students import (
    FILE,
    StudentLosses,
    StudentObjective,
    StudentRequest,
    overlap_loss,
    segmentation_loss,
)
from geolabel.training.train import train

CPU = Networks(device="cpu")
CLASSES = ("background", "landslide")

SMALL = replace(
    STUDENTS["cpu"],
    architectures={"resunet": {"name": "resunet", "widths": [16, 32]}},
    epochs=20,
    batch=4,
    cropping=Cropping(64, strength=0.0),
    schedule=Schedule(rate=1e-2, average=0.0, evaluations=2, fall="poly"),
)


@dataclass(frozen=True)
class One:
    image: np.ndarray
    values: np.ndarray


class Painted:
    """Dark noise with a bright square; the square is the landslide."""

    classes = CLASSES

    def __init__(self, count: int = 10) -> None:
        self.names = tuple(f"chip{k}" for k in range(count))

    @property
    def shown(self) -> np.ndarray:
        return np.ones(len(self), bool)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> One:
        rng = np.random.default_rng(index)
        height, width = 64 + 4 * index, 80
        image = rng.integers(0, 90, (height, width, 3)).astype(np.uint8)
        values = np.zeros((height, width), np.uint8)
        row, col = rng.integers(0, (height - 24, width - 24))
        values[row : row + 24, col : col + 24] = 1
        image[values == 1] += 120
        values[:2] = IGNORE
        return One(image, values)


class Unshown(Painted):
    """Images in which nobody has found anything."""

    @property
    def shown(self) -> np.ndarray:
        return np.zeros(len(self), bool)


def write_pseudo_labels(folder: Path, painted: Painted) -> Path:
    writer = PseudoLabelWriter(folder, CLASSES, {"method": "apsam", "images": {"gsd_m": 0.5}})
    for k, name in enumerate(painted.names):
        one = painted[k]
        writer.write(name, one.image, LabelMap(one.values, np.ones(one.values.shape, np.float32), CLASSES))
    writer.finish(painted.names)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("student")
    figures = train(Painted(), out, StudentRequest("resunet", gsd=0.5), networks=CPU, preset=SMALL)
    assert figures["score"] > 0.8
    return out / FILE


def test_the_loss_is_the_mean_over_pixels_that_are_not_ignored():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 5))
    values = rng.integers(0, 3, (2, 4, 5))
    values[0, :2] = IGNORE
    probability = torch.tensor(logits).softmax(dim=1).permute(0, 2, 3, 1).numpy()
    expected = log_loss(values[values != IGNORE], probability[values != IGNORE], labels=[0, 1, 2])
    assert float(segmentation_loss(torch.tensor(logits), torch.tensor(values))) == pytest.approx(expected)


def test_an_image_of_which_nothing_is_known_teaches_nothing():
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 3, 3), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_the_overlap_is_that_of_classes_and_not_of_pixels():
    # two images of four pixels: class 1 has two of the known ones, given 0.8 and 0.4, and 0.2 of another
    chance = torch.tensor([[0.8, 0.2], [0.1, 0.4]])[None, :, :]
    values = torch.tensor([[[1, 0], [0, 1]]])
    logits = torch.stack([torch.log(1 - chance), torch.log(chance)], dim=1)
    expected = 1 - (2 * (0.8 + 0.4) + 1) / (1.5 + 2 + 1)
    assert float(overlap_loss(logits, values)) == pytest.approx(expected)
    unknown = torch.cat([values, torch.full_like(values, IGNORE)])
    assert float(overlap_loss(torch.cat([logits, logits]), unknown)) == pytest.approx(expected)
    nowhere = torch.zeros_like(values)
    sure = torch.stack([torch.full((1, 2, 2), 50.0), torch.full((1, 2, 2), -50.0)], dim=1)
    assert float(overlap_loss(sure, nowhere)) == pytest.approx(0, abs=1e-6)
    assert torch.autograd.gradcheck(lambda x: overlap_loss(x, values), logits.double().requires_grad_(), atol=1e-3)


class Rare(Painted):
    """Every fourth image shows a square; it is large, and the square small."""

    @property
    def shown(self) -> np.ndarray:
        return np.arange(len(self)) % 4 == 0

    def __getitem__(self, index: int) -> One:
        image, values = np.zeros((300, 300, 3), np.uint8), np.zeros((300, 300), np.uint8)
        if index % 4 == 0:
            values[7 * index : 7 * index + 9, 200:209] = 1
        return One(image, values)


def test_half_of_the_crops_hold_what_is_rare():
    rare = Rare(16)
    learning = Learning(Cropping(32, strength=0.0), 4, (0.0,) * 3, (1.0,) * 3)
    losses = StudentLosses(ResUNet(classes=2, widths=[16, 32]), rare.names)
    balanced = StudentObjective(losses, rare, rare, learning, shown=0.5)
    batches = [balanced.batch(step) for step in range(6)]
    shows = np.stack([(batch["values"] == 1).flatten(1).any(1).numpy() for batch in batches])
    assert shows.tolist() == [[True, True, False, False]] * 6
    index = np.concatenate([batch["index"].numpy()[:2] for batch in batches])
    assert np.bincount(index, minlength=13)[::4].tolist() == [3, 3, 3, 3]
    others = np.concatenate([batch["index"].numpy()[2:] for batch in batches])
    assert len(set(others.tolist())) == 12
    anywhere = StudentObjective(losses, rare, rare, learning)
    seen = [bool((anywhere.batch(step)["values"] == 1).any()) for step in range(6)]
    assert not all(seen)


def test_the_bundled_student_begins_with_the_trunk_of_the_bundled_localizer(tmp_path: Path):
    figures = train(Painted(), tmp_path, StudentRequest("bundled", steps=2, batch=2, size=64), networks=CPU)
    assert figures["steps"] == 2
    info = read_info(tmp_path / FILE)
    path = registry.fetch(registry.lookup("bundled", "localizer")[0])
    localizer, known = load_own(path, "localizer")
    assert (info.mean, info.std) == (known.mean, known.std)
    network = build({**STUDENTS["cpu"].architectures["bundled"], "classes": 2})
    facts = load_bundled_trunk(network)["init"]
    trunk = localizer.trunk.state_dict()
    assert info.trained["init"] == facts
    assert facts["tensors"] == len(trunk)
    assert all(torch.equal(tensor, trunk[name]) for name, tensor in network.down.state_dict().items())
    images = torch.zeros(1, 3, 64, 96)
    assert network.eval()(images).shape == (1, 2, 64, 96)


def test_a_student_begins_with_a_trunk_that_saw_photographs(tmp_path: Path):
    request = StudentRequest("imagenet", steps=2, batch=2, size=64)
    assert train(Painted(), tmp_path, request, networks=CPU)["steps"] == 2
    info = read_info(tmp_path / FILE)
    assert (info.mean, info.std) == (IMAGENET_MEAN, IMAGENET_STD)
    trunk = load_trunk("lite0")
    assert info.trained["init"] == {"share": "backbone", "weights": "ImageNet, lite0", "tensors": len(trunk)}
    network = build({**STUDENTS["cpu"].architectures["imagenet"], "classes": 2})
    load_imagenet_trunk(network, "lite0")
    assert all(torch.equal(tensor, trunk[name]) for name, tensor in network.down.state_dict().items())
    assert network.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64, 96)


def test_students_begin_with_imagenet_unless_the_paper_is_followed():
    assert StudentRequest().architecture == "imagenet"
    assert StudentRequest(preset="paper").architecture == "resunet"
    assert StudentRequest("unet", preset="paper").architecture == "unet"


def test_a_head_that_is_taken_over_lies_on_the_trunk_of_the_model(tmp_path: Path):
    first = StudentRequest("imagenet", steps=2, batch=2, size=64)
    train(Painted(), tmp_path, first, networks=CPU)
    request = replace(first, init=("head", tmp_path / FILE))
    architecture = request.numbers.architectures["imagenet"] | {"classes": 2}
    network, _ = request._network(architecture)
    told = request._load_first_weights(network, architecture, tuple(Painted().classes))
    assert told["init"]["trunk"]["weights"] == "ImageNet, lite0"
    trunk, taken = load_trunk("lite0"), load_checkpoint(tmp_path / FILE)[0]
    assert all(torch.equal(tensor, trunk[name]) for name, tensor in network.down.state_dict().items())
    assert torch.equal(network.head.weight.half(), taken["head.weight"].half())


@pytest.mark.parametrize("model", ["unet", "upernet"])
def test_an_encoder_begins_with_the_weights_of_a_file(model: str, tmp_path: Path):
    described = {"name": "smp", "model": "unet", "encoder": "resnet18", "classes": 2}
    encoder = build(described).network.encoder.state_dict()
    torch.save(encoder | {"fc.weight": torch.zeros(1)}, tmp_path / "resnet18.pth")
    request = StudentRequest(model, init_weights=tmp_path / "resnet18.pth", steps=2, batch=2, size=64)
    architecture = request.numbers.architectures[model] | {"classes": 2}
    network, norm = request._network(architecture)
    assert norm == TIMM
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in network.network.encoder.state_dict().items())
    train(Painted(), tmp_path, request, networks=CPU)
    info = read_info(tmp_path / FILE)
    assert (info.mean, info.std) == TIMM
    assert info.architecture == architecture  # another reads it without the file
    assert info.trained["init"] == {"share": "backbone", "weights": "ImageNet, resnet18"}


def test_the_library_s_weights_are_fetched_by_name(monkeypatch: pytest.MonkeyPatch):
    import segmentation_models_pytorch as smp

    asked = []
    monkeypatch.setattr(smp, "Unet", lambda encoder, **given: asked.append((encoder, given)) or torch.nn.Identity())
    request = StudentRequest("unet", init_weights="imagenet")
    request._network(request.numbers.architectures["unet"] | {"classes": 2})
    assert asked == [("resnet18", {"encoder_weights": "imagenet", "in_channels": 3, "classes": 2})]


def test_weights_that_cannot_be_fetched_are_said(monkeypatch: pytest.MonkeyPatch):
    import segmentation_models_pytorch as smp

    def unconnected(*_: object, **__: object) -> None:
        raise FileNotFoundError("Please check your connection")

    monkeypatch.setattr(smp, "Unet", unconnected)
    request = StudentRequest("unet", init_weights="imagenet")
    with pytest.raises(WeightsError, match=r"resnet18 could not be downloaded .*connection.* give their file"):
        request._network(request.numbers.architectures["unet"] | {"classes": 2})
    monkeypatch.setenv("GEOLABEL_OFFLINE", "1")
    with pytest.raises(WeightsError, match="forbids downloading ImageNet weights of resnet18"):
        request._network(request.numbers.architectures["unet"] | {"classes": 2})


def test_students_with_weights_of_their_own_take_no_others(tmp_path: Path):
    for model in ("resunet", "bundled", "imagenet"):
        with pytest.raises(OptionError, match=f"the model {model} starts from other weights"):
            train(Painted(), tmp_path, StudentRequest(model, init_weights="imagenet"), networks=CPU)
    both = StudentRequest("unet", init_weights="imagenet", init=("overall", "other.safetensors"))
    with pytest.raises(OptionError, match="--init overall starts from other weights"):
        train(Painted(), tmp_path, both, networks=CPU)


def test_a_loss_that_is_no_number_names_the_images():
    network = ResUNet(classes=2, widths=[16, 32])
    network.head.bias.data[:] = torch.nan
    losses = StudentLosses(network, ("first", "second"))
    with pytest.raises(TrainingError, match="nan on the images second, first"):
        losses(torch.tensor([1, 0]), torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long))


def test_batches_are_crops_with_their_labels():
    painted = Painted()
    learning = Learning(Cropping(32, strength=0.0), 4, (0.0,) * 3, (1.0,) * 3)
    objective = StudentObjective(
        StudentLosses(ResUNet(classes=2, widths=[16, 32]), painted.names), painted, painted, learning
    )
    batch = objective.batch(3)
    assert batch["images"].shape == (4, 3, 32, 32)
    known = batch["values"] != IGNORE
    bright = batch["images"].mean(dim=1) > 100
    torch.testing.assert_close((batch["values"] == 1)[known], bright[known])
    torch.testing.assert_close(objective.batch(3)["values"], batch["values"])


def test_a_student_finds_what_it_was_shown(trained: Path):
    network, info = load_own(trained, "student")
    assert (info.classes, info.stride, info.gsd_range) == (CLASSES, 1, (0.5, 0.5))
    locate = DenseLocalizer(network, info, zoom=info.zoom)
    part: Localizer = locate
    assert part.classes == ("landslide",)
    new = Painted(14)[13]
    labels = locate.label(new.image)
    known = new.values != IGNORE
    hit = (labels.values == 1) & (new.values == 1) & known
    assert hit.sum() / (((labels.values == 1) | (new.values == 1)) & known).sum() > 0.8
    (activation,) = locate([new.image])
    np.testing.assert_array_equal(activation.values[0] > 0.5, labels.values == 1)
    assert activation.probability[0] == activation.values.max()


def test_images_are_seen_enlarged_and_answered_at_their_own_size():
    network = ResUNet(classes=3, widths=[16, 32]).eval()
    images = torch.randn(1, 3, 37, 50)
    with torch.no_grad():
        found = zoomed_probabilities(network, images, 0.5)
        whole = zoomed_probabilities(network, images[..., :32, :32], 1.0)
    assert found.shape == (1, 3, 37, 50)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, 37, 50))
    torch.testing.assert_close(whole, network(images[..., :32, :32]).softmax(dim=1).detach())


def test_a_small_image_is_seen_in_the_middle_of_its_mirror_images():
    network = ResUNet(classes=2, widths=[16, 32]).eval()
    image = torch.randn(1, 3, 20, 70)
    with torch.no_grad():
        found = zoomed_probabilities(network, image, 1.0, window=48)
        # NumPy's symmetric padding repeats the outermost pixels, as crops of chips do
        around = np.pad(image.numpy(), ((0, 0), (0, 0), (14, 14), (0, 0)), mode="symmetric")
        whole = network(torch.from_numpy(around)).softmax(dim=1)
    torch.testing.assert_close(found, whole[..., 14:34, :])


def test_batches_of_chips_are_padded(trained: Path):
    network, info = load_own(trained, "student")
    images = [Painted()[0].image] * 3
    one = DenseLocalizer(network, info, batch=1)(images)
    two = DenseLocalizer(network, info, batch=2)(images)
    assert len(one) == len(two) == 3
    np.testing.assert_allclose(one[2].values, two[2].values, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_model_trains(model: str, tmp_path: Path):
    preset = replace(STUDENTS["cpu"], cropping=Cropping(64, strength=0.0), batch=2)
    request = StudentRequest(model=model, epochs=0.1)
    figures = train(Painted(), tmp_path, request, networks=CPU, preset=preset)
    assert figures["steps"] >= 2
    assert read_info(tmp_path / FILE).trained["model"] == model


def test_pseudo_labels_and_masks_are_read_alike(tmp_path: Path):
    painted = Painted(3)
    pseudo = read_painted(write_pseudo_labels(tmp_path / "pseudo", painted))
    assert isinstance(pseudo, PseudoLabels)
    for folder in ("images", "masks"):
        (tmp_path / "chips" / folder).mkdir(parents=True)
    for k, name in enumerate(painted.names):
        Image.fromarray(painted[k].image).save(tmp_path / "chips/images" / f"{name}.png")
        Image.fromarray(painted[k].values % IGNORE * 255).save(tmp_path / "chips/masks" / f"{name}.png")
    rows = "".join(f"images/{name}.png,1\n" for name in painted.names)
    (tmp_path / "chips/labels.csv").write_text("image,label\n" + rows)
    chips = read_painted(tmp_path / "chips")
    assert isinstance(chips, PaintedChips)
    assert tuple(pseudo.names) == chips.names
    for k in range(3):
        np.testing.assert_array_equal(pseudo[k].image, chips[k].image)
        np.testing.assert_array_equal(pseudo[k].values % IGNORE, chips[k].values)
    (tmp_path / "chips/masks/chip1.png").unlink()
    with pytest.raises(ChipError, match=r"1 of 3 chips that show something have no mask, such as .*chip1"):
        read_painted(tmp_path / "chips")


def test_the_command_line_trains_and_extracts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pseudo = write_pseudo_labels(tmp_path / "pseudo", Painted(6))
    words = ["train", "student", str(pseudo), "--out", str(tmp_path / "out"), "-q", "--device", "cpu"]
    more = ["--epochs", "0.3", "--crops", "2", "--size", "64", "--share", "0.9", "--test", str(pseudo), "--json"]
    assert run([*words, *more]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["student"].endswith("student.safetensors")
    assert 0 <= told["iou"] <= told["f1"] <= 1
    assert read_info(tmp_path / "out" / FILE).trained["share"] == 0.9
    assert read_info(tmp_path / "out" / FILE).trained["labels"] == "apsam"
    assert run(words) == 1
    assert "exists" in capsys.readouterr().err


def test_a_plain_training_has_neither_overlap_nor_balance():
    usual, plain = StudentRequest().numbers, StudentRequest(plain=True).numbers
    assert (usual.overlap, usual.shown) == (1.0, 0.5)
    assert plain == replace(usual, overlap=0.0, shown=0.0)
    assert StudentRequest(preset="paper").numbers == StudentRequest(preset="paper", plain=True).numbers


def test_a_detector_has_no_plain_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "images").mkdir()
    images, out = str(tmp_path / "images"), str(tmp_path / "out")
    assert run(["train", "student", images, "--model", "maskrcnn", "--plain", "--out", out]) == 2
    assert "--plain" in capsys.readouterr().err


def test_a_detector_takes_no_weights_of_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images, out = str(tmp_path / "images"), str(tmp_path / "out")
    (tmp_path / "images").mkdir()
    command = ["train", "student", images, "--model", "maskrcnn", "--init-weights", "imagenet", "--out", out]
    assert run(command) == 2
    assert "--init-weights" in capsys.readouterr().err


def test_students_that_cannot_be(tmp_path: Path, trained: Path):
    with pytest.raises(OptionError, match="crops of 100 px"):
        train(Painted(), tmp_path, StudentRequest(size=100), networks=CPU)
    with pytest.raises(OptionError, match="one crop a step"):
        train(Painted(), tmp_path, StudentRequest(batch=1), networks=CPU)
    with pytest.raises(ChipError, match="no images to learn from"):
        train(Painted(0), tmp_path, StudentRequest(), networks=CPU)
    with pytest.raises(ChipError, match="none of 2 label maps shows anything but background"):
        train(Unshown(2), tmp_path, StudentRequest(), networks=CPU)
    other_classes = Painted(2)
    other_classes.classes = ("background", "lake")
    with pytest.raises(ChipError, match="the test shows background, lake, the training background, landslide"):
        train(Painted(), tmp_path, StudentRequest(), test=other_classes, networks=CPU)
    other = replace(SMALL, architectures={"resunet": {"name": "resunet", "widths": [16, 48]}}, epochs=1)
    with pytest.raises(WeightsError, match="state of another training"):
        train(Painted(), trained.parent, StudentRequest("resunet"), networks=CPU, preset=other, resume=True)
