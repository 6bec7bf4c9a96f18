"""Networks by name and by file: found, fetched, verified, loaded; and files that are not what they claim to be."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import segment_anything
import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from geolabel.cli.main import run
from geolabel.errors import OptionError, WeightsError
from geolabel.io import downloads
from geolabel.models import checkpoint, loading, registry
from geolabel.models.checkpoint import NetworkInfo, save_checkpoint
from geolabel.models.nets import build
from geolabel.prompts import Prompts

LOCALIZER = NetworkInfo(
    kind="localizer",
    architecture={"name": "pyramid", "classes": 1, "widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "features": 8},
    classes=("landslide",),
    window=64,
    stride=8,
    gsd_range=(0.2, 30.0),
    mean=(120.0, 110.0, 100.0),
    std=(50.0, 55.0, 60.0),
    constant=0.5,
)
SEGMENTER = NetworkInfo(
    kind="segmenter",
    architecture={
        "name": "sam",
        "img_size": 64,
        "widths": [8, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "embed_dim": 32,
        "decoder_depth": 1,
        "heads": 2,
        "mlp_dim": 16,
        "pixel_mean": [120, 110, 100],
        "pixel_std": [50, 50, 50],
    },
    classes=("landslide",),
    window=64,
    stride=4,
    gsd_range=(0.3, 20.0),
    mean=(120.0, 110.0, 100.0),
    std=(50.0, 50.0, 50.0),
)


def tiny_vit() -> Sam:
    """What stands in for an official network: the same modules, 32 channels wide."""
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    encoder = ImageEncoderViT(img_size=64, embed_dim=32, depth=1, num_heads=2, out_chans=32, norm_layer=norm)
    transformer = TwoWayTransformer(depth=1, embedding_dim=32, mlp_dim=16, num_heads=2)
    decoder = MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=8)
    return Sam(encoder, PromptEncoder(32, (4, 4), (64, 64), 4), decoder)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with one good file of each kind; vit_b and vit_l stand for tiny networks."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "localizer.safetensors", build(LOCALIZER.architecture), LOCALIZER)
    save_checkpoint(tmp_path / "segmenter.safetensors", build(SEGMENTER.architecture), SEGMENTER)
    torch.save(tiny_vit().state_dict(), tmp_path / "vit.pth")
    monkeypatch.setattr(checkpoint, "SAM_WIDTHS", {32: "vit_b", 48: "vit_l"})
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", tiny_vit)
    return tmp_path


class Server:
    """A web server on the loopback that sends `content`, or `status`, or less than it promised."""

    def __init__(self) -> None:
        self.content, self.status, self.promised, self.requests = b"", 200, None, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                self.send_response(outer.status)
                self.send_header("Content-Length", str(outer.promised or len(outer.content)))
                self.end_headers()
                self.wfile.write(outer.content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"


@pytest.fixture
def server():
    served = Server()
    thread = threading.Thread(target=served.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.http.shutdown()
    served.http.server_close()
    thread.join()


@pytest.fixture
def published(files, server, monkeypatch):
    """vit_b as published by the loopback server, with an empty cache."""
    server.content = (files / "vit.pth").read_bytes()
    network = registry.Published(
        "vit_b",
        "segmenter",
        "sam_vit_b.pth",
        "a tiny one",
        "Apache-2.0",
        server.url + "sam_vit_b.pth",
        len(server.content),
        hashlib.sha256(server.content).hexdigest(),
    )
    kept = tuple(p for p in registry.PUBLISHED if p.name != "vit_b")
    monkeypatch.setattr(registry, "PUBLISHED", (*kept, network))
    monkeypatch.setenv("GEOLABEL_CACHE", str(files / "cache"))
    monkeypatch.delenv("GEOLABEL_OFFLINE", raising=False)
    return network


def left_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# -- the registry ------------------------------------------------------------------------------------------------------


def test_the_official_files_are_those_of_segment_anything():
    official = [p for p in registry.PUBLISHED if p.url is not None and p.name in checkpoint.SAM_WIDTHS.values()]
    sizes = {p.filename: (p.size, p.sha256[:6]) for p in official}
    assert sizes == {
        "sam_vit_h_4b8939.pth": (2564550879, "a7bf3b"),
        "sam_vit_l_0b3195.pth": (1249524607, "3adcc4"),
        "sam_vit_b_01ec64.pth": (375042383, "ec2df6"),
    }
    for network in official:
        assert network.url == f"https://dl.fbaipublicfiles.com/segment_anything/{network.filename}"


def test_official_networks_are_told_apart_by_their_tensors(tmp_path):
    for name in checkpoint.SAM_WIDTHS.values():
        with torch.device("meta"):
            state = segment_anything.sam_model_registry[name]().state_dict()
        assert checkpoint.official_name(state, tmp_path) == name


def test_a_name_may_stand_for_two_roles():
    assert [p.role for p in registry.lookup("bundled")] == ["localizer", "segmenter"]
    assert [p.role for p in registry.lookup("bundled", "segmenter")] == ["segmenter"]
    assert registry.lookup("bundled")[0].path.parent.name == "weights"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        WeightsError, match="no localizer is called 'vit_b': known are bundled, bundled-weak, sam3; or give a file"
    ):
        registry.lookup("vit_b", "localizer")
    with pytest.raises(
        WeightsError, match=r"is called 'mobilesam': did you mean mobile-sam\? Known are bundled, vit_b"
    ):
        registry.lookup("mobilesam", "segmenter")


def test_the_cache_is_the_users_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("GEOLABEL_CACHE", raising=False)
    assert registry.cache_folder().name == "geolabel"
    monkeypatch.setenv("GEOLABEL_CACHE", str(tmp_path))
    assert registry.cache_folder() == tmp_path


# -- downloads ---------------------------------------------------------------------------------------------------------


def test_fetch_downloads_once(published, server, files):
    assert registry.find(published) is None
    path = registry.fetch(published)
    assert path == registry.find(published) == files / "cache" / "sam_vit_b.pth"
    assert path.read_bytes() == server.content
    assert registry.fetch(published) == path
    assert server.requests == 1
    assert registry.verify(published) == published.sha256
    assert left_in(files / "cache") == ["sam_vit_b.pth"]


def test_a_file_of_another_size_is_fetched_again(published, server):
    published.path.parent.mkdir()
    published.path.write_bytes(b"half a file")
    assert registry.find(published) is None
    assert registry.fetch(published).read_bytes() == server.content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": b"<html>"}, "sent 6 bytes instead of"),
        ({"promised": 10**6}, "could not be downloaded"),  # the connection ends early
        ({"status": 404}, "404"),
    ],
)
def test_a_download_that_fails_leaves_nothing(published, server, files, change, message):
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(WeightsError, match=message):
        registry.fetch(published)
    assert left_in(files / "cache") == []


def test_a_download_with_another_hash_leaves_nothing(published, server, files):
    server.content = server.content[:-1] + b"?"
    with pytest.raises(WeightsError, match=f"instead of {published.sha256}"):
        registry.fetch(published)
    assert left_in(files / "cache") == []


def test_a_server_that_is_gone_is_an_error_of_one_line(published, server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(WeightsError, match="could not be downloaded") as caught:
        registry.fetch(published)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("give the file with --sam vit_b --sam-checkpoint FILE")


def test_a_cache_that_cannot_be_made_is_an_error(published, files, monkeypatch):
    (files / "file").write_text("")
    monkeypatch.setenv("GEOLABEL_CACHE", str(files / "file" / "below"))
    with pytest.raises(WeightsError, match="below cannot be made"):
        registry.fetch(published)


def test_offline_names_both_ways_out(published, server, monkeypatch):
    monkeypatch.setenv("GEOLABEL_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"unset it, or get http.*sam_vit_b\.pth on a .* --sam-checkpoint FILE"):
        loading.recipe("segmenter", "vit_b", device="cpu")
    assert server.requests == 0
    monkeypatch.setenv("GEOLABEL_OFFLINE", "0")
    registry.fetch(published)
    monkeypatch.setenv("GEOLABEL_OFFLINE", "yes")
    assert loading.recipe("segmenter", "vit_b", device="cpu").sha256 == published.sha256  # what is here may be used


def test_progress_is_told_of_every_byte(published, server):
    class Bar:
        total, done, closed = 0, 0, False

        def update(self, size):
            self.done += size

        def reset(self):
            self.done = 0

        def close(self):
            self.closed = True

    bar = Bar()
    registry.fetch(published, progress=bar)
    assert bar.total == bar.done == len(server.content)
    assert bar.closed


def test_verify_finds_a_flipped_bit(published):
    path = registry.fetch(published)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    for check in (partial(registry.verify, published), partial(loading.recipe, "segmenter", "vit_b", device="cpu")):
        with pytest.raises(WeightsError, match=f"the published vit_b has {published.sha256}: delete the file"):
            check()


def test_verify_of_what_is_not_here_says_how_to_get_it(published):
    with pytest.raises(WeightsError, match="run geolabel models fetch vit_b"):
        registry.verify(published)


def test_sha256_is_of_the_bytes_and_follows_a_change(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert downloads.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"abcd")
    assert downloads.sha256(path) == hashlib.sha256(b"abcd").hexdigest()
    with pytest.raises(WeightsError, match="cannot be read"):
        downloads.sha256(tmp_path / "none")


# -- recipes and loading -----------------------------------------------------------------------------------------------


def answer(segmenter):
    image = np.random.default_rng(0).integers(0, 256, (48, 40, 3)).astype(np.uint8)
    return segmenter([image], [Prompts.build(boxes=np.array([[4.0, 4, 30, 30]]))])[0]


def test_a_recipe_says_all_that_is_needed_and_pickles(files):
    made = loading.recipe(
        "segmenter", files / "segmenter.safetensors", device="cpu", precision="auto", batch=3, selection="whole"
    )
    digest = hashlib.sha256((files / "segmenter.safetensors").read_bytes()).hexdigest()
    assert (made.source, made.sha256) == (str(files / "segmenter.safetensors"), digest)
    assert (made.device, made.precision, made.batch, made.selection) == ("cpu", "fp32", 3, "whole")
    assert pickle.loads(pickle.dumps(made)) == made
    assert len({made, replace(made)}) == 1


def test_batches_are_of_one_on_the_cpu_unless_told_otherwise(files, monkeypatch):
    path = files / "localizer.safetensors"
    assert loading.recipe("localizer", path, device="cpu").batch == 1
    assert loading.recipe("localizer", path, device="cpu", batch=4).batch == 4
    monkeypatch.setattr("geolabel.devices.count_gpus", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert loading.recipe("localizer", path, device="cuda").batch == 8


def test_a_relative_path_becomes_absolute(files, monkeypatch):
    monkeypatch.chdir(files)
    made = loading.recipe("localizer", "localizer.safetensors", device="cpu")
    assert made.source == str(files / "localizer.safetensors")


def test_a_localizer_loads_from_its_file(files):
    locate = loading.load(loading.recipe("localizer", files / "localizer.safetensors", device="cpu", batch=1))
    assert (locate.window, locate.gsd_range, locate.classes) == (64, (0.2, 30.0), ("landslide",))
    (found,) = locate([np.zeros((64, 64, 3), np.uint8)])
    assert found.values.shape == (1, 8, 8)


def test_normalisation_reaches_the_localizer(files):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = files / "localizer.safetensors"
    for normalisation in ("constant", "maximum"):
        made = loading.recipe("localizer", path, device="cpu", batch=1, normalisation=normalisation)
        (found,) = loading.load(made)([image])
        scale = {"constant": 0.5, "maximum": found.raw_max.max()}[normalisation]
        assert found.values.max() == pytest.approx(np.clip(found.raw_max.max() / scale, 0, 1))


def test_a_segmenter_of_ours_keeps_small_images_as_they_are(files):
    segment = loading.load(loading.recipe("segmenter", files / "segmenter.safetensors", device="cpu", batch=1))
    assert (segment.window, segment.gsd_range) == (64, (0.3, 20.0))
    assert segment._network.resize is None
    assert answer(segment).scores.shape == (1, 48, 40)


def test_a_fetched_network_and_its_file_by_hand_answer_alike(published, files):
    fetched = loading.load(loading.recipe("segmenter", "vit_b", device="cpu", batch=1))
    by_hand = loading.recipe("segmenter", "vit_b", checkpoint=files / "vit.pth", device="cpu", batch=1)
    assert by_hand.architecture == "vit_b"
    assert np.array_equal(answer(fetched).scores, answer(loading.load(by_hand)).scores)
    assert fetched._network.resize is not None


def test_a_checkpoint_without_a_name_is_believed(files):
    made = loading.recipe("segmenter", checkpoint=files / "vit.pth", device="cpu", batch=1)
    assert made.architecture == ""
    assert answer(loading.load(made)).scores.shape == (1, 48, 40)


def test_selection_reaches_the_segmenter(files):
    path = files / "segmenter.safetensors"
    for selection, token in {"first": 1, "whole": 3, "single": 0}.items():
        made = loading.recipe("segmenter", path, device="cpu", batch=1, selection=selection)
        assert answer(loading.load(made)).candidates.tolist() == [token]


def test_a_device_that_is_not_here_is_refused_when_the_run_is_planned(files):
    with pytest.raises(OptionError, match="gpu"):
        loading.recipe("localizer", files / "localizer.safetensors", device="gpu")


def test_a_file_that_changed_since_the_plan_is_refused(files):
    path = files / "localizer.safetensors"
    made = loading.recipe("localizer", path, device="cpu")
    save_checkpoint(path, build(LOCALIZER.architecture), LOCALIZER)
    with pytest.raises(WeightsError, match=f"the run was planned with {made.sha256}"):
        loading.load(made)


class Evil:
    """A pickle that would run a command if it were unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def spoil(files, kind):
    path = files / f"{kind}.bin"
    good = {"own": files / "segmenter.safetensors", "vit": files / "vit.pth"}
    state = torch.load(good["vit"], weights_only=True)
    if kind == "evil":
        path.write_bytes(pickle.dumps(Evil(files / "pwned")))
    elif kind == "evil zip":
        torch.save({"a": Evil(files / "pwned")}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "numbers":
        torch.save({"a": 1}, path)
    elif kind == "other tensors":
        torch.save({"layer.weight": torch.zeros(3)}, path)
    elif kind == "tensors missing":
        torch.save({k: v for k, v in state.items() if "mask_decoder" not in k}, path)
    elif kind == "text":
        path.write_text("no weights at all\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated vit":
        path.write_bytes(good["vit"].read_bytes()[:-2000])
    elif kind == "truncated own":
        path.write_bytes(good["own"].read_bytes()[:-2000])
    elif kind == "foreign safetensors":
        save_file({"a": torch.zeros(2)}, path)
    elif kind == "localizer":
        path.write_bytes((files / "localizer.safetensors").read_bytes())
    elif kind == "posing localizer":
        save_checkpoint(path, build(LOCALIZER.architecture), replace(LOCALIZER, kind="segmenter"))
    elif kind == "unknown architecture":
        save_checkpoint(path, {"a": torch.zeros(1)}, replace(SEGMENTER, architecture={"name": "unet"}))
    elif kind == "other architecture":
        wider = SEGMENTER.architecture | {"widths": [16, 16, 16, 16]}
        save_checkpoint(path, build(SEGMENTER.architecture), replace(SEGMENTER, architecture=wider))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("evil", "damaged or not a weights file"),
        ("evil zip", "damaged or not a weights file"),
        ("list", "holds list instead of named tensors"),
        ("numbers", "holds dict instead of named tensors"),
        ("other tensors", "is not one of the Segment Anything networks vit_b, vit_l"),
        ("tensors missing", "do not fit its network"),
        ("text", "damaged or not a weights file"),
        ("empty", "damaged or not a weights file"),
        ("truncated vit", "damaged or not a weights file"),
        ("truncated own", "not a complete safetensors file"),
        ("foreign safetensors", "has no description"),
        ("localizer", "holds a localizer, but a segmenter is needed"),
        ("posing localizer", "claims to be a segmenter but holds a PyramidLocalizer"),
        ("unknown architecture", "no network is called 'unet'"),
        ("other architecture", "do not fit its network"),
    ],
)
def test_a_file_that_is_not_what_it_claims_is_an_error_of_one_line(files, kind, message):
    path = spoil(files, kind)
    with pytest.raises(WeightsError, match=message) as caught:
        loading.load(loading.recipe("segmenter", path, device="cpu"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not (files / "pwned").exists()


def test_a_file_in_the_old_format_of_torch_loads_too(files):
    state = torch.load(files / "vit.pth", weights_only=True)
    torch.save(state, files / "old.pth", _use_new_zipfile_serialization=False)
    old, new = (loading.recipe("segmenter", files / name, device="cpu", batch=1) for name in ("old.pth", "vit.pth"))
    assert np.array_equal(answer(loading.load(old)).scores, answer(loading.load(new)).scores)


def test_a_file_of_another_official_network_is_refused(files):
    made = loading.recipe("segmenter", "vit_l", checkpoint=files / "vit.pth", device="cpu")
    with pytest.raises(WeightsError, match="holds vit_b, but vit_l was requested: give --sam vit_b"):
        loading.load(made)


@pytest.mark.parametrize("given", [{"name": "none.safetensors"}, {"checkpoint": "none.pth"}])
def test_a_missing_file_is_refused_when_the_run_is_planned(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"none\."):
        loading.recipe("segmenter", device="cpu", **given)


# -- the command -------------------------------------------------------------------------------------------------------


def test_models_list_shows_what_is_here(published, capsys):
    assert run(["models", "list"]) == 0
    assert re.search(r"^vit_b +segmenter ", capsys.readouterr().out, re.MULTILINE)
    registry.fetch(published)
    assert run(["models", "list", "--json"]) == 0
    rows = {(row["name"], row["role"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["vit_b", "segmenter"]["state"] == "here"
    assert rows["vit_b", "segmenter"]["file"] == str(published.path)
    assert rows["vit_h", "segmenter"] | {"file": ""} == {
        "name": "vit_h",
        "role": "segmenter",
        "size": 2564550879,
        "input": 1024,
        "licence": "Apache-2.0",
        "state": "not fetched",
        "file": "",
    }


def test_models_fetch_and_verify(published, capsys):
    assert run(["models", "fetch", "vit_b"]) == 0
    assert str(published.path) in capsys.readouterr().out
    assert run(["models", "fetch", "vit_b", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"name": "vit_b", "role": published.role, "file": str(published.path), "sha256": published.sha256}
    assert run(["models", "verify", "vit_b", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["ok"], row["sha256"]) == (True, published.sha256)


def test_models_verify_exits_with_1_when_a_file_is_damaged(published, capsys):
    path = registry.fetch(published)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert run(["models", "verify", "vit_b"]) == 1
    printed = capsys.readouterr()
    assert "failed" in printed.out
    assert "delete the file and run geolabel models fetch vit_b" in printed.err


def test_models_info_before_and_after_fetching(published, capsys):
    assert run(["models", "info", "vit_b", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["sha256"], row["licence"]) == ("not fetched", published.sha256, "Apache-2.0")
    registry.fetch(published)
    assert run(["models", "info", "vit_b", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["architecture"]) == ("here", "vit_b")
    assert row["parameters"] == sum(v.numel() for v in tiny_vit().state_dict().values())


def test_models_info_of_a_file(files, capsys):
    assert run(["models", "info", str(files / "localizer.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "kind          localizer" in printed
    assert "gsd range     0.2, 30" in printed


def test_models_of_an_unknown_name_is_an_error_of_one_line(capsys):
    assert run(["models", "info", "nope"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
