"""Descriptions of other files as strangers may write them, built at random from what GDAL's documentation names.

Usage: python tests/describing.py FOLDER FIRST STOP [bare]

Case N is the same file whenever it is made. Each is read as geolabel reads it, from a web server or from this machine,
while canaries watch: a raster and features that nothing may show, a web server that nothing may ask, and a folder that
nothing may write to. It says ``end N KIND OUTCOME CANARIES`` after every case. With ``bare`` GDAL opens the files by
itself, so that one sees that the canaries sing.

VRT: https://gdal.org/en/stable/drivers/raster/vrt.html; OGR VRT, GDALG and GTI beside it; STAC and COCO by their own
specifications.
"""

# ruff: noqa: E501  (what a file holds is easier to read on one line)

from __future__ import annotations

import faulthandler
import functools
import http.server
import json
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import geopandas as gpd
import numpy as np
import pyogrio
import pyproj
import rasterio
import shapely
from affine import Affine
from PIL import Image

LIMIT_S = 60
"""A case that takes longer hangs."""

SIZE = 32
CANARY = bytes(range(77, 93))
"""Values of a row of the raster that nothing may show."""

SECRET = "CANARY-51f0"
"""In the features, and in the text, that nothing may show."""

PLACE = {"crs": "EPSG:32648", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 3e6)}


@dataclass(frozen=True)
class World:
    """What a case may name."""

    www: Path
    """Served as `home`; the case and honest files are there."""
    home: str
    private: Path
    """A raster, features and text that are not published."""
    trap: str
    """A server that nothing may ask."""
    outside: Path
    """A folder that nothing may write to."""
    remote: bool
    """Whether the case is read from the server."""

    def target(self, dice: random.Random, name: str = "private.tif") -> str:
        """A canary, as the name of a source or of a thing beside one."""
        return dice.choice([self.file(dice, name), f"{self.trap}/{dice.randrange(10**6)}.tif"])

    def file(self, dice: random.Random, name: str = "private.tif") -> str:
        """The private file, in one of the many ways in which GDAL takes a name."""
        path = str(self.private / name)
        inline = (
            f'<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
            f"<SourceFilename>{path}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
        )
        return dice.choice(
            [
                path,
                path,
                path,
                f"file://{path}",
                f"/vsicurl/file://{path}",
                f"/vsicurl?url=file://{path}",
                f"/vsisubfile/0,{path}",
                f"/vsicached?file={path}",
                f"/vsizip/{self.private / 'private.zip'}/{name}",
                f"vrt://{path}?bands=1",
                f"GTIFF_DIR:1:{path}",
                f"GTIFF_RAW:{path}",
                f"DERIVED_SUBDATASET:AMPLITUDE:{path}",
                inline,
                f"../../private/{name}",
                f"GTI:{path}",
                f"PLSCENES:{path}",
                f"CSV:{path}",
            ]
        )


# --- elements --------------------------------------------------------------------------------------------------------


def element(tag: str, /, *inner: str, **attributes: object) -> str:
    marks = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f"<{tag}{marks}>{''.join(inner)}</{tag}>"


def text(tag: str, value: object, /, **attributes: object) -> str:
    return element(tag, escape(str(value)), **attributes)


def open_options(world: World, dice: random.Random) -> str:
    into = world.outside / f"{dice.randrange(10**6)}.db"
    key, value = dice.choice(
        [
            ("PRELUDE_STATEMENTS", f"vacuum into '{into}'"),
            ("PRELUDE_STATEMENTS", f"vacuum into '{into}'"),
            ("OVERVIEW_LEVEL", "NONE"),
            ("ROOT_PATH", str(world.private)),
            ("USER_PWD", "a:b"),
            ("IGNORE_COG_LAYOUT_BREAK", "YES"),
        ]
    )
    return element("OpenOptions", text("OOI", value, key=key))


def source_name(world: World, dice: random.Random) -> str:
    """The file of a source: most often an honest one, and of one that is published a private one now and then."""
    honest = ("scene.tif", 1) if dice.random() < 0.6 else ("scene.gpkg", 1)
    name, beside = honest
    if world.remote and dice.random() < 0.1:
        name, beside = world.file(dice), dice.randrange(2)
    return text("SourceFilename", name, relativeToVRT=beside, **({"shared": 0} if dice.random() < 0.3 else {}))


def source(world: World, dice: random.Random) -> str:
    kind = dice.choice(
        [
            "SimpleSource",
            "SimpleSource",
            "SimpleSource",
            "ComplexSource",
            "ComplexSource",
            "AveragedSource",
            "NoDataFromMaskSource",
            "KernelFilteredSource",
            *(["ArraySource"] if dice.random() < 0.2 else []),
        ]
    )
    whole = {"xOff": 0, "yOff": 0, "xSize": SIZE, "ySize": SIZE}
    parts = [source_name(world, dice), text("SourceBand", dice.choice(["1", "1", "2", "mask,1"]))]
    sized = {"RasterXSize": SIZE, "RasterYSize": SIZE, "DataType": "Byte", "BlockXSize": SIZE, "BlockYSize": 8}
    parts += [element("SrcRect", **whole), element("DstRect", **whole)] if dice.random() < 0.7 else []
    parts += [element("SourceProperties", **sized)] if dice.random() < 0.2 else []
    parts += [open_options(world, dice)] if dice.random() < 0.08 else []
    extra = {
        "ScaleOffset": 1,
        "ScaleRatio": 1,
        "NODATA": 0,
        "LUT": "0:0,255:255",
        "ColorTableComponent": 1,
        "Exponent": 1,
        "SrcMin": 0,
        "SrcMax": 255,
        "DstMin": 0,
        "DstMax": 255,
        "UseMaskBand": "true",
        "MaskValueThreshold": 0,
        "RemappedValue": 1,
        "Clamp": "true",
    }
    parts += [
        text(name, extra[name])
        for name in dice.sample(sorted(extra), 1 if kind != "SimpleSource" and dice.random() < 0.5 else 0)
    ]
    if kind == "KernelFilteredSource":
        parts.append(element("Kernel", text("Size", 3), text("Coefs", "1 1 1 1 1 1 1 1 1"), normalized=1))
    if kind == "ArraySource":
        inner = element("SingleSourceArray", source_name(world, dice), text("SourceArray", "/a"))
        return element(kind, inner, *parts[2:])
    return element(kind, *parts, **({"resampling": "bilinear"} if dice.random() < 0.2 else {}))


def metadata(world: World, dice: random.Random) -> str:
    domain, key = dice.choice(
        [
            ("OVERVIEWS", "OVERVIEW_FILE"),
            ("GEOLOCATION", "X_DATASET"),
            ("RPC", "LINE_OFF"),
            ("", "AREA_OR_POINT"),
            ("xml:VRT", "x"),
            ("IMAGE_STRUCTURE", "INTERLEAVE"),
            ("SUBDATASETS", "SUBDATASET_1_NAME"),
            ("vrt_sources", "source_0"),
            ("new_vrt_sources", "source_0"),
        ]
    )
    return element("Metadata", text("MDI", world.target(dice), key=key), **({"domain": domain} if domain else {}))


def band(world: World, dice: random.Random, number: int) -> str:
    code = f"import pathlib\ndef f(*a, **k):\n  pathlib.Path({str(world.outside / 'code')!r}).write_text('x')"
    kind = (
        ""
        if dice.random() < 0.93
        else dice.choice(
            [
                "VRTSourcedRasterBand",
                "VRTDerivedRasterBand",
                "VRTRawRasterBand",
                "VRTWarpedRasterBand",
                "VRTPansharpenedRasterBand",
                "VRTProcessedRasterBand",
            ]
        )
    )
    parts = [source(world, dice) for _ in range(dice.choice([1, 1, 1, 2]))]
    if kind == "VRTDerivedRasterBand":
        language, function, body = dice.choice([("Python", "f", code), ("C", "mean", ""), ("C", "expression", "")])
        parts += [text("PixelFunctionLanguage", language), text("PixelFunctionType", function)]
        parts += [text("PixelFunctionCode", body)] if body else []
        parts += [element("PixelFunctionArguments", expression="B1", k=1)] if dice.random() < 0.5 else []
    if kind == "VRTRawRasterBand":
        raw = world.file(dice) if world.remote else "scene.tif"
        parts = [
            text("SourceFilename", raw, relativeToVRT=int(not world.remote)),
            text("ImageOffset", 0),
            text("PixelOffset", 1),
            text("LineOffset", SIZE),
            text("ByteOrder", "LSB"),
        ]
    others: list[Callable[[], str]] = [
        lambda: metadata(world, dice),
        lambda: element("Overview", source_name(world, dice), text("SourceBand", 1)),
        lambda: element("MaskBand", element("VRTRasterBand", source(world, dice), dataType="Byte")),
        lambda: text("ColorInterp", "Red"),
        lambda: text("Description", "a"),
        lambda: text("NoDataValue", "nan"),
        lambda: element("ColorTable", element("Entry", c1=0, c2=0, c3=0, c4=255)),
        lambda: element("CategoryNames", text("Category", "a")),
        lambda: element("Histograms", element("HistItem", text("HistMin", 0))),
        lambda: element("GDALRasterAttributeTable", element("Row", text("F", world.target(dice)), index=0)),
        lambda: text("HideNoDataValue", 0) + text("UnitType", "m") + text("Offset", 0) + text("Scale", 1),
        lambda: (
            text("SourceTransferType", "Byte") + text("BufferRadius", 0) + text("SkipNonContributingSources", "true")
        ),
    ]
    parts += [dice.choice(others)() for _ in range(dice.random() < 0.15)]
    return element("VRTRasterBand", *parts, dataType="Byte", band=number, **({"subClass": kind} if kind else {}))


def warp_options(world: World, dice: random.Random) -> str:
    transform = text("SrcGeoTransform", "500000,.5,0,3000000,0,-.5") + text(
        "DstGeoTransform", "500000,.5,0,3000000,0,-.5"
    )
    inner = dice.choice(
        [
            element("GenImgProjTransformer", transform),
            element(
                "GenImgProjTransformer",
                element("SrcRPCTransformer", element("RPCTransformer", text("DEMPath", world.target(dice)))),
            ),
            element(
                "GenImgProjTransformer",
                element("SrcGeoLocTransformer", element("GeoLocTransformer", metadata(world, dice))),
            ),
        ]
    )
    option = dice.choice([("INIT_DEST", "0"), ("CUTLINE", world.target(dice, "private.gpkg")), ("NUM_THREADS", "1")])
    from_ = world.file(dice) if world.remote and dice.random() < 0.5 else "scene.tif"
    return element(
        "GDALWarpOptions",
        text("ResampleAlg", "NearestNeighbour"),
        text("Option", option[1], name=option[0]),
        text("SourceDataset", from_, relativeToVRT=1),
        open_options(world, dice) if dice.random() < 0.4 else "",
        element(
            "Transformer", element("ApproxTransformer", text("MaxError", "0.1"), element("BaseTransformer", inner))
        ),
        element("BandList", element("BandMapping", src=1, dst=1)),
    )


def dataset(world: World, dice: random.Random) -> str:
    crs = dice.choice(["EPSG:32648"] * 12 + [f"{world.trap}/crs", str(world.private / "private.txt")])
    parts = [text("SRS", crs), text("GeoTransform", "500000,.5,0,3000000,0,-.5")]
    kind = dice.choice([""] * 16 + ["VRTWarpedDataset", "VRTPansharpenedDataset", "VRTProcessedDataset", "group"])
    bands = [band(world, dice, number) for number in range(1, dice.choice([1, 3, 3, 3]) + 1)]
    if kind == "VRTWarpedDataset":
        bands = [element("VRTRasterBand", dataType="Byte", band=1, subClass="VRTWarpedRasterBand")]
        parts.append(warp_options(world, dice))
    elif kind == "VRTPansharpenedDataset":
        sources = element("PanchroBand", source_name(world, dice), open_options(world, dice), text("SourceBand", 1))
        sources += element("SpectralBand", source_name(world, dice), text("SourceBand", 1), dstBand=1)
        parts.append(element("PansharpeningOptions", text("Algorithm", "WeightedBrovey"), sources))
        bands = [element("VRTRasterBand", dataType="Byte", band=1, subClass="VRTPansharpenedRasterBand")]
    elif kind == "VRTProcessedDataset":
        argument = text("Argument", world.target(dice), name="gain_dataset_filename_1")
        step = element(
            "Step", text("Algorithm", dice.choice(["LocalScaleOffset", "LUT", "Trimming", "Expression"])), argument
        )
        parts += [element("Input", source_name(world, dice)), element("ProcessingSteps", step)]
    elif kind == "group":
        array = element("Array", element("Source", source_name(world, dice), text("SourceArray", "/a")), name="a")
        parts, bands, kind = [element("Group", element("Dimension", name="x", size=SIZE), array, name="/")], [], ""
    others: list[Callable[[], str]] = [
        lambda: metadata(world, dice),
        lambda: element("GCPList", element("GCP", Id=1, Pixel=0, Line=0, X=0, Y=0), Projection=f"{world.trap}/gcp"),
        lambda: text("OverviewList", "2 4", resampling="nearest"),
        lambda: element("MaskBand", element("VRTRasterBand", source(world, dice), dataType="Byte")),
        lambda: text("BlockXSize", 16),
    ]
    parts += [dice.choice(others)() for _ in range(dice.choice([0, 0, 0, 1]))]
    marks = {"rasterXSize": SIZE, "rasterYSize": SIZE} | ({"subClass": kind} if kind else {})
    found = element("VRTDataset", *parts, *bands, **marks)
    return found.replace("OpenOptions", "openoptions") if dice.random() < 0.1 else found  # GDAL ignores case


# --- kinds of file ---------------------------------------------------------------------------------------------------


def make_vrt(world: World, dice: random.Random) -> str:
    name = dice.choice(["case.vrt"] * 6 + ["case.tif", "case.xml"])
    before = dice.choice([""] * 12 + ["<?xml version='1.0'?>", "<!-- a -->", "<!DOCTYPE VRTDataset>"])
    (world.www / name).write_text(before + dataset(world, dice))
    return name


def make_beside(world: World, dice: random.Random) -> str:
    """A description in the place of overviews, a mask or metadata beside an image."""
    (world.www / "case.tif").write_bytes((world.www / "scene.tif").read_bytes())
    kind = dice.choice([".ovr", ".msk", ".aux.xml", "inside", ".OVR", ".aux"])
    if kind == "inside":
        with rasterio.open(world.www / "case.tif", "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=world.file(dice))
    elif kind == ".aux.xml":
        (world.www / "case.tif.aux.xml").write_text(element("PAMDataset", metadata(world, dice)))
    else:
        (world.www / f"case.tif{kind}").write_text(dataset(world, dice))
    return "case.tif"


def make_service(world: World, dice: random.Random) -> str:
    """Formats of GDAL that are files about files: WMS, WMTS, TMS, MRF, DIMAP, STACTA, tile maps, Zarr references."""
    url, file = world.trap, world.file(dice)
    name, content = dice.choice(
        [
            (
                "case.xml",
                element(
                    "GDAL_WMS",
                    element("Service", text("ServerUrl", f"{url}/${{z}}"), name="TMS"),
                    text("Cache", ""),
                    element("DataWindow", text("SizeX", 64), text("SizeY", 64)),
                ),
            ),
            ("case.xml", element("GDAL_WMTS", text("GetCapabilitiesUrl", url), text("Layer", "a"))),
            ("case.xml", element("WCS_GDAL", text("ServiceURL", url), text("CoverageName", "a"))),
            (
                "case.mrf",
                element(
                    "MRF_META",
                    element("CachedSource", text("Source", file)),
                    element("Raster", element("Size", x=SIZE, y=SIZE, c=3), text("DataFile", str(world.outside / "d"))),
                ),
            ),
            (
                "case.xml",
                element(
                    "Dimap_Document",
                    element("Raster_Dimensions", text("NCOLS", SIZE), text("NROWS", SIZE)),
                    element("Data_Access", element("Data_File", element("DATA_FILE_PATH", href=file))),
                ),
            ),
            (
                "case.json",
                json.dumps(
                    {
                        "type": "Feature",
                        "stac_extensions": ["tiled-assets"],
                        "asset_templates": {"a": {"href": url}},
                        "properties": {"tiles:tile_matrix_links": {}, "tiles:tile_matrix_sets": {}},
                    }
                ),
            ),
            ("case.json", json.dumps({".zgroup": {"zarr_format": 2}, "a/0": [url, 0, 10], "a/1": [file, 0, 10]})),
            ("case.lbl", f'PDS_VERSION_ID = PDS3\n^IMAGE = "{file}"\nEND\n'),
            ("case.map", f"OziExplorer Map Data File Version 2.2\na\n{file}\n"),
            ("case.til", f'BEGIN_GROUP = TILE_1\nfilename = "{file}";\nEND_GROUP = TILE_1\n'),
            ("case.html", "<html>log in</html>"),
        ]
    )
    (world.www / name).write_text(content)
    return name


def make_gti(world: World, dice: random.Random) -> str:
    place = world.file(dice) if world.remote or dice.random() < 0.5 else f"{world.trap}/index.gpkg"
    if dice.random() < 0.4:
        name = dice.choice(["case.gti.gpkg", "case.gti.fgb"])
        tiles = gpd.GeoDataFrame({"location": [place]}, geometry=[shapely.box(5e5, 3e6 - 16, 5e5 + 16, 3e6)], crs=32648)
        tiles.to_file(world.www / name, driver="GPKG" if name.endswith("gpkg") else "FlatGeobuf")
        return name
    parts = [
        text("IndexDataset", place),
        text("IndexLayer", "a"),
        text("LocationField", "location"),
        text("SQL", "SELECT 1"),
        text("ResX", 0.5),
        text("ResY", 0.5),
        text("BandCount", 3),
        text("DataType", "Byte"),
        text("SRS", f"{world.trap}/c"),
        element("Overview", text("Dataset", place), open_options(world, dice), text("Factor", 2)),
        element("Band", text("ColorInterp", "Red"), band=1),
        text("Filter", "1=1"),
        metadata(world, dice),
    ]
    chosen = parts[:1] + dice.sample(parts[1:], dice.randrange(len(parts)))
    (world.www / "case.gti").write_text(element("GDALTileIndexDataset", *chosen))
    return "case.gti"


def make_ogr_vrt(world: World, dice: random.Random) -> str:
    def layer(nested: int) -> str:
        kind = dice.choice(["OGRVRTLayer"] * 3 + ["OGRVRTWarpedLayer", "OGRVRTUnionLayer"]) if nested else "OGRVRTLayer"
        if kind != "OGRVRTLayer":
            return element(kind, layer(0), text("TargetSRS", "EPSG:32648"), name=f"n{nested}")
        file = str(world.private / "private.gpkg") if world.remote and dice.random() < 0.6 else "area.gpkg"
        parts = [
            text(
                "SrcDataSource",
                dice.choice([file] * 4 + [f"{world.trap}/a.gpkg"]),
                relativeToVRT=int(file == "area.gpkg"),
            )
        ]
        parts = [*([open_options(world, dice)] if dice.random() < 0.5 else []), *parts]
        more = [
            text("SrcLayer", "area"),
            text("SrcSQL", "SELECT load_extension('a')", dialect="SQLITE"),
            text("FID", "fid"),
            text("LayerSRS", dice.choice(["EPSG:32648", f"{world.trap}/c"])),
            text("GeometryType", "wkbPolygon"),
            element("GeometryField", encoding="WKT", field="a"),
            element("Field", name="a", src="a", type="String"),
            text("FeatureCount", 1),
            text("ExtentXMin", 0),
            text("SrcRegion", "POLYGON((0 0,1 0,1 1,0 0))", clip="true"),
            text("Style", "a"),
            metadata(world, dice),
        ]
        parts += dice.sample(more, dice.choice([0, 0, 1, 2]))
        return element("OGRVRTLayer", *parts, name="area")

    name = dice.choice(["area.vrt", "area.vrt", "area.xml", "area.kml"])
    (world.www / name).write_text(element("OGRVRTDataSource", layer(2)))
    return name


def make_gdalg(world: World, dice: random.Random) -> str:
    file = str(world.private / "private.gpkg")
    command = dice.choice(
        [
            f"gdal vector pipeline read {file} ! filter --where 1=1",
            f"gdal vector pipeline read {world.trap}/a.json ! filter",
            f"gdal raster pipeline read {world.private / 'private.tif'} ! reproject --dst-crs EPSG:4326",
            f"gdal vector pipeline read {file} ! write {world.outside / 'w.gpkg'}",
            f"gdal vector sql {file} --sql 'select 1'",
        ]
    )
    name = dice.choice(["area.gdalg.json", "area.json", "case.gdalg.json"])
    values = {
        "type": "gdal_streamed_alg",
        "command_line": command,
        "relative_paths_relative_to_this_file": dice.random() < 0.5,
    }
    (world.www / name).write_text(json.dumps(values, indent=dice.choice([None, 1])))
    return name


def make_features(world: World, dice: random.Random) -> str:
    """GeoJSON, KML, GML and GPX that lead elsewhere."""
    ring = "0,0 1,0 1,1 0,0"
    polygon = element("Polygon", element("outerBoundaryIs", element("LinearRing", text("coordinates", ring))))
    link = element("NetworkLink", element("Link", text("href", world.trap)))
    schema = element("ExtendedData", element("SchemaData", schemaUrl=f"{world.trap}/s.kml#a"))
    crs = dice.choice(
        [
            {"type": "link", "properties": {"href": world.trap, "type": "proj4"}},
            {"type": "name", "properties": {"name": world.trap}},
            {"type": "url", "properties": {"url": world.trap}},
        ]
    )
    feature = {
        "type": "Feature",
        "properties": {"type": "gdal_streamed_alg", "command_line": "gdal vector info x"},
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]},
    }
    name, content = dice.choice(
        [
            ("area.kml", element("kml", element("Document", link, element("Placemark", schema, polygon)))),
            ("area.kml", f"<!DOCTYPE kml SYSTEM '{world.trap}'>" + element("kml", element("Placemark", polygon))),
            ("area.geojson", json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]})),
            ("area.geojson", json.dumps({"type": "FeatureCollection", "features": [feature]})),
            (
                "area.gml",
                (
                    f"<a:b xmlns:a='a' xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance' xsi:schemaLocation='a {world.trap}/a.xsd'"
                    " xmlns:gml='http://www.opengis.net/gml'><gml:featureMember/></a:b>"
                ),
            ),
            ("area.csv", "WKT,a\nPOINT(0 0),1\n"),
            ("area.xml", f"<OGRWFSDataSource><URL>{world.trap}</URL></OGRWFSDataSource>"),
        ]
    )
    (world.www / name).write_text(content)
    return name


def make_stac(world: World, dice: random.Random) -> str:
    href = dice.choice([world.file(dice) if world.remote else "case.vrt", "scene.tif", "scene.tif"])
    (world.www / "case.vrt").write_text(dataset(world, dice))
    asset = {
        "href": href,
        "type": "image/tiff",
        "roles": ["data"],
        "alternate": {"a": {"href": world.trap}},
        "raster:bands": [{}],
        "vrt:href": world.trap,
    }
    links = [
        {"rel": rel, "href": world.trap}
        for rel in dice.sample(["root", "parent", "next", "collection", "derived_from"], 2)
    ]
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [world.trap],
        "id": "a",
        "geometry": None,
        "properties": {"datetime": "2024-01-01T00:00:00Z"},
        "links": links,
        "assets": {"visual": asset},
    }
    whole = dice.choice(
        [
            item,
            item,
            {"type": "FeatureCollection", "features": [item], "links": links},
            {"type": "Catalog", "links": links},
            {"type": "Collection", "links": links},
        ]
    )
    (world.www / "items.json").write_text(json.dumps(whole))
    return "items.json"


def make_list(world: World, dice: random.Random) -> str:
    lines = [world.file(dice) if world.remote and dice.random() < 0.5 else "scene.tif" for _ in range(3)]
    (world.www / "list.txt").write_text("\n".join(line.replace("\n", " ") for line in lines))
    return "list.txt"


def make_coco(world: World, dice: random.Random) -> str:
    name = dice.choice(
        [world.file(dice, "private.png"), "../private/private.png", "picture.png", "..\\private\\private.png"]
    )
    image = {
        "id": 1,
        "file_name": name,
        "height": SIZE,
        "width": SIZE,
        "coco_url": world.trap,
        "flickr_url": world.trap,
        "license": 1,
        "date_captured": "2024",
    }
    outline = dice.choice(
        [
            [[0, 0, 9, 0, 9, 9]],
            {"size": [SIZE, SIZE], "counts": [10, 14, SIZE**2 - 24]},
            {"size": [1 << 20] * 2, "counts": [1 << 40]},
            {"size": [SIZE, SIZE], "counts": "ooooooooo0"},
            [[0, 0, 1e308, 0, 9, 9]],
            [],
            None,
        ]
    )
    annotation = {
        "id": 1,
        "image_id": dice.choice([1, "1"]),
        "category_id": 1,
        "iscrowd": dice.randrange(2),
        "bbox": [0, 0, 9, 9],
        "area": 1,
        "segmentation": outline,
    }
    licence = [{"id": 1, "url": world.trap, "name": "a"}]
    whole = {
        "info": {"url": world.trap},
        "licenses": licence,
        "images": [image],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "a", "supercategory": ""}],
    }
    (world.www / "coco.json").write_text(json.dumps(whole))
    return "coco.json"


KINDS: dict[str, tuple[Callable[[World, random.Random], str], str]] = {
    "vrt": (make_vrt, "scene"),
    "vrt2": (make_vrt, "scene"),
    "vrt3": (make_vrt, "scene"),
    "beside": (make_beside, "scene"),
    "service": (make_service, "scene"),
    "gti": (make_gti, "scene"),
    "ogr": (make_ogr_vrt, "area"),
    "ogr2": (make_ogr_vrt, "area"),
    "gdalg": (make_gdalg, "area"),
    "features": (make_features, "area"),
    "stac": (make_stac, "list"),
    "list": (make_list, "list"),
    "coco": (make_coco, "coco"),
}
"""How each kind of file is made, and what it is read as."""


# --- reading ---------------------------------------------------------------------------------------------------------


def read_scene(uri: str) -> Iterator[bytes]:
    from geolabel.io.read.scenes import SceneReader
    from geolabel.tiles import Window

    with SceneReader(uri) as reader:
        grid = reader.scene.grid
        yield reader.sample()[0].tobytes()
        yield reader.read(Window(0, 0, min(grid.height, SIZE), min(grid.width, SIZE)), grid)[0].tobytes()
        yield repr(reader.header).encode()


def read_area(uri: str) -> Iterator[bytes]:
    from geolabel.io.read.features import read_aoi, read_features, read_prompts, spatial_layers
    from geolabel.scene import Grid

    crs = pyproj.CRS("EPSG:32648")
    for layer in spatial_layers(uri):
        yield read_features(uri, crs, layer).to_json().encode()
    yield read_aoi(uri, crs).wkt.encode()
    yield repr(read_prompts(uri, Grid(crs, PLACE["transform"], SIZE, SIZE))).encode()


def read_list(uri: str) -> Iterator[bytes]:
    from geolabel.io.read.scene_inputs import list_scenes

    for scene in list_scenes(uri):
        yield from read_scene(str(scene.source))


def read_coco(uri: str) -> Iterator[bytes]:
    from geolabel.datasets.instances import read_instances

    for image, _ in read_instances(uri):
        yield np.ascontiguousarray(image[..., 0]).tobytes()


READ = {"scene": read_scene, "area": read_area, "list": read_list, "coco": read_coco}


def read_bare(uri: str) -> Iterator[bytes]:
    """As GDAL reads what it is given."""
    from contextlib import suppress

    with suppress(Exception), rasterio.open(uri) as file:
        yield file.read(1).tobytes()
        yield file.read(1, out_shape=(SIZE // 2, SIZE // 2)).tobytes()
    with suppress(Exception):
        for layer, _ in pyogrio.list_layers(uri):
            yield pyogrio.read_dataframe(uri, layer=layer).to_json().encode()


def read_case(uri: str, use: str, *, bare: bool) -> tuple[str, bytes]:
    """Outcome of a case, and everything that it shows."""
    from geolabel.errors import GeolabelError

    shown = b""
    try:
        for part in read_bare(uri) if bare else READ[use](uri):
            shown += part
    except GeolabelError as error:
        return type(error).__name__, shown + str(error).encode()
    return "result", shown


# --- canaries --------------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a case under its number, since what is known of a URL is remembered."""

    def translate_path(self, path: str) -> str:
        return super().translate_path("/" + path.lstrip("/").partition("/")[2])

    def log_message(self, *_: object) -> None: ...


class Trap(http.server.BaseHTTPRequestHandler):
    """Writes down that it was asked."""

    log: Path

    def do_GET(self) -> None:
        with self.log.open("a") as file:
            file.write(f"{self.path}\n")
        self.send_error(404)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


def serve(folder: Path) -> None:
    """Serve the cases, and the trap, for as long as stdin is open: GDAL may hold Python's lock while it waits."""
    Trap.log = folder / "asked"
    for handler in (functools.partial(Quiet, directory=str(folder / "world" / "www")), Trap):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


def honest_files(folder: Path) -> None:
    """What a case may name, and what it may not."""
    for name in ("www", "private", "outside"):
        (folder / name).mkdir(parents=True)
    quiet = {"driver": "GTiff", "dtype": "uint8", "height": SIZE, "width": SIZE} | PLACE
    for path, row in (
        (folder / "www" / "scene.tif", bytes([200]) * SIZE),
        (folder / "private" / "private.tif", CANARY * 2),
    ):
        values = np.tile(np.frombuffer(row, np.uint8), (3, SIZE, 1))
        with rasterio.open(path, "w", count=3, photometric="rgb", **quiet) as file:
            file.write(values)
    with rasterio.open(
        folder / "www" / "scene.gpkg", "w", count=3, TILE_FORMAT="PNG", **quiet | {"driver": "GPKG"}
    ) as file:
        file.write(np.full((3, SIZE, SIZE), 200, np.uint8))
    area = gpd.GeoDataFrame({"a": ["b"]}, geometry=[shapely.box(5e5, 3e6 - 9, 5e5 + 9, 3e6)], crs=32648)
    area.to_file(folder / "www" / "area.gpkg", layer="area")
    area.assign(a=SECRET).to_file(folder / "private" / "private.gpkg", layer="area")
    (folder / "private" / "private.txt").write_text(SECRET)
    Image.fromarray(np.tile(np.frombuffer(CANARY * 2, np.uint8), (SIZE, 1))).save(folder / "private" / "private.png")
    Image.fromarray(np.full((SIZE, SIZE), 200, np.uint8)).save(folder / "www" / "picture.png")


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def main(folder: Path, first: int, stop: int, *, bare: bool) -> None:
    import logging
    import os

    from geolabel.io import storage

    storage.WAITS = ()
    os.environ["GDAL_HTTP_TIMEOUT"] = "10"
    folder.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.CRITICAL)
    faulthandler.enable()
    servers = subprocess.Popen(
        [sys.executable, __file__, str(folder), "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    asked, folder = folder / "asked", folder / "world"
    honest_files(folder)
    www, honest = folder / "www", files_in(folder)
    home, trap = (servers.stdout.readline().decode().strip() for _ in range(2))
    for number in range(first, stop):
        dice = random.Random(f"description {number}")
        kind = sorted(KINDS)[number % len(KINDS)]
        make, use = KINDS[kind]
        world = World(www, home, folder / "private", trap, folder / "outside", use != "coco" and dice.random() < 0.5)
        name = make(world, dice)
        before = files_in(folder)
        uri = f"{home}/{number}/{name}" if world.remote else str(www / name)
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome, shown = read_case(uri, use, bare=bare)
        faulthandler.cancel_dump_traceback_later()
        sung = [
            bird
            for bird, sings in (
                ("file", CANARY in shown or SECRET.encode() in shown),
                ("server", asked.exists()),
                ("written", files_in(folder) != before),
            )
            if sings
        ]
        print("end", number, kind, outcome, ",".join(sung) or "silent", flush=True)
        asked.unlink(missing_ok=True)
        for path in sorted(files_in(folder) - honest, reverse=True):
            (folder / path).unlink()
    servers.communicate()


if __name__ == "__main__":
    root = Path(sys.argv[1])
    if sys.argv[2] == "serve":
        serve(root)
    else:
        main(root, int(sys.argv[2]), int(sys.argv[3]), bare=sys.argv[4:] == ["bare"])
