"""Run by the Python of QGIS: reviews windows of an inventory as a person who knows the truth does in its window.

Usage: python3 tests/qgis_review.py INVENTORY.gpkg TRUTH.gpkg

Landslides and candidates that meet a window of the layer ``review`` are accepted where more than half of them is
landslide, and rejected elsewhere; accepted ones whose outline agrees with the truth by less than 0.6 of IoU are
redrawn; landslides that are missed are added; then the window is ``reviewed``. Prints how many of each.
"""

import json
import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from qgis.core import QgsApplication, QgsFeature, QgsGeometry, QgsVectorLayer

RIGHT, SAME = 0.5, 0.6


def opened(path, layer):
    found = QgsVectorLayer(f"{path}|layername={layer}", layer, "ogr")
    if not found.isValid():
        raise SystemExit(f"QGIS cannot open the layer {layer} of {path}")
    return found


def truth_under(outline, truths):
    near = [truth for truth in truths if truth.intersects(outline)]
    return QgsGeometry.unaryUnion(near) if near else QgsGeometry()


def reviewed(layer, area, truths, counts):
    """Decide about every polygon of a layer that meets an area, and return the outlines that stay."""
    status, kept = layer.fields().indexOf("status"), []
    for feature in layer.getFeatures():
        outline = feature.geometry()
        if not outline.intersects(area):
            continue
        truth = truth_under(outline, truths)
        shared = 0.0 if truth.isNull() else outline.intersection(truth).area()
        right = shared > RIGHT * outline.area()
        layer.changeAttributeValue(feature.id(), status, "accepted" if right else "rejected")
        counts["accepted" if right else "rejected"] += 1
        if right and shared < SAME * (outline.area() + truth.area() - shared):
            layer.changeGeometry(feature.id(), truth)
            counts["redrawn"] += 1
        if right:
            kept += [outline, truth]
    return kept


def main(inventory, truth):
    application = QgsApplication([], True)
    application.initQgis()
    truths = [feature.geometry() for feature in opened(truth, "landslides").getFeatures()]
    layers = [opened(inventory, name) for name in ("landslides", "candidates", "review")]
    for layer in layers:
        layer.startEditing()
    landslides, candidates, windows = layers
    counts = {"accepted": 0, "rejected": 0, "redrawn": 0, "added": 0, "windows": 0}
    area = QgsGeometry.unaryUnion([window.geometry() for window in windows.getFeatures()])
    kept = [one for layer in (landslides, candidates) for one in reviewed(layer, area, truths, counts)]
    for outline in truths:
        if outline.intersects(area) and not any(outline.intersects(one) for one in kept):
            added = QgsFeature(landslides.fields())
            added.setGeometry(outline)
            counts["added"] += landslides.addFeature(added)
    for window in windows.getFeatures():
        counts["windows"] += windows.changeAttributeValue(window.id(), windows.fields().indexOf("status"), "reviewed")
    for layer in layers:
        if not layer.commitChanges():
            raise SystemExit(f"QGIS could not save {layer.name()}: {layer.commitErrors()}")
    print(json.dumps(counts))
    del layers, landslides, candidates, windows, layer
    application.exitQgis()


if __name__ == "__main__":
    main(*sys.argv[1:])
