"""Size of the page of `geolabel review view`, and the time until a browser shows its first picture.

    python tests/benchmarks/page.py [--scene scene.tif] [--polygons 5000] [--vertices 60] [--times 5] [--keep folder/]

Outlines are star-shaped, with corners on corners of pixels as those of `geolabel extract` are. Without --scene the
scene is a synthetic one of 4096 x 4096 pixels. The time is that of the page itself, from the start of the navigation in
a new browser to the end of the first frame that has the scene and the outlines; Chromium is needed. Beside it are the
seconds that all processes of the browser computed until the page answered again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import psutil
import rasterio
import shapely
from shapely.affinity import affine_transform

sys.path.insert(0, str(Path(__file__).parents[1]))

from browsing import Browser

import geolabel

SIDE = 4096
MAX_MEGABYTES, MAX_SECONDS = 12, 2


def outlines(width: int, height: int, count: int, vertices: int) -> list[shapely.Polygon]:
    """Star-shaped polygons in pixels, of radii that follow a power law."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        radius = min(6 * (1 - random.random()) ** (-1 / 2.8), 300)
        angle = np.sort(random.random(max(8, round(vertices * min(2, radius / 12))))) * 2 * np.pi
        far = radius * (0.7 + 0.6 * random.random(len(angle)))
        centre = random.random(2) * (width, height)
        ring = np.rint(centre + np.stack([np.cos(angle), np.sin(angle)], axis=1) * far[:, None])
        found.append(shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False))
    return [shape for shape in found if not shape.is_empty]


def inventory(path: Path, scene: Path, count: int, vertices: int) -> float:
    """Write an inventory on a scene; returns its mean number of vertices."""
    with rasterio.open(scene) as file:
        at = file.transform
        shapes = [
            affine_transform(shape, [at.a, at.b, at.d, at.e, at.c, at.f])
            for shape in outlines(file.width, file.height, count, vertices)
        ]
        crs = file.crs
    confidence = np.random.default_rng(1).random(len(shapes)).round(4)
    values = {"id": range(1, len(shapes) + 1), "class": "landslide", "confidence": confidence, "status": "unreviewed"}
    table = gpd.GeoDataFrame(values, geometry=shapes, crs=crs)
    table["area_m2"] = table.area
    table.to_file(path, layer="landslides", driver="GPKG")
    return float(np.mean(shapely.get_num_coordinates(table.geometry.to_numpy())))


def computed(browser: Browser) -> float:
    """Seconds that the processes of a browser have computed."""
    whole = psutil.Process(browser._process.pid)
    times = [one.cpu_times() for one in (whole, *whole.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def first_picture(page: Path, times: int) -> tuple[list[float], list[float]]:
    """Seconds until the first picture, in a new browser each time, and those that were computed."""
    found, busy = [], []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            browser = Browser(Path(folder))
            try:
                begun = computed(browser)
                browser.open(page)
                busy.append(round(computed(browser) - begun, 3))
                browser.wait("document.documentElement.dataset.firstPicture")
                found.append(int(browser.run("document.documentElement.dataset.firstPicture")) / 1000)
                if browser.errors:
                    raise SystemExit(f"the page complains: {browser.errors}")
            finally:
                browser.close()
    return found, busy


def main() -> None:
    """Print the size, the seconds, and whether both are within their limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--polygons", type=int, default=5000)
    parser.add_argument("--vertices", type=int, default=60)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        scene = given.scene
        if scene is None:
            scene = folder / "scene.tif"
            if not scene.exists():
                geolabel.synthesize(scene, size=SIDE, seed=1)
        slides, page = folder / "slides.gpkg", folder / "slides.html"
        mean = inventory(slides, scene, given.polygons, given.vertices)
        geolabel.view(slides, scene, page, overwrite=True)
        seconds, busy = first_picture(page, given.times)
        size = page.stat().st_size / 1e6
    figures = {
        "polygons": given.polygons,
        "vertices_each": round(mean, 1),
        "megabytes": round(size, 2),
        "seconds": sorted(seconds),
        "median_seconds": statistics.median(seconds),
        "median_computed_seconds": statistics.median(busy),
    }
    print(json.dumps(figures))
    if size > MAX_MEGABYTES or statistics.median(seconds) > MAX_SECONDS:
        raise SystemExit(f"more than {MAX_MEGABYTES} MB or {MAX_SECONDS} s")


if __name__ == "__main__":
    main()
