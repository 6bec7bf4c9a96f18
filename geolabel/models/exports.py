"""Export a localizer as one ONNX file for programs that run such files over rasters: Deepness in QGIS, GeoDeep, WebODM.

They cut tiles, scale bytes to 0..1, and use the class with the highest score of each pixel, or scores above a
threshold. So the exported network includes normalisation, returns pixels instead of cells, and maps the localizer's
operating point to a score of one half. Its metadata uses the names documented by Deepness, which GeoDeep shares.

Source: https://qgis-plugin-deepness.readthedocs.io, "Model creators", "How to add metadata to a model".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import geolabel
from geolabel.activation import LEVELS
from geolabel.errors import OptionError, WeightsError
from geolabel.labels import BACKGROUND
from geolabel.models.checkpoint import NetworkInfo, load_arrays
from geolabel.models.engines import graph_files
from geolabel.models.on_onnx import facts_of, read_graph
from geolabel.outputs import replacing
from geolabel.parsing import parse_json

EDGE = 0.5
"""Score of the operating point."""

OVERLAP = 25
"""Overlap of neighbouring tiles in percent."""

SMALL = 3
"""Deepness opens and closes masks by this many pixels, which removes objects below about 50 px."""


def export_onnx(
    weights: Path, out: Path, *, threshold: int, tile: int = 512, gsd: float = 0.5, overwrite: bool = False
) -> None:
    """Write a localizer as one ONNX file with its weights.

    It maps (1, 3, tile, tile), red first, 0..1, to scores (1, 1 + C, tile, tile) of the background and each class:
    0..1, activation scaled so that its threshold is at 0.5.

    Parameters
    ----------
    weights
        File of the localizer, with its graph beside it.
    threshold
        Grey value 0..255 that activation must exceed.
    tile
        Pixels a side, a multiple of what the network needs.
    gsd
        Metres per pixel that rasters are resampled to.

    Raises
    ------
    WeightsError
        If the file is not a localizer with a graph and a constant.
    OptionError
        If the network does not support the tile size or the gsd.
    OutputError
        If the file cannot be written.
    """
    arrays, info = load_arrays(weights)
    if info.kind != "localizer" or not info.constant:
        raise WeightsError(
            f"{weights} holds a {info.kind} with the constant {info.constant}: give a localizer of train bundled or "
            "train localizer, which has a positive one"
        )
    (path,) = graph_files(weights, info.kind)
    model = read_graph(path, arrays)
    facts = facts_of(model)
    if tile < facts["multiple"] or tile % facts["multiple"]:
        raise OptionError(f"tile size {tile} px: give a multiple of {facts['multiple']} px, such as 512")
    finest, coarsest = info.gsd_range
    if not finest <= gsd <= coarsest:
        raise OptionError(f"gsd {gsd} m: the localizer supports {finest} to {coarsest} m; give one of these")
    _wrap(model.graph, info, EDGE * LEVELS / (threshold * info.constant), facts["stride"], tile)
    helper.set_model_props(model, _metadata(info, tile, gsd))
    model.producer_name, model.producer_version = "geolabel", geolabel.__version__
    onnx.checker.check_model(model, full_check=True)
    with replacing(out, overwrite=overwrite) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))


def _wrap(graph: onnx.GraphProto, info: NetworkInfo, scale: float, stride: int, tile: int) -> None:
    # Normalisation before the network, and raw maps to scores of pixels after it.
    def constant(name: str, values: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    mean, std = (np.reshape(values, (1, 3, 1, 1)) for values in (info.mean, info.std))
    before = [
        helper.make_node("Mul", ["rgb", constant("rgb_range", 255)], ["rgb_bytes"]),
        helper.make_node("Sub", ["rgb_bytes", constant("rgb_mean", mean)], ["rgb_centred"]),
        helper.make_node("Div", ["rgb_centred", constant("rgb_std", std)], [graph.input[0].name]),
    ]
    graph.initializer.append(numpy_helper.from_array(np.asarray([1], np.int64), "class_axis"))
    sides = constant("enlargement", [1, 1, stride, stride])
    after = [
        helper.make_node("Mul", [graph.output[0].name, constant("score_scale", scale)], ["score_cells"]),
        helper.make_node("Clip", ["score_cells", constant("least", 0), constant("most", 1)], ["score_shares"]),
        helper.make_node("Resize", ["score_shares", "", sides], ["score_classes"], mode="linear"),
        helper.make_node("ReduceMax", ["score_classes", "class_axis"], ["score_highest"]),
        helper.make_node("Sub", ["most", "score_highest"], ["score_background"]),
        helper.make_node("Concat", ["score_background", "score_classes"], ["scores"], axis=1),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("rgb", TensorProto.FLOAT, [1, 3, tile, tile]))
    shape = [1, 1 + len(info.classes), tile, tile]
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape))


def _metadata(info: NetworkInfo, tile: int, gsd: float) -> dict[str, str]:
    values: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": dict(enumerate((BACKGROUND, *info.classes))),
        "resolution": round(100 * gsd, 4),  # centimetres
        "tile_size": tile,
        "tiles_size": tile,
        "tiles_overlap": OVERLAP,
        "seg_thresh": EDGE,
        "seg_small_segment": SMALL,
        "standardization_mean": [0.0, 0.0, 0.0],
        "standardization_std": [1.0, 1.0, 1.0],
        "geolabel": parse_json(info.to_json()),
    }
    return {name: json.dumps(value) for name, value in values.items()}
