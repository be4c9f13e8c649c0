"""Convolutional detectors of torchvision, for comparison with the DETR family: Faster R-CNN, RetinaNet and SSD.

They take the images of the other models, have the same backbone, and give the same kind of predictions. Their heads,
anchors, matching of anchors with objects, and losses are torchvision's; so this file, unlike other models, computes
losses.

Shape letters: B batch, Q detections per image, C classes, D width, H W image, h w features, n objects.
Frame: torchvision's boxes are x0, y0, x1, y1 in pixels of the unpadded input image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSDHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou, generalized_box_iou_loss
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from opendetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from opendetr.models.detector import Detector
from opendetr.nn import BackboneConfig, full_precision
from opendetr.structures import FeatureMap, ImageBatch, Output, Predictions, Scoring, Target

_NO_DETECTION = -1000.0  # the logit of a detection that does not exist: its score is exactly 0
_SMALLEST_SIDE = 1e-2  # pixels; boxes with a smaller side can neither be encoded nor evaluated
_RATIOS = (0.5, 1.0, 2.0)  # of the sides of anchors
_GIOU_WEIGHT = 10.0  # the loss is a mean over all sampled boxes, of which at most a quarter contain an object


@dataclass(frozen=True)
class NoTransformer:
    """The sizes of a model without a transformer: the width of its features, and one set of predictions.

    Attributes:
        width: D.
        encoder_layers: 0.
        decoder_layers: 1.
    """

    width: int
    encoder_layers: int = 0
    decoder_layers: int = 1


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Configuration of a convolutional detector. The defaults are those of torchvision's ResNet-50 models.

    Attributes:
        backbone: the CNN.
        width: D, channels of the levels that the heads get.
        anchor_size: side in pixels of the smallest anchors; it doubles from level to level.
        num_queries: Q, the maximum number of detections per image.
        nms: IoU above which non-maximum suppression drops the detection with the lower score; 1 switches it off.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    width: int = 256
    anchor_size: int = 32
    num_queries: int = 100
    nms: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.nms <= 1:
            raise ValueError(f"model.nms: expected an IoU from 0 to 1, got {self.nms}")
        if self.anchor_size < 1:
            raise ValueError(f"model.anchor_size: expected at least 1 pixel, got {self.anchor_size}")

    @property
    def transformer(self) -> NoTransformer:
        """The sizes that other models' configurations describe with their transformer."""
        return NoTransformer(self.width)

    @abstractmethod
    def build(self, num_logits: int, scoring: Scoring) -> BaselineDetector:
        """The model, randomly initialised."""


@dataclass(frozen=True, kw_only=True)
class FasterRCNNConfig(BaselineConfig):
    """Configuration of a Faster R-CNN with a feature pyramid.

    Attributes:
        head_width: features of the box head.
        num_proposals: maximum number of proposals of the first stage in evaluation; twice as many in training.
        num_samples: proposals of an image that the second stage is trained on; at most a quarter have an object.
        box_loss: loss of the boxes of the second stage: "smooth_l1" as published, or "giou" as in the "+" models of the
            DETR paper.
    """

    head_width: int = 1024
    num_proposals: int = 1000
    num_samples: int = 512
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"

    def build(self, num_logits: int, scoring: Scoring) -> FasterRCNN:
        """The model, randomly initialised."""
        return FasterRCNN(self, num_logits, scoring)


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig(BaselineConfig):
    """Configuration of a RetinaNet."""

    def build(self, num_logits: int, scoring: Scoring) -> RetinaNet:
        """The model, randomly initialised."""
        return RetinaNet(self, num_logits, scoring)


@dataclass(frozen=True, kw_only=True)
class SSDConfig(BaselineConfig):
    """Configuration of an SSD on the last three stages of a ResNet and two further levels.

    Attributes:
        nms: as in `BaselineConfig`.
    """

    nms: float = 0.45

    def build(self, num_logits: int, scoring: Scoring) -> SSD:
        """The model, randomly initialised."""
        return SSD(self, num_logits, scoring)


@dataclass(frozen=True)
class BaselineOutput(Output):
    """The output of a convolutional detector.

    `memory` has the levels that the heads get. `layers` has one set of predictions. In training mode, in which the
    losses do not need them, it is empty.

    Attributes:
        image_sizes: (B, 2) int64, height and width of each image before padding, in pixels.
        padded_size: height and width of the padded images, in pixels.
    """

    image_sizes: Tensor = field(kw_only=True)
    padded_size: tuple[int, int] = field(kw_only=True)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image before padding, in pixels."""
        return [(height, width) for height, width in self.image_sizes.tolist()]

    @property
    def image_list(self) -> ImageList:
        """The images as torchvision's modules expect them, without their pixels."""
        pixels = self.image_sizes.new_empty((1, 1, 1), dtype=torch.float32)
        return ImageList(pixels.expand(len(self.image_sizes), *self.padded_size), self.sizes)

    @property
    def levels(self) -> list[Tensor]:
        """The levels (B, D, h, w), fine to coarse."""
        return [level.values for level in self.memory]


Found = dict[str, Tensor]
"""Boxes, scores and labels of one image, as torchvision's modules return them."""


class BaselineDetector(Detector):
    """A convolutional detector: images in, the detections after non-maximum suppression out.

    A detection is a row of `Output.final` with the logit of its score in the column of its class.

    Args:
        config: architecture.
        num_logits: C, number of classes.
        scoring: how class logits become scores: a sigmoid for each class.

    Attributes:
        num_background: outputs of torchvision's class head before those of the classes.
    """

    # The class heads of torchvision have a row per anchor and class, or a row for the background before the others. So
    # no row belongs to a class alone, and weights for other classes cannot be transferred.
    class_rows: tuple[str, ...] = ()
    fixed_classes: bool = True
    has_nms: bool = True
    query_rows: tuple[str, ...] = ()
    num_background: int = 0
    network: Any

    def __init__(self, config: BaselineConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__()
        self.scoring = scoring
        self.backbone = config.backbone.build()
        self._num_queries, self._num_logits = config.num_queries, num_logits

    @property
    def num_queries(self) -> int:
        """Q."""
        return self._num_queries

    @property
    def num_logits(self) -> int:
        """C, number of classes."""
        return self._num_logits

    def encode(self, projected: tuple[FeatureMap, ...]) -> tuple[FeatureMap, ...]:
        """Return the levels: there is no encoder."""
        return projected

    def forward(self, images: ImageBatch) -> BaselineOutput:
        """Images -> their levels, and in evaluation mode their detections: logits (B, Q, C), boxes (B, Q, 4)."""
        features = self.backbone(images)
        with torch.autocast(images.pixels.device.type, enabled=False):  # a box needs more digits than bfloat16 has
            values = tuple(FeatureMap(full_precision(level.values), level.padding) for level in features)
            return self._output(self.project_features(values), features, images.sizes, images.shape)

    def decode(self, memory: tuple[FeatureMap, ...], features: tuple[FeatureMap, ...] = ()) -> BaselineOutput:
        """The levels of images without padding, whose sides are multiples of the strides -> as `forward`."""
        b, _, h, w = memory[0].values.shape
        stride = 4 * 2**self.first_level
        size = (stride * h, stride * w)
        return self._output(memory, features, torch.tensor([size] * b, device=memory[0].values.device), size)

    def _output(
        self,
        levels: tuple[FeatureMap, ...],
        features: tuple[FeatureMap, ...],
        image_sizes: Tensor,
        padded_size: tuple[int, int],
    ) -> BaselineOutput:
        queries = levels[0].values.new_empty((1, len(image_sizes), self.num_queries, 0))
        output = BaselineOutput((), queries, features, levels, image_sizes=image_sizes, padded_size=padded_size)
        return output if self.training else replace(output, layers=(self._predictions(output),))

    def _predictions(self, output: BaselineOutput) -> Predictions:
        """The detections of each image as logits (B, Q, C) and boxes (B, Q, 4), cxcywh in 0..1."""
        found, sizes = self.detect(output), output.sizes
        shape = (len(found), self.num_queries)
        logits = found[0]["boxes"].new_full((*shape, self.num_logits), _NO_DETECTION)
        boxes = found[0]["boxes"].new_tensor([0.5, 0.5, 0.0, 0.0]).repeat(*shape, 1)
        for index, ((height, width), each) in enumerate(zip(sizes, found, strict=True)):
            scale = each["boxes"].new_tensor([width, height, width, height])
            sides = each["boxes"][:, 2:] - each["boxes"][:, :2]
            kept = (sides > _SMALLEST_SIDE).all(1).nonzero()[:, 0][: self.num_queries]
            labels = each["labels"][kept] - self.num_background
            rows = torch.arange(len(kept), device=labels.device)
            logits[index, rows, labels] = each["scores"][kept].logit(eps=1e-6)
            boxes[index, rows] = xyxy_to_cxcywh(each["boxes"][kept] / scale)
        return Predictions(logits, boxes, self.scoring)

    def losses(self, output: BaselineOutput, targets: Sequence[Target]) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of an output in training mode.

        Returns:
            The losses by name, scalars that are sums, and the number that they are to be divided by, a scalar.
        """
        with torch.autocast(output.image_sizes.device.type, enabled=False):
            return self.summed_losses(output, [self._target(target) for target in targets])

    def _target(self, target: Target) -> Found:
        """The objects of an image as torchvision expects them."""
        height, width = target.size
        boxes = cxcywh_to_xyxy(full_precision(target.boxes)) * target.boxes.new_tensor([width, height, width, height])
        valid = (boxes[:, 2:] - boxes[:, :2] > _SMALLEST_SIDE).all(1)
        return {"boxes": boxes[valid], "labels": target.labels[valid] + self.num_background}

    @abstractmethod
    def detect(self, output: BaselineOutput) -> Sequence[Found]:
        """The detections of each image in descending order of their scores."""

    @abstractmethod
    def summed_losses(self, output: BaselineOutput, targets: list[Found]) -> tuple[dict[str, Tensor], Tensor]:
        """As `losses`, for targets as torchvision expects them."""


class _Anchors(AnchorGenerator):
    """Anchors at cells of fixed strides. torchvision derives the strides from the padded image, which can be wrong.

    Args:
        strides: of each level, in pixels.
        size: side in pixels of the anchors of the first level; it doubles from level to level.
        scales: factors of the sides, for several sizes on each level.
    """

    def __init__(self, strides: Sequence[int], size: float, scales: Sequence[float] = (1.0,)) -> None:
        sizes = tuple(tuple(size * 2**level * scale for scale in scales) for level in range(len(strides)))
        super().__init__(sizes, (_RATIOS,) * len(strides))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Levels (B, D, h, w) -> the anchors of each image, (number of anchors, 4)."""
        grids = [list(level.shape[-2:]) for level in feature_maps]
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        strides = [[torch.tensor(stride, device=feature_maps[0].device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


class _Placeholder(nn.Identity):
    """Takes the place of the backbone in torchvision's detectors, whose parts get our levels."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels


class _Pyramid(nn.Module):
    """A feature pyramid over stages of the backbone, with further levels."""

    def __init__(self, num_channels: Sequence[int], width: int, further: ExtraFPNBlock) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(num_channels), width, further)

    def forward(self, features: Sequence[FeatureMap]) -> tuple[FeatureMap, ...]:
        """Backbone features -> levels (B, D, h, w), fine to coarse."""
        levels = self.fpn({str(index): level.values for index, level in enumerate(features)})
        return tuple(FeatureMap(values) for values in levels.values())


class FasterRCNN(BaselineDetector):
    """Faster R-CNN (Ren et al., 2015) with a feature pyramid (Lin et al., 2017)."""

    family = "faster-rcnn"
    first_level = 0
    num_background = 1

    def __init__(self, config: FasterRCNNConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__(config, num_logits, scoring)
        self.box_loss = config.box_loss
        self.pyramid = _Pyramid(self.backbone.num_channels, config.width, LastLevelMaxPool())
        pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2, canonical_scale=1)
        # Otherwise the first batch decides, and its padding can make that wrong.
        pool.scales = [1 / stride for stride in (4, 8, 16, 32)]
        pool.map_levels = initLevelMapper(2, 5, canonical_scale=7 * config.anchor_size)  # 224 for anchors from 32
        self.network = detection.FasterRCNN(
            _Placeholder(config.width),
            rpn_anchor_generator=_Anchors((4, 8, 16, 32, 64), config.anchor_size),
            box_roi_pool=pool,
            box_head=TwoMLPHead(config.width * 7 * 7, config.head_width),
            box_predictor=FastRCNNPredictor(config.head_width, num_logits + self.num_background),
            rpn_pre_nms_top_n_train=2 * config.num_proposals,
            rpn_post_nms_top_n_train=2 * config.num_proposals,
            rpn_pre_nms_top_n_test=config.num_proposals,
            rpn_post_nms_top_n_test=config.num_proposals,
            box_batch_size_per_image=config.num_samples,
            box_nms_thresh=config.nms,
            box_detections_per_img=config.num_queries,
        )

    def project_features(
        self, features: tuple[FeatureMap, ...], padding: Tensor | None = None
    ) -> tuple[FeatureMap, ...]:
        """The pyramid of all stages, with a level of twice the coarsest stride."""
        return self.pyramid(features)

    def set_nms(self, iou: float) -> None:
        """Change `BaselineConfig.nms`. The suppression of proposals stays."""
        self.network.roi_heads.nms_thresh = iou

    def detect(self, output: BaselineOutput) -> Sequence[Found]:
        """The detections of each image in descending order of their scores."""
        levels = {str(index): level for index, level in enumerate(output.levels)}
        proposals, _ = self.network.rpn(output.image_list, levels)
        found, _ = self.network.roi_heads(levels, proposals, output.sizes)
        return found

    def summed_losses(self, output: BaselineOutput, targets: list[Found]) -> tuple[dict[str, Tensor], Tensor]:
        """ "objectness" and "proposal_box" of the first stage, "class" and "box" of the second; one divisor per image.

        As in torchvision, each loss is a mean over the sampled boxes. The number of samples is the same in all images,
        unless they have fewer anchors.
        """
        levels = {str(index): level for index, level in enumerate(output.levels)}
        proposals, of_proposals = self.network.rpn(output.image_list, levels, targets)
        heads = self.network.roi_heads
        proposals, _, labels, wanted = heads.select_training_samples(proposals, targets)
        pooled = heads.box_roi_pool(levels, proposals, output.sizes)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        labels, wanted = torch.cat(labels), torch.cat(wanted)
        positive = (labels > 0).nonzero()[:, 0]
        deltas = deltas.unflatten(1, (-1, 4))[positive, labels[positive]]
        if self.box_loss == "giou":
            boxes = torch.cat(proposals)[positive]
            coder = heads.box_coder
            predicted = coder.decode_single(deltas, boxes)
            truth = coder.decode_single(wanted[positive], boxes)
            box = _GIOU_WEIGHT * generalized_box_iou_loss(predicted, truth, reduction="sum")
        else:
            box = F.smooth_l1_loss(deltas, wanted[positive], beta=1 / 9, reduction="sum")
        count = labels.new_tensor(float(len(targets)), dtype=torch.float32)
        means = {
            "objectness": of_proposals["loss_objectness"],
            "proposal_box": of_proposals["loss_rpn_box_reg"],
            "class": F.cross_entropy(logits, labels),
            "box": box / labels.numel(),
        }
        return {name: value * count for name, value in means.items()}, count


class _OneStage(BaselineDetector):
    """A detector that predicts class and box for every anchor."""

    first_level = 1

    def set_nms(self, iou: float) -> None:
        """Change `BaselineConfig.nms`."""
        self.network.nms_thresh = iou

    def _heads(self, output: BaselineOutput) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Logits and box offsets of all anchors, (B, number of anchors, ...), and the anchors of each image."""
        return self.network.head(output.levels), self.network.anchor_generator(output.image_list, output.levels)


class RetinaNet(_OneStage):
    """RetinaNet (Lin et al., 2017): a feature pyramid, and a focal loss for all anchors."""

    family = "retinanet"

    def __init__(self, config: RetinaNetConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__(config, num_logits, scoring)
        self.pyramid = _Pyramid(self.backbone.num_channels[1:], config.width, LastLevelP6P7(config.width, config.width))
        anchors = _Anchors((8, 16, 32, 64, 128), config.anchor_size, (1.0, 2 ** (1 / 3), 2 ** (2 / 3)))
        self.network = detection.RetinaNet(
            _Placeholder(config.width),
            num_logits,
            anchor_generator=anchors,
            head=RetinaNetHead(config.width, anchors.num_anchors_per_location()[0], num_logits),
            nms_thresh=config.nms,
            detections_per_img=config.num_queries,
        )

    def project_features(
        self, features: tuple[FeatureMap, ...], padding: Tensor | None = None
    ) -> tuple[FeatureMap, ...]:
        """The pyramid of the last three stages, with two coarser levels."""
        return self.pyramid(features[1:])

    def detect(self, output: BaselineOutput) -> Sequence[Found]:
        """The detections of each image in descending order of their scores."""
        predicted, anchors = self._heads(output)
        counts = [level.shape[-2] * level.shape[-1] for level in output.levels]
        per_cell = len(anchors[0]) // sum(counts)
        parts = [count * per_cell for count in counts]
        by_level = {name: list(values.split(parts, 1)) for name, values in predicted.items()}
        return self.network.postprocess_detections(
            by_level, [list(each.split(parts)) for each in anchors], output.sizes
        )

    def summed_losses(self, output: BaselineOutput, targets: list[Found]) -> tuple[dict[str, Tensor], Tensor]:
        """ "class" and "box". The divisor is the number of images; each image is divided by its positive anchors."""
        predicted, anchors = self._heads(output)
        means = self.network.compute_loss(targets, predicted, anchors)
        count = output.levels[0].new_tensor(float(len(targets)))
        return _renamed(means, count), count


class _CoarserLevels(nn.Module):
    """Levels of twice the stride each, with SSD's extra layers: a reduction, then a convolution of stride 2."""

    def __init__(self, num_channels: int, width: int, num_levels: int) -> None:
        super().__init__()
        inputs = (num_channels, *[width] * (num_levels - 1))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width // 2, 1), nn.ReLU(), nn.Conv2d(width // 2, width, 3, 2, 1), nn.ReLU()
            )
            for channels in inputs
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The coarsest level (B, D, h, w) -> further ones."""
        levels = []
        for layer in self.layers:
            x = layer(x)
            levels.append(x)
        return levels


class SSD(_OneStage):
    """SSD (Liu et al., 2016) with the backbone's last three stages and two coarser levels, without a pyramid."""

    family = "ssd"
    num_background = 1

    def __init__(self, config: SSDConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__(config, num_logits, scoring)
        channels = list(self.backbone.num_channels[1:])
        self.coarser = _CoarserLevels(channels[-1], config.width, num_levels=2)
        anchors = _Anchors((8, 16, 32, 64, 128), config.anchor_size, (1.0, 2**0.5))
        head = SSDHead([*channels, config.width, config.width], anchors.num_anchors_per_location(), num_logits + 1)
        self.network = detection.ssd.SSD(
            _Placeholder(config.width),
            anchors,
            (1, 1),  # the size to which torchvision's own transform resizes images, which is not used
            num_logits + self.num_background,
            head=head,
            nms_thresh=config.nms,
            detections_per_img=config.num_queries,
        )

    def project_features(
        self, features: tuple[FeatureMap, ...], padding: Tensor | None = None
    ) -> tuple[FeatureMap, ...]:
        """The last three stages, and two coarser levels."""
        coarser = (FeatureMap(values) for values in self.coarser(features[-1].values))
        return (*(FeatureMap(level.values) for level in features[1:]), *coarser)

    def detect(self, output: BaselineOutput) -> Sequence[Found]:
        """The detections of each image in descending order of their scores."""
        predicted, anchors = self._heads(output)
        return self.network.postprocess_detections(predicted, anchors, output.sizes)

    def summed_losses(self, output: BaselineOutput, targets: list[Found]) -> tuple[dict[str, Tensor], Tensor]:
        """ "class" and "box". The divisor is the number of anchors that match an object."""
        predicted, anchors = self._heads(output)
        matched = [self._matched(own, target["boxes"]) for own, target in zip(anchors, targets, strict=True)]
        means = self.network.compute_loss(targets, predicted, anchors, matched)
        count = torch.stack([(each >= 0).sum() for each in matched]).sum().to(output.levels[0].dtype)
        return _renamed(means, count.clamp(min=1.0)), count

    def _matched(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """The index of the object of each anchor, or -1."""
        if not len(boxes):
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        return self.network.proposal_matcher(box_iou(boxes, anchors))


def _renamed(means: Mapping[str, Tensor], count: Tensor) -> dict[str, Tensor]:
    """torchvision's losses of a one-stage detector under our names, and as sums."""
    return {"class": means["classification"] * count, "box": means["bbox_regression"] * count}
