"""Settings of the methods: over scenes, and over folders of chips. Their implementation is in the methods' modules.

Each field is an option of ``extract`` and ``predict``, or of ``label``. Settings of several methods are named types.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from geolabel.settings import Setting

Selection = Literal["best_iou", "first", "whole", "single", "overlap"]
"""Which of SAM's candidates answers a prompt: the highest predicted IoU, the first, the last, the single mask, or the
one of the highest IoU with the activation that the prompt came from (DiffuPrompter, section 2.2.3)."""

_Localizer = Annotated[
    str | None,
    Setting(
        "Network that makes the activation maps; with sam3 a folder, or OWNER/NAME[@REVISION] of the Hugging Face hub. "
        "Default: bundled; sam3 with sam3.",
        "method",
        kind="network",
        metavar="NAME|FILE|FOLDER",
    ),
]
_Gate = Annotated[
    float,
    Setting("Minimum class probability of a window whose activation is used.", "sensitivity", low=0, high=1),
]
_Threshold = Annotated[
    int, Setting("Threshold of the activation, a grey value.", "sensitivity", rare=True, low=0, high=255)
]
_Prompts = Annotated[Literal["box", "point", "both"], Setting("Kind of prompts for each object.", "method", rare=True)]
_Answer = Annotated[
    Selection,
    Setting(
        "Choice among the masks that the segmenter proposes; overlap is the one most like the activation.",
        "method",
        rare=True,
    ),
]
_MinQuality = Annotated[
    float, Setting("Minimum predicted IoU x stability of a mask.", "sensitivity", rare=True, low=0, high=1)
]
_Confidence = Annotated[
    float | None,
    Setting(
        "Minimum stability x activation of a mask. Default: 0.5; 0 with the bundled segmenter.",
        "sensitivity",
        rare=True,
        low=0,
        high=1,
    ),
]
_PredictedIou = Annotated[
    float | None,
    Setting(
        "Minimum predicted IoU of a mask. Default: 0.88, less for the bundled network.", "sensitivity", low=0, high=1
    ),
]
_Stability = Annotated[
    float | None,
    Setting("Minimum stability of a mask. Default: 0.95, less for the bundled network.", "sensitivity", low=0, high=1),
]
_CANDIDATES = "best_iou", "first", "whole", "single"
_SingleScale = Annotated[
    bool, Setting("Use one view of a chip instead of four scales and mirrored ones.", "method", rare=True)
]
_Pamr = Annotated[
    bool | None,
    Setting(
        "Refine the maps along the edges of the image by pixel-adaptive refinement (PAMR). Default: on for apsam and "
        "cism with a localizer that learned from labels of whole images.",
        "method",
        flag="--pamr/--no-pamr",
    ),
]
_ClassName = Annotated[str, Setting("Name of label 1 of the chips.", "input")]
_Crf = Annotated[
    bool,
    Setting(
        "Refine the maps along the edges of the image with a dense CRF. Default: on for diffuprompter, as in its "
        "paper.",
        "method",
        rare=True,
        flag="--crf/--no-crf",
    ),
]
_Seed = Annotated[int, Setting("Random seed.", "method", low=0)]


_Classes = Annotated[
    str,
    Setting(
        "Classes to find, in words, such as landslide/mudslide,airplane.",
        "method",
        rare=True,
        metavar="NAME[/SYNONYM...],...",
    ),
]
_MapThreshold = Annotated[float, Setting("Threshold of the activation.", "sensitivity", above=0, below=1)]
_AttentionOnly = Annotated[bool, Setting("Use the maps of the words themselves, without a segmenter.", "method")]


@dataclass(frozen=True)
class Words:
    """What a diffusion network is asked."""

    classes: _Classes = "landslide"
    diffusion: Annotated[
        str,
        Setting(
            "Model of Stable Diffusion 1.x, a folder or a name on the Hugging Face hub. Default: "
            "stable-diffusion-v1-5/stable-diffusion-v1-5, 4 GB.",
            "method",
            rare=True,
            metavar="FOLDER|OWNER/NAME",
        ),
    ] = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    template: Annotated[str, Setting("Text around the name of the class.", "method", rare=True)] = "Photo of a {}"
    timestep: Annotated[
        int, Setting("Step of the noise schedule to add noise at, of 1000.", "method", rare=True, low=0)
    ] = 40
    draws: Annotated[int, Setting("Number of maps of independent noise to average.", "method", rare=True, low=1)] = 50
    crf: _Crf = True  # eq. 10


# --- over scenes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ApsamScenes:
    """Settings of APSAM over scenes."""

    gate: _Gate = 0.5
    activation_threshold: _Threshold = 120
    activation_floor: Annotated[
        int | None,
        Setting(
            "Threshold of the activation under every pixel of a landslide, except for prompts drawn by a person. "
            "Default: 100 with the bundled localizer, else 0.",
            "sensitivity",
            rare=True,
            low=0,
            high=255,
        ),
    ] = None
    prompts: _Prompts = "both"
    selection: _Answer = "best_iou"
    min_quality: _MinQuality = 0.0


@dataclass(frozen=True)
class S2cScenes:
    """Settings of S2C over scenes."""

    confidence: _Confidence = None
    gate: _Gate = 0.5
    activation_threshold: _Threshold = 120
    prompts: _Prompts = "both"
    selection: _Answer = "best_iou"
    min_quality: _MinQuality = 0.0


@dataclass(frozen=True)
class CismScenes:
    """Settings of CISM over scenes."""

    gate: _Gate = 0.5


@dataclass(frozen=True)
class AlpsScenes:
    """Settings of ALPS over scenes."""

    clusters: Annotated[
        str | Path | None,
        Setting(
            "Named clusters, or the folder of pseudo-labels with them.",
            "method",
            rare=True,
            kind="path",
            metavar="FILE",
        ),
    ] = None
    cluster_names: Annotated[
        tuple[str, ...],
        Setting(
            "Name of the clusters to find; repeatable.",
            "method",
            rare=True,
            metavar="NAME",
            flag="--cluster-name",
        ),
    ] = ("landslide",)
    min_quality: _MinQuality = 0.0


@dataclass(frozen=True)
class DiffuprompterScenes(Words):
    """Settings of DiffuPrompter over scenes."""

    gate: Annotated[
        float,
        Setting(
            "Minimum raw attention to a class in a tile to search, 0 to 1; 0 searches every tile. Its range depends "
            "on the diffusion model.",
            "sensitivity",
            low=0,
            high=1,
        ),
    ] = 0.0
    activation_threshold: _Threshold = 102  # the paper's gamma of eq. 10, 0.4
    prompts: _Prompts = "both"
    selection: _Answer = "overlap"
    min_quality: _MinQuality = 0.0


@dataclass(frozen=True)
class Sam3Scenes:
    """Settings of SAM 3's concepts over scenes."""

    classes: _Classes = "landslide"
    attention_only: _AttentionOnly = False
    gate: _Gate = 0.5
    activation_threshold: _Threshold = 127  # 0.5, that of the released code
    prompts: _Prompts = "both"
    selection: _Answer = "overlap"
    min_quality: _MinQuality = 0.0


@dataclass(frozen=True)
class StudentScenes:
    """Settings of a student over scenes."""

    student: Annotated[
        str | Path | None,
        Setting(
            "Student of geolabel train student, which runs without localizer and segmenter.",
            "method",
            kind="weights",
            metavar="FILE",
        ),
    ] = None


@dataclass(frozen=True)
class GridSettings:
    """Settings of ``segment``; the defaults are those of segment-anything's generator."""

    points_per_side: Annotated[
        int,
        Setting("Points of the grid along each side of a tile, each of which is a prompt.", "method", low=1),
    ] = 32
    predicted_iou: _PredictedIou = None
    stability: _Stability = None
    duplicate: Annotated[
        float,
        Setting(
            "Maximum IoU of the boxes of two masks in a tile; of masks above it, only the best is kept.",
            "sensitivity",
            rare=True,
            low=0,
            high=1,
        ),
    ] = 0.7
    same: Annotated[
        float,
        Setting(
            "Minimum IoU of two masks of one object, in the overlap of two tiles.",
            "sensitivity",
            rare=True,
            above=0,
            high=1,
        ),
    ] = 0.5


# --- over folders of chips -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ApsamChips:
    """Settings of APSAM; the defaults are the paper's, where they are not None."""

    localizer: _Localizer = None
    activation_threshold: _Threshold = 120  # eq. 2
    prompts: _Prompts = "both"
    selection: Annotated[
        Selection | None,
        Setting(
            "Choice among the masks that the segmenter proposes. Default: whole; best_iou for apsam with other "
            "segmenters than the bundled one.",
            "method",
            rare=True,
            choices=_CANDIDATES,
        ),
    ] = None
    agreed: Annotated[  # not in the paper
        bool | None,
        Setting(
            "Ignore pixels where mask and activation disagree. Default: on with the bundled segmenter.",
            "method",
            flag="--agreed/--not-agreed",
        ),
    ] = None
    pamr: _Pamr = None
    single_scale: _SingleScale = False
    class_name: _ClassName = "landslide"


@dataclass(frozen=True)
class S2cChips:
    """Settings of S2C; the defaults are the paper's, but for the mask, where it is the released code's."""

    localizer: _Localizer = None
    confidence: _Confidence = None  # the tau of eq. 11
    single_peak: Annotated[bool, Setting("Prompt with the highest peak only.", "method", rare=True)] = False
    selection: Annotated[
        Selection,
        Setting("Choice among the masks that the segmenter proposes.", "method", rare=True, choices=_CANDIDATES),
    ] = "whole"
    pamr: _Pamr = False
    single_scale: _SingleScale = False
    class_name: _ClassName = "landslide"


@dataclass(frozen=True)
class CismChips:
    """Settings of CISM. With a CRF, the threshold is the background's activation; it takes seconds a chip."""

    localizer: _Localizer = None
    activation_threshold: _Threshold = 102  # 0.4 of the maximum
    crf: _Crf = False  # the paper has one, and on landslides it lost
    pamr: _Pamr = None
    single_scale: _SingleScale = False
    class_name: _ClassName = "landslide"


@dataclass(frozen=True)
class AlpsChips:
    """Settings of ALPS; those that are None are the paper's, or come with the clusters of a file."""

    clusters: Annotated[
        str,
        Setting("Number of clusters, auto, or a file of existing clusters.", "method", metavar="K|auto|FILE"),
    ] = "auto"
    max_share: Annotated[
        float | None,
        Setting(
            "Maximum share of an image that a region covers; larger ones are background, also a landslide that fills "
            "a chip. Default: 0.3; 0.7 with the bundled network, whose tiles are small.",
            "sensitivity",
            above=0,
            high=1,
        ),
    ] = None
    points_per_side: Annotated[
        int | None, Setting("Points of the grid along each side of an image. Default: 32.", "method", low=1)
    ] = None
    predicted_iou: _PredictedIou = None
    stability: _Stability = None
    passes: Annotated[int, Setting("Number of passes of k-means over all masks.", "method", rare=True, low=1)] = 3
    seed: _Seed = 0
    normalised: Annotated[bool, Setting("Cluster features scaled to unit length.", "method", rare=True)] = False
    regions: Annotated[
        Path | None,
        Setting(
            "Folder that keeps the regions of the segmenter, for a run with another number of clusters or another "
            "share.",
            "output",
            kind="folder",
            metavar="FOLDER",
        ),
    ] = None


@dataclass(frozen=True)
class DiffuprompterChips(Words):
    """Settings of DiffuPrompter; the defaults are the paper's."""

    threshold: _MapThreshold = 0.4  # eq. 10
    attention_only: _AttentionOnly = False
    seed: _Seed = 0


@dataclass(frozen=True)
class Sam3Chips:
    """Settings of SAM 3's concepts; the threshold is that of the released code."""

    classes: _Classes = "landslide"
    localizer: _Localizer = None
    threshold: _MapThreshold = 0.5
    attention_only: _AttentionOnly = False
