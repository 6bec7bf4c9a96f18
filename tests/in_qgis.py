"""Run by the Python of QGIS: opens projects as its window does, and prints what they are, with all that QGIS says."""

import json
import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from qgis.core import (
    QgsApplication,
    QgsMapRendererParallelJob,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.gui import QgsLayerTreeMapCanvasBridge, QgsMapCanvas
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtXml import QDomDocument


def style_of(layer):
    document = QDomDocument()
    layer.exportNamedStyle(document)
    lines = document.toString().splitlines()
    # QGIS guesses a field of time for layers that it opens by hand; nothing is shown by it
    return [line for line in lines if "<temporal" not in line]


def described(node):
    layer = node.layer()
    found = {
        "name": node.name(),
        "ticked": node.itemVisibilityChecked(),
        "valid": layer.isValid(),
        "crs": layer.crs().authid(),
        "source": layer.source(),
        "kind": type(layer).__name__,
    }
    if isinstance(layer, QgsRasterLayer):
        one = layer.renderer()
        contrasts = one.redContrastEnhancement(), one.greenContrastEnhancement(), one.blueContrastEnhancement()
        found["bands"] = [one.redBand(), one.greenBand(), one.blueBand()]
        found["stretch"] = [[contrast.minimumValue(), contrast.maximumValue()] for contrast in contrasts]
    else:
        found["features"] = layer.featureCount()
        beside = QgsVectorLayer(layer.source(), node.name(), "ogr")
        found["own_style"] = style_of(beside) == style_of(layer)
        found["renderer"] = layer.renderer().type()
    return found


def looked_at(project, path, picture, again):
    canvas = QgsMapCanvas()
    canvas.setObjectName("theMapCanvas")
    canvas.resize(400, 400)
    bridge = QgsLayerTreeMapCanvasBridge(project.layerTreeRoot(), canvas)
    read = project.read(path)
    bridge.setCanvasLayers()
    found = {
        "read": read,
        "error": project.error(),
        "crs": project.crs().authid(),
        "title": project.title(),
        "groups": [group.name() for group in project.layerTreeRoot().children()],
        "layers": [described(node) for node in project.layerTreeRoot().findLayers()],
        "extent": [getattr(canvas.extent(), name)() for name in ("xMinimum", "yMinimum", "xMaximum", "yMaximum")],
    }
    settings = canvas.mapSettings()
    settings.setOutputSize(QSize(400, 400))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(picture)
    found["saved"] = project.write(again) if again else None
    return found | {"failed": [error.message for error in job.errors()]}


def main(*arguments):
    application = QgsApplication([], True)
    application.initQgis()
    said = []
    application.messageLog().messageReceived.connect(lambda *message: said.append([*map(str, message)]))
    for number in range(0, len(arguments), 3):
        found = looked_at(QgsProject.instance(), *arguments[number : number + 3])
        print(json.dumps(found | {"said": said}))
        said.clear()
        QgsProject.instance().clear()


main(*sys.argv[1:])
