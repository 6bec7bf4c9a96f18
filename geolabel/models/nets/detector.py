"""Mask R-CNN, built from a description.

Sources: He et al. (2017), "Mask R-CNN", as torchvision has it; from random weights it needs normalisation that does not
depend on the batch: He et al. (2019), "Rethinking ImageNet Pre-training".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

ANCHORS = (32, 64, 128, 256, 512)
"""Sides of the anchors of the five levels, pixels."""


def build_detector(
    classes: int,
    backbone: str = "resnet50",
    anchors: Sequence[int] = ANCHORS,
    proposals: int = 1000,
    detections: int = 100,
    sampled: int = 512,
) -> nn.Module:
    """Build a detector with random weights that takes images at their own scale.

    Parameters
    ----------
    classes
        How many there are, the background left out.
    backbone
        A ResNet of torchvision.
    anchors
        One side for each level.
    proposals, detections
        Boxes that are looked at in an image, and objects that are answered at most; COCO counts 100.
    sampled
        Boxes of an image that are learned from; a quarter of them, at most, get masks.
    """
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.rpn import AnchorGenerator

    trunk = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, trainable_layers=5, norm_layer=partial(nn.GroupNorm, 32)
    )
    boxes = AnchorGenerator(tuple((side,) for side in anchors), ((0.5, 1.0, 2.0),) * len(anchors))
    # Without the last, images would be scaled to sides of 800 to 1333 px: a pixel of ours has a size on the ground.
    detector: nn.Module = MaskRCNN(
        trunk,
        classes + 1,
        rpn_anchor_generator=boxes,
        rpn_pre_nms_top_n_test=proposals,
        rpn_post_nms_top_n_test=proposals,
        box_detections_per_img=detections,
        box_batch_size_per_image=sampled,
        _skip_resize=True,
    )
    return detector
