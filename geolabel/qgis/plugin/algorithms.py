"""Processing algorithms, one for each command that they call."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import (
    QgsMapLayer,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterMapLayer,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsProviderRegistry,
    QgsWkbTypes,
)
from qgis.PyQt import sip
from qgis.PyQt.QtGui import QIcon

from .program import GAPS, NOTHING, Canceled, Done, ProgramError, run, share_done, version_of

GROUP = "geolabel"

COMMAND = "GEOLABEL_COMMAND"
"""Name of the setting."""

FOLDER = Path(__file__).parent

FORMATS = ("gpkg", "geojson", "shp", "fgb")
"""Formats of polygons that geolabel reads directly; others are converted to the first of them."""

OWN = ("--", "--json", "--overwrite", "--out", "-o", "--quiet", "-q")
"""Options that a person must not give: the dialog sets them, or the call depends on them."""

LEVELS = ("auto", "threshold", "head", "all")


class CommandAlgorithm(QgsProcessingAlgorithm):
    """An algorithm that calls a command of geolabel."""

    command = ""
    title = ""
    about = ""

    def name(self) -> str:
        """Identifier of the algorithm."""
        return self.command

    def displayName(self) -> str:
        """Title in the toolbox."""
        return self.title

    def shortHelpString(self) -> str:
        """Help text beside the dialog."""
        return self.about

    def icon(self) -> Any:
        """Icon in the toolbox."""
        return QIcon(str(FOLDER / "icon.svg"))

    def createInstance(self) -> CommandAlgorithm:
        """Return another instance."""
        return type(self)()

    # --- parameters --------------------------------------------------------------------------------------------------

    def add_raster(self, name: str, text: str, *, optional: bool = False) -> None:
        """Ask for a raster."""
        self.addParameter(QgsProcessingParameterRasterLayer(name, text, optional=optional))

    def add_polygons(self, name: str, text: str, *, optional: bool = True) -> None:
        """Ask for polygons, of which only some may be selected."""
        kinds = [QgsProcessing.TypeVectorPolygon]
        self.addParameter(QgsProcessingParameterFeatureSource(name, text, kinds, optional=optional))

    def add_number(self, name: str, text: str, low: float, high: float) -> None:
        """Ask for a number, which may be left out."""
        kind = QgsProcessingParameterNumber.Type.Double
        self.addParameter(QgsProcessingParameterNumber(name, text, kind, None, True, low, high))

    def add_inventory(self, name: str, text: str, *, optional: bool = False) -> None:
        """Ask for a whole GeoPackage, with all layers that geolabel wrote."""
        kind = QgsProcessingParameterFile.Behavior.File
        self.addParameter(QgsProcessingParameterFile(name, text, kind, "gpkg", None, optional))

    def add_networks(self) -> None:
        """Ask for a folder of adapted networks."""
        kind = QgsProcessingParameterFile.Behavior.Folder
        text = "Networks: a folder that Adapt wrote"
        self.addParameter(QgsProcessingParameterFile("NETWORKS", text, kind, optional=True))

    def add_common(self) -> None:
        """Ask for the parameters that few people need."""
        text = f"More options of geolabel {self.command}, as on the command line"
        options = QgsProcessingParameterString("OPTIONS", text, "", optional=True)
        overwrite = QgsProcessingParameterBoolean("OVERWRITE", "Replace the output if it exists", False)
        for one in (options, overwrite):
            one.setFlags(one.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
            self.addParameter(one)

    # --- values ------------------------------------------------------------------------------------------------------

    def raster(self, parameters: Any, name: str, context: Any) -> str:
        """Path or URL of a raster; empty if none is given."""
        layer = self.parameterAsRasterLayer(parameters, name, context)
        if layer is None:
            if parameters.get(name) in (None, ""):
                return ""
            raise QgsProcessingException(self.invalidRasterError(parameters, name))
        if layer.providerType() != "gdal":
            raise QgsProcessingException(
                f"{layer.name()} comes from {layer.providerType()}, which geolabel does not read: save it as a GeoTIFF"
            )
        known = QgsProviderRegistry.instance().decodeUri("gdal", layer.source())
        return str(known["path"] if known.get("path") and not known.get("layerName") else layer.source())

    def polygons(self, parameters: Any, name: str, context: Any, feedback: Any) -> tuple[str, str]:
        """File and layer of polygons, written anew if only QGIS can read them or some are selected.

        Both are empty if none are given, and the layer is empty if it is the only one of the file.
        """
        if parameters.get(name) in (None, ""):
            return "", ""
        path, layer = self.parameterAsCompatibleSourceLayerPathAndLayerName(
            parameters, name, context, list(FORMATS), FORMATS[0], feedback
        )
        if not path:
            raise QgsProcessingException(self.invalidSourceError(parameters, name))
        return str(path), str(layer)

    def file_of_polygons(self, parameters: Any, name: str, context: Any, feedback: Any) -> str | None:
        """A file of one layer of polygons."""
        if parameters.get(name) in (None, ""):
            return None
        return str(
            self.parameterAsCompatibleSourceLayerPath(parameters, name, context, list(FORMATS), FORMATS[0], feedback)
        )

    def number(self, parameters: Any, name: str, context: Any, unit: str = "") -> str | None:
        """A number with its unit; None if none is given."""
        if parameters.get(name) is None:
            return None
        return f"{self.parameterAsDouble(parameters, name, context):g}{unit}"

    def geopackage(self, parameters: Any, context: Any) -> str:
        """Path of the file of layers."""
        output = str(self.parameterAsOutputLayer(parameters, "OUTPUT", context))
        if not output.lower().endswith(".gpkg"):
            raise QgsProcessingException(f"{output}: geolabel writes a whole GeoPackage; choose Save to File, .gpkg")
        return output

    def common(self, parameters: Any, context: Any, arguments: list[str]) -> list[str]:
        """Options that a person wrote, and those that are always given; `arguments` are those of the dialog."""
        text = self.parameterAsString(parameters, "OPTIONS", context)
        try:
            more = shlex.split(text)
        except ValueError as error:
            raise QgsProcessingException(f"{text}: {error}") from error
        own = {*OWN, *(word for word in arguments if word.startswith("--"))}
        double = [word for word in more if word.split("=")[0] in own]
        if double:
            raise QgsProcessingException(f"{double[0]} is set by the dialog: leave it out of the options")
        overwrite = ["--overwrite"] if self.parameterAsBool(parameters, "OVERWRITE", context) else []
        return [*arguments, *more, *overwrite]

    # --- the call ----------------------------------------------------------------------------------------------------

    def call(self, words: list[str], inputs: list[str], feedback: Any) -> Done:
        """Run the command and show its progress."""
        command = str(ProcessingConfig.getSetting(COMMAND) or "")
        try:
            version = version_of(command)
            if version != (own := _own_version()):
                feedback.pushWarning(
                    f"{command} is geolabel {version}, and this plugin is of {own}: install it again from that "
                    "environment with geolabel qgis install"
                )
            # a name that begins with a dash is not an option
            arguments = [self.command, *words, "--json", "--", *inputs]
            feedback.pushCommandInfo(" ".join(map(shlex.quote, [command, *arguments])))
            done = run(
                command,
                arguments,
                is_canceled=feedback.isCanceled,
                on_progress=lambda *record: _show(feedback, self.command, *record),
                on_message=lambda line: _say(feedback, line),
            )
        except Canceled:
            raise QgsProcessingException("Canceled. The same command, with the same output, resumes it") from None
        except ProgramError as error:
            raise QgsProcessingException(str(error)) from error
        if done.code == GAPS:
            feedback.pushWarning("Finished without a part of the scene")
        return done


def _own_version() -> str:
    lines = (FOLDER / "metadata.txt").read_text(encoding="utf-8").splitlines()
    return next(line.split("=", 1)[1] for line in lines if line.startswith("version="))


def _show(feedback: Any, command: str, name: str, done: int, total: int | None) -> None:
    if done == 0:  # once per pass: each text is a line of the log, which a long run would fill
        feedback.setProgressText(name if total is None else f"{name}: {total} {'step' if total == 1 else 'steps'}")
    if (share := share_done(command, name, done, total)) is not None:
        feedback.setProgress(100 * share)


def _say(feedback: Any, line: str) -> None:
    if line.startswith("warning: "):
        feedback.pushWarning(line[len("warning: ") :])
    else:
        feedback.pushInfo(line)


# --- results ---------------------------------------------------------------------------------------------------------


class _Grouped(QgsProcessingLayerPostProcessorInterface):
    """Gives the layers of one result the styles of their file, and groups them in the order of the file."""

    def __init__(self, group: str, names: list[str]) -> None:
        super().__init__()
        self.group = group
        self.names = names

    def postProcessLayer(self, layer: Any, context: Any, feedback: Any) -> None:  # noqa: ARG002
        """Style and move a layer that was loaded; Processing loads layers without the styles of their file."""
        layer.loadDefaultStyle()
        layer.triggerRepaint()
        root = context.project().layerTreeRoot()
        node = root.findLayer(layer.id())
        if node is None:
            return
        group = root.findGroup(self.group) or root.insertGroup(0, self.group)
        rank = self.names.index(layer.name())
        # QGIS may have put the layer into the group already, above the others
        places = [place for place, one in enumerate(group.children(), 1) if one.name() in self.names[:rank]]
        moved = node.clone()
        moved.setExpanded(rank == 0)
        group.insertChildNode(max(places, default=0), moved)
        node.parent().removeChildNode(node)


_KEPT: list[_Grouped] = []
"""Keeps objects alive that QGIS still needs; those that QGIS has deleted are dropped at the next run."""


def _load_layers(path: str, context: Any) -> None:
    """Load all layers of a result where its first one is loaded."""
    if not context.willLoadLayerOnCompletion(path):
        return
    first = context.layerToLoadOnCompletionDetails(path)
    found = QgsProviderRegistry.instance().querySublayers(path)
    layers = {one.name(): one.uri() for one in found if one.wkbType() != QgsWkbTypes.NoGeometry}
    names = list(layers)
    movers = [_Grouped(Path(path).stem, names) for _ in names]  # QGIS deletes that of each layer itself
    _KEPT[:] = [one for one in _KEPT if not sip.isdeleted(one)] + movers
    first.name = names[0]
    for name, mover in zip(names, movers):  # noqa: B905 - of Python 3.10
        details = first if name == names[0] else QgsProcessingContext.LayerDetails(name, first.project, "")
        details.forceName = True
        if hasattr(details, "layerSortKey"):  # of later versions, which group and sort themselves
            details.groupName, details.layerSortKey = mover.group, len(names) - names.index(name)
        details.setPostProcessor(mover)
        if name != names[0]:
            context.addLayerToLoadOnCompletion(layers[name], details)


# --- the commands ----------------------------------------------------------------------------------------------------


class Extract(CommandAlgorithm):
    """``geolabel extract``."""

    command = "extract"
    title = "Extract landslides"
    about = (
        "Finds the landslides of a scene and writes them as polygons, with candidates, prompts and tiles in layers of "
        "their own.\n\nSet status to accepted or rejected as you look, and give the file as 'Keep the review of' to "
        "another run. A run that was canceled resumes where the output has the same name."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ARG002
        """Name the parameters."""
        self.add_raster("SCENE", "Scene")
        self.add_polygons("AOI", "Area of interest")
        self.add_raster("BEFORE", "Image from before the event", optional=True)
        self.add_raster("DEM", "Heights in metres", optional=True)
        self.add_number("MIN_SLOPE", "Minimum mean slope in degrees (needs heights)", 0, 90)
        self.add_polygons("EXCLUDE", "Ground without landslides, such as water")
        self.add_inventory("KEEP_REVIEWED", "Keep the review of", optional=True)
        self.add_number("MIN_CONFIDENCE", "Minimum confidence of a landslide", 0, 1)
        self.add_networks()
        self.add_common()
        self.addParameter(QgsProcessingParameterVectorDestination("OUTPUT", "Landslides"))
        self.addOutput(QgsProcessingOutputNumber("COUNT", "Number of landslides"))

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> dict[str, Any]:
        """Run."""
        scene, output = self.raster(parameters, "SCENE", context), self.geopackage(parameters, context)
        words = ["--out", output]
        for name in ("BEFORE", "DEM"):
            words += _given(name, self.raster(parameters, name, context))
        words += _given_layer("AOI", self.polygons(parameters, "AOI", context, feedback))
        words += _given("EXCLUDE", self.file_of_polygons(parameters, "EXCLUDE", context, feedback))
        words += _given("MIN_SLOPE", self.number(parameters, "MIN_SLOPE", context, "deg"))
        words += _given("MIN_CONFIDENCE", self.number(parameters, "MIN_CONFIDENCE", context))
        for name in ("KEEP_REVIEWED", "NETWORKS"):
            words += _given(name, self.parameterAsString(parameters, name, context))
        done = self.call(self.common(parameters, context, words), [scene], feedback)
        _load_layers(output, context)
        return {"OUTPUT": output, "COUNT": done.result["landslides"]}


class Segment(CommandAlgorithm):
    """``geolabel segment``."""

    command = "segment"
    title = "Segment everything"
    about = "Outlines everything in a scene that the segmenter takes for an object, without classes."

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ARG002
        """Name the parameters."""
        self.add_raster("SCENE", "Scene")
        self.add_polygons("AOI", "Area of interest")
        self.add_common()
        self.addParameter(QgsProcessingParameterVectorDestination("OUTPUT", "Segments"))

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> dict[str, Any]:
        """Run."""
        scene, output = self.raster(parameters, "SCENE", context), self.geopackage(parameters, context)
        words = ["--out", output, *_given_layer("AOI", self.polygons(parameters, "AOI", context, feedback))]
        self.call(self.common(parameters, context, words), [scene], feedback)
        _load_layers(output, context)
        return {"OUTPUT": output}


class Adapt(CommandAlgorithm):
    """``geolabel adapt``."""

    command = "adapt"
    title = "Adapt the networks to a region"
    about = (
        "Adapts the networks to the region of a scene, from what was reviewed there: accepted, redrawn and added "
        "polygons are landslides, rejected and deleted ones other ground. Save the edits of the layers first."
        " Outlines that were drawn or corrected teach the segmenter too."
        "\n\nWhere nothing gains, nothing is written. Give the folder as Networks to Extract landslides."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ARG002
        """Name the parameters."""
        self.add_raster("SCENE", "Scene")
        self.add_inventory("REVIEWED", "Reviewed landslides")
        self.addParameter(
            QgsProcessingParameterEnum("LEVEL", "What is adapted of the localizer", list(LEVELS), defaultValue=0)
        )
        self.add_common()
        self.addParameter(QgsProcessingParameterFolderDestination("OUTPUT", "Networks"))
        self.addOutput(
            QgsProcessingOutputString("CHOSEN", "What was adapted: a level, decoder; empty where nothing gains")
        )
        self.addOutput(QgsProcessingOutputNumber("GAIN", "Gain in F1, validated"))

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> dict[str, Any]:
        """Run."""
        scene, output = self.raster(parameters, "SCENE", context), self.parameterAsString(parameters, "OUTPUT", context)
        words = ["--out", output, *_given("REVIEWED", self.parameterAsString(parameters, "REVIEWED", context))]
        words += _given("LEVEL", LEVELS[self.parameterAsEnum(parameters, "LEVEL", context)])
        done = self.call(self.common(parameters, context, words), [scene], feedback)
        if done.code == NOTHING:
            feedback.pushWarning("Nothing gains enough to be sure of, and nothing was written: review more")
        chosen = [done.result["level"], "decoder" if done.result.get("decoder") else None]
        return {"OUTPUT": output, "CHOSEN": ", ".join(filter(None, chosen)), "GAIN": done.result["gain"]}


class Evaluate(CommandAlgorithm):
    """``geolabel evaluate``."""

    command = "evaluate"
    title = "Evaluate landslides"
    about = (
        "Scores polygons against the truth: a raster (1 landslide, 255 or nodata not judged, all else background) or "
        "polygons. Where the truth holds polygons, the scene or an area of interest says what was judged."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: ARG002
        """Name the parameters."""
        self.add_polygons("SLIDES", "Landslides", optional=False)
        kinds = [QgsProcessing.TypeVectorPolygon, QgsProcessing.TypeRaster]
        self.addParameter(QgsProcessingParameterMapLayer("TRUTH", "Truth", types=kinds))
        self.add_raster("SCENE", "Scene", optional=True)
        self.add_polygons("AOI", "Area of interest")
        report = QgsProcessingParameterFileDestination(
            "REPORT", "Report", "JSON (*.json)", optional=True, createByDefault=False
        )
        self.addParameter(report)
        for name, text in FIGURES.items():
            self.addOutput(QgsProcessingOutputNumber(name.upper(), text))

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> dict[str, Any]:
        """Run."""
        slides = self.polygons(parameters, "SLIDES", context, feedback)
        truth = self.parameterAsLayer(parameters, "TRUTH", context)
        if truth is not None and truth.type() == QgsMapLayer.RasterLayer:
            against = self.raster(parameters, "TRUTH", context), ""
        else:
            against = self.polygons(parameters, "TRUTH", context, feedback)
        words = [*_given("LAYER", slides[1]), *_given("TRUTH_LAYER", against[1])]
        words += _given("SCENE", self.raster(parameters, "SCENE", context))
        words += _given_layer("AOI", self.polygons(parameters, "AOI", context, feedback))
        result = self.call(words, [slides[0], against[0]], feedback).result
        for name, text in FIGURES.items():
            feedback.pushInfo(f"{text}: {_text(result.get(name))}")
        if report := self.parameterAsFileOutput(parameters, "REPORT", context):
            Path(report).write_text(json.dumps(result, indent=2), encoding="utf-8")
        return {**{name.upper(): result.get(name) for name in FIGURES}, "REPORT": report}


FIGURES = {
    "precision": "Precision of the area",
    "recall": "Recall of the area",
    "f1": "F1 of the area",
    "iou": "IoU of the area",
    "object_f1": "F1 of pairs of IoU 0.5 or more",
}
"""Figures of `Evaluate`, by their names in geolabel."""


def _text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def _given(name: str, value: str | None) -> list[str]:
    """An option by the name of its parameter; empty if it has no value."""
    return [f"--{name.lower().replace('_', '-')}", value] if value else []


def _given_layer(name: str, found: tuple[str, str]) -> list[str]:
    """Options for a file and for its layer."""
    return [*_given(name, found[0]), *_given(f"{name}_LAYER", found[1])]


ALGORITHMS = (Extract, Adapt, Evaluate, Segment)
