"""Draw the picture of the page on evidence: a synthetic pair, and what the image from before rejects.

geolabel synthesize pair.tif --size 1024 --seed 900002 --pair
python docs/pictures/evidence.py pair.tif docs/pictures/evidence.jpg
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import geopandas as gpd
import matplotlib as mpl
import matplotlib.pyplot as plt
import rasterio
from matplotlib import patheffects
from matplotlib.lines import Line2D
from PIL import Image

import geolabel

KINDS = {"landslide": ("#fd8d3c", "solid"), "bare before": ("#ffffff", "dashed")}
CASING = [patheffects.Stroke(linewidth=3.4, foreground="black", alpha=0.65), patheffects.Normal()]


def main() -> None:
    """Draw both panels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    before = given.scene.with_name(f"{given.scene.stem}_before.tif")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "slides.gpkg"
        geolabel.extract(given.scene, out=out, before=before)
        found, candidates = (gpd.read_file(out, layer=layer) for layer in ("landslides", "candidates"))
    outlines = {"landslide": found, "bare before": candidates[candidates["reason"] == "before"]}
    mpl.rcParams["font.size"] = 12
    figure, axes = plt.subplots(1, 2, figsize=(12, 6.3), layout="constrained")
    for axis, path, title in zip(axes, (before, given.scene), ("before", "after"), strict=True):
        with rasterio.open(path) as image:
            axis.imshow(image.read().transpose(1, 2, 0))
            inverse = (~image.transform).to_shapely()
        axis.set_title(title, loc="left")
        axis.axis("off")
        for name, layer in outlines.items():
            colour, style = KINDS[name]
            lines = gpd.GeoSeries(layer.geometry.affine_transform(inverse).boundary, crs=None)
            lines.plot(ax=axis, color=colour, linestyle=style, linewidth=1.8, path_effects=CASING, aspect=None)
    handles = [Line2D([], [], color=c, linestyle=s, path_effects=CASING, label=n) for n, (c, s) in KINDS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(Path(given.out).with_suffix(".png"), dpi=100)
    plt.close(figure)
    with Image.open(given.out.with_suffix(".png")) as picture:
        picture.convert("RGB").save(given.out, quality=80, optimize=True)
    given.out.with_suffix(".png").unlink()
    print({name: len(layer) for name, layer in outlines.items()})


if __name__ == "__main__":
    main()
