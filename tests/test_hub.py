"""Networks in folders: on this disk, or in the cache of the Hugging Face hub, which is never asked here."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from geolabel.cli.inputs import SEGMENTER
from geolabel.errors import OptionError, WeightsError
from geolabel.models import hub, loading, registry
from geolabel.parts import SegmenterRecipe

MODEL, COMMIT = "owner/model-1.5", "0123456789abcdef0123456789abcdef01234567"


def write_folder(folder: Path, kind: str = "net") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub, as its library lays it out, with the model in it; the network is out of reach."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("GEOLABEL_OFFLINE", "1")
    return put(tmp_path / "hub")


def put(root: Path) -> Path:
    made = write_folder(root / "made")
    kept = root / f"models--{MODEL.replace('/', '--')}"
    snapshot = kept / "snapshots" / COMMIT
    for part in (snapshot, kept / "blobs", kept / "refs"):
        part.mkdir(parents=True)
    (kept / "refs/main").write_text(COMMIT)
    for file in sorted(made.iterdir()):
        blob = kept / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name-2.1@refs/pr/3", ("owner/name-2.1", "refs/pr/3")),
        ("./folder/name", None),
        ("../name", None),
        ("/owner/name", None),
        ("a/b/c", None),
        ("bundled", None),
        ("weights/sam.pth", None),
        ("owner/model.safetensors", None),
        ("owner/path", ("owner/path", None)),
    ],
)
def test_names_of_models_of_the_hub_are_no_paths(text: str, expected: tuple[str, str | None] | None) -> None:
    assert hub.parse_id(text) == expected


def test_the_digest_of_a_folder_changes_with_its_weights_and_config_alone(tmp_path: Path) -> None:
    one, other = write_folder(tmp_path / "one"), write_folder(tmp_path / "other")
    (other / "README.md").write_text("not read")
    first = hub.digest(one)
    lines = [
        f"{name} {hashlib.sha256((one / name).read_bytes()).hexdigest()}\n"
        for name in ("config.json", "model.safetensors")
    ]
    assert first == hub.digest(other) == hashlib.sha256("".join(lines).encode()).hexdigest()
    (other / "preprocessor_config.json").write_text("{}")
    assert hub.digest(other) != first
    save_file({"a": np.ones((2, 3), np.float32)}, one / "model.safetensors")
    assert hub.digest(one) != first


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(tmp_path: Path, gone: str) -> None:
    folder = write_folder(tmp_path / "net")
    (folder / gone).unlink()
    with pytest.raises(WeightsError, match=rf"is not a network in the format of transformers: {gone} missing"):
        hub.digest(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, gone: str) -> None:
    folder = write_folder(tmp_path / "net")
    (folder / gone).unlink()
    os.mkfifo(folder / gone)
    with pytest.raises(WeightsError, match=rf"{gone} missing"):
        hub.digest(folder)


def test_weights_in_parts_are_whole_only_with_all_of_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "net")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert hub.missing(folder) == ["model.safetensors"]
    save_file({"c": np.zeros(5, np.float32)}, folder / "model-00002-of-00002.safetensors")
    assert hub.missing(folder) == []
    assert hub.count_parameters(folder) == 2 * 3 + 4 + 5


def test_pickled_weights_are_not_seen(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "net")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="with weights as safetensors"):
        loading.recipe("segmenter", str(folder), device="cpu")


def test_a_model_in_the_cache_is_named_with_its_commit(cache: Path) -> None:
    recipe = loading.recipe("segmenter", MODEL, device="cpu")
    assert recipe.source == f"{MODEL}@{COMMIT}"
    assert recipe.sha256 == hub.digest(cache)
    assert loading.file_of(recipe) == cache
    assert hub.find("owner/other") is None


@pytest.mark.usefixtures("cache")
def test_a_name_that_no_model_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"owner/na\.\.me is not in the hub's cache"):
        loading.recipe("segmenter", "owner/na..me", device="cpu")
    monkeypatch.delenv("GEOLABEL_OFFLINE")
    with pytest.raises(WeightsError, match=r"owner/na\.\.me cannot be downloaded from the hub"):
        loading.recipe("segmenter", "owner/na..me", device="cpu")


def test_a_model_that_is_not_here_names_the_ways_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"owner/other is not in the hub's cache.*hf download.*--sam FOLDER"):
        loading.recipe("segmenter", "owner/other", device="cpu")
    monkeypatch.delenv("GEOLABEL_OFFLINE")

    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    class Refused(GatedRepoError):
        def __init__(self) -> None:
            Exception.__init__(self, "401")

    def refuse(**_: object) -> str:
        raise Refused

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        WeightsError, match=r"^owner/other is gated: request access at https://\S+/owner/other, run"
    ) as e:
        loading.recipe("segmenter", "owner/other", device="cpu")
    assert "\n" not in str(e.value)


def test_a_folder_that_has_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    recipe = loading.recipe("segmenter", str(write_folder(tmp_path / "net")), device="cpu")
    assert isinstance(recipe, SegmenterRecipe)
    with pytest.raises(WeightsError, match="holds a network of type 'net', which geolabel does not run"):
        loading.load(recipe)
    save_file({"a": np.ones((2, 3), np.float32)}, tmp_path / "net/model.safetensors")
    with pytest.raises(WeightsError, match=r"the run was planned with .*: plan it again"):
        loading.load(recipe)


def test_a_file_of_the_cache_is_checked_against_the_hash_of_the_hub(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = registry.Published("tiny", "segmenter", "", "", "MIT", hub=MODEL, size=40, window=64)
    monkeypatch.setattr(registry, "PUBLISHED", (*registry.PUBLISHED, network))
    assert registry.find(network) == registry.fetch(network) == network.path == cache
    assert registry.verify(network) == hub.digest(cache)
    assert loading.recipe("segmenter", "tiny", device="cpu").source == f"{MODEL}@{COMMIT}"
    with pytest.raises(OptionError, match=r"--sam-checkpoint a.pth: tiny is a folder: give --sam FOLDER"):
        loading.recipe("segmenter", "tiny", checkpoint="a.pth")
    save_file({"a": np.ones((2, 3), np.float32)}, (cache / "model.safetensors").resolve())
    with pytest.raises(WeightsError, match="the hub sent"):
        registry.verify(network)


@pytest.mark.parametrize("text", ["[]", "{}", '{"model_type": 3}', "{", '{"model_type": "' + "x" * (1 << 20) + '"}'])
def test_a_config_that_names_no_network_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path / "net")
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config.json does not describe a network"):
        hub.read_config(folder)


def test_a_damaged_file_of_weights_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "net")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-3])
    with pytest.raises(WeightsError, match="is not a complete safetensors file"):
        hub.describe(folder)


def test_a_folder_is_described(tmp_path: Path) -> None:
    described = hub.describe(write_folder(tmp_path / "net", "sam9"))
    assert (described["parameters"], described["architecture"], described["kind"]) == (10, "sam9", "segmenter")


def test_the_option_takes_names_folders_and_models_of_the_hub(tmp_path: Path) -> None:
    for text in ("bundled", "vit_b", "owner/name@abc", str(tmp_path)):
        assert SEGMENTER.convert(text, None, None) == text
    with pytest.raises(WeightsError, match="there is no such file"):
        SEGMENTER.convert(str(tmp_path / "gone"), None, None)
