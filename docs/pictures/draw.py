"""Draw the picture of the README: an orthophoto, and what ``geolabel extract`` finds in it beside an expert's outline.

    python docs/pictures/draw.py ../shared/data/sichuan/images/Landslide034.jpg docs/pictures/scene.jpg
    geolabel synthesize scene.tif --size 2048 --gsd 0.5 --seed 1000
    python docs/pictures/draw.py scene.tif docs/pictures/sample.jpg --truth scene_truth.tif

The mask of the image is expected in the folder ``masks`` beside the folder ``images``. Run it again when the bundled
networks change, and put the figures that it prints into the caption.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import geopandas as gpd
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

import geolabel
from geolabel.io.styles import LIMITS, WARM
from geolabel.viewing.preview import grade_of

ATTRIBUTION = "Image: Zeng et al. (2021), doi:10.11922/sciencedb.j00001.00222, CC BY 4.0; outlines added"

GSD = 0.5
"""Metres per pixel the images are taken to have; their files say nothing of it."""

EXPERT = "#3fd0ff"
COLOURS = [tuple(int(part) / 255 for part in colour.split(",")) for colour in WARM]
CASING = [patheffects.Stroke(linewidth=3.4, foreground="black", alpha=0.65), patheffects.Normal()]


def extract(image: Path) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Find landslides and candidates; their coordinates are columns and rows of the image."""
    with rasterio.open(image) as scene:
        placed, inverse = scene.crs is not None, ~scene.transform
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "slides.gpkg"
        geolabel.extract(image, out=out, reading=geolabel.Reading(gsd=None if placed else GSD))
        layers = [gpd.read_file(out, layer=name) for name in ("landslides", "candidates")]
    for layer in layers:
        # rows of a picture count down
        layer.geometry = layer.geometry.affine_transform(inverse.to_shapely() if placed else [1, 0, 0, -1, 0, 0])
    return layers[0], layers[1]


def area_f1(layer: gpd.GeoDataFrame, truth: NDArray[np.bool_]) -> float:
    """F1 of the area of polygons in an image."""
    from rasterio.features import rasterize

    found = rasterize(layer.geometry, truth.shape, dtype="uint8").astype(bool) if len(layer) else np.zeros_like(truth)
    return float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))


def show(axis: Axes, image: NDArray[np.uint8], title: str) -> None:
    """Show an image without axes."""
    axis.imshow(image)
    axis.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
    axis.set_title(title, fontsize=12, loc="left")
    axis.axis("off")


def draw(image_path: Path, out: Path, truth_path: Path | None) -> None:
    """Draw both panels and the legend, and print the figures of the caption."""
    mask_path = truth_path or image_path.parents[1] / "masks" / f"{image_path.stem}.png"
    known = "the truth" if truth_path else "an expert's outline"
    image = np.asarray(Image.open(image_path).convert("RGB"))
    if truth_path:
        with rasterio.open(truth_path) as raster:
            truth = raster.read(1) == 1
    else:
        truth = np.asarray(Image.open(mask_path).convert("L")) > 127
    landslides, candidates = extract(image_path)

    mpl.rcParams["font.family"] = "DejaVu Sans"
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 6.35))
    figure.subplots_adjust(left=0.008, right=0.992, top=0.945, bottom=0.125, wspace=0.015)
    show(left, image, "Scene")
    show(right, image, f"Result, beside {known}")
    right.contour(truth, levels=[0.5], colors=[EXPERT], linewidths=1.6)
    for row in landslides.itertuples():
        edge = gpd.GeoSeries([row.geometry]).boundary
        edge.plot(ax=right, color=grade_of(row.confidence).rgb, linewidth=2.0, path_effects=CASING)
    if len(candidates):
        candidates.boundary.plot(ax=right, color=COLOURS[0], linewidth=1.2, linestyle=(0, (4, 3)))
    right.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))

    classes = list(zip(COLOURS, LIMITS, LIMITS[1:], strict=False))[1:]  # below 0.2 are candidates
    handles = [Line2D([], [], color=EXPERT, linewidth=2, label="truth" if truth_path else "expert")]
    handles += [
        Line2D([], [], color=colour, linewidth=2.4, path_effects=CASING, label=f"confidence {low:g} to {high:g}")
        for colour, low, high in classes
    ]
    dashes = {"color": "#b5a642", "linewidth": 1.4, "linestyle": (0, (4, 3))}
    handles += [Line2D([], [], **dashes, label="candidate")]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=6,
        fontsize=9,
        frameon=False,
        bbox_to_anchor=(0.5, 0.04),
        handlelength=1.6,
        columnspacing=1.4,
    )
    figure.text(0.5, 0.018, "" if truth_path else ATTRIBUTION, ha="center", fontsize=8, color="0.35")
    figure.savefig(out, dpi=110, pil_kwargs={"quality": 86, "optimize": True})
    print(f"{out}: {len(landslides)} landslides, {len(candidates)} candidates, F1 {area_f1(landslides, truth):.2f}")
    print("confidence", sorted(round(value, 2) for value in landslides.confidence))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--truth", type=Path, help="Raster of 0 and 1, of a synthetic scene.")
    options = parser.parse_args()
    draw(options.image, options.out, options.truth)
