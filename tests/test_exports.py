"""ONNX files for other programs: what they hold, and that they find what the localizer finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from geolabel.cli.main import run
from geolabel.errors import OptionError, OutputError, WeightsError
from geolabel.models import loading, registry
from geolabel.models.checkpoint import load_checkpoint, save_checkpoint
from geolabel.models.engines import graph_files
from geolabel.models.exports import export_onnx
from geolabel.synthetic import synthesize

FILES = {role: registry.lookup("bundled", role)[0].path for role in ("localizer", "segmenter")}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "slides.onnx"
    export_onnx(FILES["localizer"], out, threshold=120, tile=256, gsd=0.5)
    return out


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_the_highest_score_is_the_landslides_where_activation_exceeds_its_threshold(exported: Path) -> None:
    image = synthesize(256, seed=900_108).rgb
    (found,) = loading.load(loading.recipe("localizer", device="cpu"))([image])
    (scores,) = session(exported).run(None, {"rgb": np.moveaxis(image, 2, 0)[None] / np.float32(255)})
    assert scores.shape == (1, 2, 256, 256)
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-6)
    expected = found.grey(0) > 120
    assert 0 < expected.mean() < 1
    assert ((scores[0].argmax(axis=0) == 1) == expected).mean() > 0.995


def test_it_says_of_itself_what_deepness_and_geodeep_ask_for(exported: Path) -> None:
    facts = {key: json.loads(text) for key, text in session(exported).get_modelmeta().custom_metadata_map.items()}
    assert facts.pop("geolabel")["kind"] == "localizer"
    assert facts == {
        "model_type": "Segmentor",
        "class_names": {"0": "background", "1": "landslide"},
        "resolution": 50.0,
        "tile_size": 256,
        "tiles_size": 256,
        "tiles_overlap": 25,
        "seg_thresh": 0.5,
        "seg_small_segment": 3,
        "standardization_mean": [0.0, 0.0, 0.0],
        "standardization_std": [1.0, 1.0, 1.0],
    }
    (given,), (answered,) = session(exported).get_inputs(), session(exported).get_outputs()
    assert (given.shape, answered.shape) == ([1, 3, 256, 256], [1, 2, 256, 256])


def test_it_needs_no_other_file(exported: Path) -> None:
    model = onnx.load_model(exported, load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tile": 500}, "tile size 500 px: give a multiple of 32 px"),
        ({"gsd": 50.0}, "gsd 50.0 m: the localizer supports"),
    ],
)
def test_what_the_localizer_cannot_see_is_refused(tmp_path: Path, given: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        export_onnx(FILES["localizer"], tmp_path / "x.onnx", threshold=120, **given)


def test_a_segmenter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds a segmenter"):
        export_onnx(FILES["segmenter"], tmp_path / "x.onnx", threshold=120)


def test_a_localizer_without_its_graph_says_how_to_make_it(tmp_path: Path) -> None:
    path = Path(shutil.copy(FILES["localizer"], tmp_path))
    with pytest.raises(WeightsError, match="does not exist: write it again with geolabel train graphs"):
        export_onnx(path, tmp_path / "x.onnx", threshold=120)


def test_the_command_line_exports_the_bundled_one_or_a_file(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["models", "export", "--onnx"]) == 0
    assert session(tmp_path / "landslides.onnx")
    (graph,) = graph_files(FILES["localizer"], "localizer")
    shutil.copy(graph, tmp_path / "mine.onnx")
    state, info = load_checkpoint(FILES["localizer"])
    save_checkpoint(tmp_path / "mine.safetensors", state, info)
    assert run(["models", "export", "mine.safetensors", "--onnx", "other.onnx", "--gsd", "0.4", "--json"]) == 0
    assert '"gsd_m": 0.4' in capsys.readouterr().out
    assert run(["models", "export", "--onnx"]) == 1
    assert "landslides.onnx exists: give --overwrite" in capsys.readouterr().err
    assert run(["models", "export", "vit_b", "--onnx", "x.onnx"]) == 1
    assert "no localizer is called 'vit_b'" in capsys.readouterr().err


def test_an_output_of_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        export_onnx(FILES["localizer"], tmp_path / "x.onnx", threshold=120)
