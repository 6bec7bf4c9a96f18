"""STAC items of networks, with the machine learning model extension (MLM).

https://github.com/stac-extensions/mlm
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geolabel.errors import OutputError, WeightsError
from geolabel.io.write.stac import asset_of, item_of, write_item
from geolabel.models import registry
from geolabel.models.checkpoint import NetworkInfo, is_safetensors, load_arrays, read_info
from geolabel.outputs import check_target, replacing, together

TASKS = {"localizer": "semantic-segmentation", "student": "semantic-segmentation", "segmenter": "instance-segmentation"}
"""MLM tasks by kind of network."""

COLOURS = ("red", "green", "blue")

BANDS = [{"name": colour} for colour in COLOURS]

ALWAYS = {"datetime": None, "start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
"""Times of an item without a date."""


def network_items(name: str | Path, folder: str | Path, *, overwrite: bool = False) -> dict[str, Path]:
    """Write a STAC item of each network of a name, or of a file, and a copy of its weights beside it.

    Parameters
    ----------
    name
        A name of `geolabel.models.registry`, or a weights file.
    folder
        Folder for items and weights: ``localizer.json``, ``localizer.safetensors``.
    overwrite
        Whether existing files may be replaced.

    Returns
    -------
    The items by kind of network.

    Raises
    ------
    WeightsError
        If there is no such network, or its file has no description, as in files published by others.
    OutputError
        If a file cannot be written.
    """
    folder, given = Path(folder), Path(name)
    if given.is_file():
        named: dict[Path, str | None] = {given: None}
    else:
        # files published by others have no description, so they are not downloaded
        ours = [one for one in registry.lookup(str(name)) if one.hub is None and one.filename.endswith(".safetensors")]
        named = {registry.fetch(one): one.licence for one in ours}
    if not named or not all(map(is_safetensors, named)):
        raise WeightsError(f"{name} is not a weights file of geolabel with a description: give one of geolabel train")
    found, paths = {}, []
    for path in named:
        info = read_info(path)
        if info.kind not in TASKS:
            raise WeightsError(f"{path} holds a {info.kind}: items can be written for {', '.join(TASKS)}")
        found[info.kind] = (path, info)
        paths += [folder / f"{info.kind}.json", folder / f"{info.kind}.safetensors"]
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be created: {error.strerror}") from error
    for path in paths:
        check_target(path, overwrite=overwrite, suffixes=(path.suffix,), inputs=list(named))
    with together(*paths):
        for kind, (path, info) in found.items():
            _write(folder / f"{kind}.json", path, info, named[path], overwrite=overwrite)
    return {kind: folder / f"{kind}.json" for kind in found}


def _write(item: Path, weights: Path, info: NetworkInfo, licence: str | None, *, overwrite: bool) -> None:
    copy = item.with_suffix(".safetensors")
    title = f"Weights of the {info.kind}"
    # the extension requires bands among the properties, where STAC allows them only if an asset has them too
    how = {"mlm:artifact_type": "safetensors.torch.save_file", "bands": BANDS}
    asset = asset_of(weights, item, title, ["mlm:model", "mlm:weights"], **how) | {"href": f"./{copy.name}"}
    properties = {"title": f"{info.kind.capitalize()} of geolabel"} | ALWAYS | ({"license": licence} if licence else {})
    found = item_of(item, None, properties | _model(weights, info), {"weights": asset}, extensions=["file", "mlm"])
    try:
        with replacing(copy, overwrite=overwrite) as part:
            shutil.copyfile(weights, part)
    except OSError as error:
        raise OutputError(f"{copy} could not be written: {error.strerror or error}") from error
    write_item(found, item, overwrite=overwrite)


def _model(weights: Path, info: NetworkInfo) -> dict[str, Any]:
    """Properties required by the extension."""
    arrays, _ = load_arrays(weights)
    data = info.trained.get("data", ())
    task = TASKS[info.kind]
    return {
        "bands": BANDS,
        "mlm:name": f"geolabel {info.kind}",
        "mlm:architecture": str(info.architecture.get("name", "unknown")),
        "mlm:tasks": [task],
        "mlm:framework": "PyTorch",
        "mlm:total_parameters": sum(int(values.size) for values in arrays.values() if values.dtype.kind == "f"),
        "mlm:pretrained": True,
        **({"mlm:pretrained_source": "; ".join(map(str, data))} if data else {}),
        "mlm:input": _inputs(info),
        "mlm:output": [_output(info, task)],
        "mlm:hyperparameters": {"gsd_m": list(info.gsd_range), "stride": info.stride, "window": info.window},
    }


def _inputs(info: NetworkInfo) -> list[dict[str, Any]]:
    scaling = [{"type": "z-score", "mean": m, "stddev": s} for m, s in zip(info.mean, info.std, strict=True)]
    image = {
        "name": "image",
        "description": "Red, green and blue, 0 to 255, after the stretch of the scene",
        "bands": list(COLOURS),
        "input": _array([-1, 3, info.window, info.window], ["batch", "bands", "height", "width"]),
        "value_scaling": scaling,
    }
    if info.kind != "segmenter":
        return [image]
    boxes = {
        "name": "boxes",
        "description": "Left, top, right and bottom of the requested object, in pixels",
        "bands": [],
        "input": _array([-1, 4], ["prompt", "coordinate"]),
    }
    return [image, boxes]


def _output(info: NetworkInfo, task: str) -> dict[str, Any]:
    cells = info.window if info.kind == "student" else max(1, info.window // info.stride)
    order = ["prompt" if info.kind == "segmenter" else "batch", "class", "height", "width"]
    first = 0 if info.kind == "student" else 1
    return {
        "name": {"localizer": "activation", "segmenter": "masks", "student": "scores"}[info.kind],
        "tasks": [task],
        "result": _array([-1, len(info.classes), cells, cells], order),
        "classification:classes": [
            {"value": number, "name": name, "description": name} for number, name in enumerate(info.classes, first)
        ],
    }


def _array(shape: Sequence[int], order: Sequence[str]) -> Mapping[str, Any]:
    return {"shape": list(shape), "dim_order": list(order), "data_type": "float32"}
