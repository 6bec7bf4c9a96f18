# ruff: noqa: E402  # QGIS is found, and started, before what needs it is imported
"""Run by the Python of QGIS: algorithms of the plugin as its windows run them, with their results loaded."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
plugins, work = sys.argv[1:3]
sys.path[:0] = ["/usr/share/qgis/python/plugins", plugins]

from qgis.core import (
    QgsApplication,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProcessingOutputLayerDefinition,
    QgsProject,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize

application = QgsApplication([], True)
application.initQgis()

import geolabel_qgis  # what follows needs the application
import processing
from processing.core.Processing import Processing
from processing.gui.Postprocessing import handleAlgorithmResults

Processing.initialize()

plugin = geolabel_qgis.classFactory(None)
plugin.initProcessing()
project = QgsProject.instance()


class Feedback(QgsProcessingFeedback):
    def __init__(self):
        super().__init__(False)
        self.said = []
        self.steps = []

    def setProgressText(self, text):
        self.steps.append(text)

    def pushWarning(self, text):
        self.said.append(text)

    def pushInfo(self, text):
        self.said.append(text)

    def reportError(self, text, fatalError=False):
        self.said.append(text)


def run(name, parameters):
    """Results, or the error, and what was said; outputs that are to be loaded are loaded."""
    context, feedback = QgsProcessingContext(), Feedback()
    context.setProject(project)
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(f"geolabel:{name}")
    try:
        results = processing.run(
            algorithm,
            parameters,
            context=context,
            feedback=feedback,
            onFinish=lambda alg, ctx, fb: handleAlgorithmResults(alg, ctx, fb, parameters=parameters),
        )
    except QgsProcessingException as error:
        results = {"error": str(error)}
    return {"results": results, "said": feedback.said, "steps": feedback.steps}


def loaded(path):
    """The output, and that it is loaded."""
    return QgsProcessingOutputLayerDefinition(path, project)


def tree():
    """Groups with their layers, from above."""
    return [
        [group.name(), [[one.name(), one.layer().renderer().type()] for one in group.findLayers()]]
        for group in project.layerTreeRoot().children()
    ]


def draw(path):
    settings = QgsMapSettings()
    nodes = [node for node in project.layerTreeRoot().findLayers() if node.isVisible()]
    settings.setLayers([node.layer() for node in nodes])
    settings.setDestinationCrs(nodes[0].layer().crs())
    settings.setExtent(project.mapLayersByName("tiles")[0].extent())
    settings.setOutputSize(QSize(400, 400))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(path)


calls = json.loads(Path(work, "calls.json").read_text())
found = []
for name, parameters in calls:
    if parameters.get("SELECTED"):
        layer = QgsVectorLayer(parameters.pop("SELECTED"), "selected", "ogr")
        project.addMapLayer(layer, False)
        layer.selectByIds([1])
        parameters["AOI"] = QgsProcessingFeatureSourceDefinition(layer.id(), selectedFeaturesOnly=True)
    if parameters.pop("LOADED", False):
        parameters["OUTPUT"] = loaded(parameters["OUTPUT"])
    found.append(run(name, parameters) | {"tree": tree()})
if project.mapLayersByName("tiles"):
    draw(f"{work}/map.png")
print(json.dumps(found), flush=True)
os._exit(0)  # Python and QGIS take each other's objects away where they end together
