"""FlatGeobuf: one layer for web maps and streaming, typed and with its provenance, without styles and without a review.

The format holds one layer, which programs read and do not edit. Features come in the order of its spatial index, and
dates become times at midnight, as the format has no dates.
"""

from __future__ import annotations

import logging
from pathlib import Path

from geolabel.io.write.geopackage import VectorFile, others_of, write_layer

log = logging.getLogger(__name__)


def write_flatgeobuf(path: Path, file: VectorFile) -> None:
    """Write the first layer, and the provenance as JSON in its metadata; name what the format cannot hold."""
    layer = file.layers[0]
    log.warning(
        "%s holds the layer %s alone, without styles and without what recognises a person's review%s: "
        "for these give a name that ends with .gpkg",
        path.name,
        layer.name,
        others_of(file),
    )
    write_layer(
        path,
        layer,
        file.crs,
        driver="FlatGeobuf",
        layer_options={"SPATIAL_INDEX": "YES", "TITLE": layer.description},
        layer_metadata={"provenance": file.record},
    )
