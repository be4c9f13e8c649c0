"""The ablations of the DETR paper, and its comparison with convolutional detectors: what is trained at which scale.

Numbers of the paper (Carion et al., 2020) are in the unit of the paper, AP times 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opendetr.config import SettingError, suggestions

BASELINE = "baseline"
"""The name of the setting that the others differ from."""


@dataclass(frozen=True)
class Published:
    """A published result on COCO val2017, unless the source says otherwise.

    Attributes:
        ap: AP, times 100.
        difference: AP minus that of the baseline in the same table, times 100; None for a comparison of detectors.
        source: where it is published.
        further: AP50, AP_S, AP_M and AP_L, times 100; empty if unknown.
    """

    ap: float | None
    difference: float | None = None
    source: str = "DETR paper"
    further: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """One row of a table: a detector that is trained with every seed.

    Attributes:
        name: the name of the run.
        group: what the paper varies, a heading of the table.
        title: what is special about the setting.
        changes: what differs from the baseline, as nested settings.
        model: the model of the catalogue or the baselines, None for that of the scale.
        published: the result of the paper, None if it has none.
        seeds: the seeds of the runs.
        share: number of training images as a share of that of the scale.
        compared: whether it belongs to the comparison of detectors, in which the last evaluation counts, instead of the
            median of the last ten.
        designed: the parts that a person has designed and that DETR does without.
    """

    name: str
    group: str
    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    published: Published | None = None
    seeds: tuple[int, ...] = (0,)
    share: float = 1.0
    compared: bool = False
    designed: str = "-"

    @property
    def runs(self) -> list[str]:
        """The names of the runs: one for each seed."""
        return [self.name if len(self.seeds) == 1 else f"{self.name}-{seed}" for seed in self.seeds]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The data, the length and the models of all runs.

    Attributes:
        name: tiny, small or paper.
        about: a sentence for the user.
        model: DETR of this scale, a name of the catalogue.
        weights: initial weights of all models.
        images: training images of a run, repeated ones counted; None for the epochs of each recipe.
        image_size: short side of the images; None for that of each model.
        changes: settings of all models.
        detr: settings of DETR.
        settings: the rows of the tables.
        draws_scenes: whether easy scenes are drawn if no dataset is given.
        nodes, processes: number of machines, and of GPUs in each, for which commands are printed instead of training;
            0 to train.
    """

    name: str
    about: str
    model: str
    weights: str
    images: int | None
    image_size: int | None
    changes: Mapping[str, Any]
    detr: Mapping[str, Any]
    settings: tuple[Setting, ...]
    draws_scenes: bool = False
    nodes: int = 0
    processes: int = 0

    def choose(self, names: Sequence[str]) -> list[Setting]:
        """The settings with these names, all if there are none.

        Raises:
            SettingError: a name is unknown.
        """
        known = {setting.name: setting for setting in self.settings}
        for name in names:
            if name not in known:
                near = suggestions(name, list(known))
                hint = f"did you mean {near[0]}?" if near else "`opendetr ablate --list` names them"
                raise SettingError(f"no setting of the scale {self.name} is called {name!r}; {hint}")
        return [setting for setting in self.settings if not names or setting.name in names]


def _changed(**branches: Mapping[str, Any]) -> Mapping[str, Any]:
    return branches


def _transformer(**values: Any) -> Mapping[str, Any]:
    return {"model": {"transformer": values}}


def _placement(**values: str) -> Mapping[str, Any]:
    return {"model": {"placement": values}}


# Table 2 of the paper: layers of the encoder -> published AP. The baseline has 6.
_ENCODER = {0: 36.7, 3: 40.1, 12: 41.6}
_BASE = Published(40.6, 0.0, further={"AP50": 61.6, "AP_S": 19.9, "AP_M": 44.3, "AP_L": 60.2})


def _difference(ap: float, base: float = 40.6) -> Published:
    return Published(ap, round(ap - base, 1))


def _ablations(encoder: Mapping[int, int], decoder: Sequence[int]) -> list[Setting]:
    """The ablations that all scales have.

    Args:
        encoder: encoder layers of this scale -> those of the paper.
        decoder: decoder layers of this scale.
    """
    layers = [
        Setting(
            f"encoder-{own}",
            "encoder layers",
            f"{own} encoder layers (paper: {theirs})",
            _transformer(encoder_layers=own),
            published=_difference(_ENCODER[theirs]),
        )
        for own, theirs in encoder.items()
    ]
    first = Published(None, -8.2, source="DETR paper, after the first of six layers of one model")
    layers += [
        Setting(
            f"decoder-{count}",
            "decoder layers",
            f"{count} decoder layer{'s' if count > 1 else ''}",
            _transformer(decoder_layers=count),
            published=first if count == 1 else None,
        )
        for count in decoder
    ]
    positions = "position encodings"
    losses = "losses"
    without_l1 = {"criterion": {"l1_weight": 0.0, "matcher": {"l1_cost": 0.0}}}
    without_giou = {"criterion": {"giou_weight": 0.0, "matcher": {"giou_cost": 0.0}}}
    return [
        *layers,
        Setting(
            "no-ffn",
            "feed-forward blocks",
            "no feed-forward blocks",
            _transformer(ffn_width=0),
            published=_difference(38.3),
        ),
        Setting(
            "no-positions",
            positions,
            "image: none; queries at the input",
            _placement(encoder="none", decoder="none", queries="input"),
            published=_difference(32.8),
        ),
        Setting(
            "input-positions",
            positions,
            "image and queries at the input",
            _placement(encoder="input", decoder="input", queries="input"),
            published=_difference(39.2),
        ),
        Setting(
            "learned-positions",
            positions,
            "image: learned, at every attention",
            {"model": {"position": "learned"}},
            published=_difference(39.6),
        ),
        Setting(
            "decoder-positions",
            positions,
            "image: decoder only",
            _placement(encoder="none"),
            published=_difference(39.3),
        ),
        Setting("encoder-positions", positions, "image: encoder only", _placement(decoder="none")),
        Setting("input-queries", positions, "queries at the input", _placement(queries="input")),
        Setting("no-giou", losses, "class + L1", without_giou, published=_difference(35.8)),
        Setting("no-l1", losses, "class + GIoU", without_l1, published=_difference(39.9)),
        Setting("no-auxiliary", losses, "no auxiliary losses", {"criterion": {"auxiliary": False}}),
    ]


_ANCHORS = "anchors, thresholds of their IoU with objects, coding of boxes, NMS"
_FASTER = f"{_ANCHORS}; proposals with an NMS of their own, sampling, RoI pooling, feature pyramid"
_DETECTORS = "detectors"


def _comparison(size: str, changes: Mapping[str, Any], plain_share: float) -> list[Setting]:
    """The convolutional detectors.

    Args:
        size: suffix of the names of their presets.
        changes: settings of all of them.
        plain_share: budget of the plain Faster R-CNN. The paper trains it for 37 epochs, and the "+" for 109.
    """
    smaller = {"AP50": 61.0, "AP_S": 24.2, "AP_M": 43.5, "AP_L": 52.0}
    plus = {"AP50": 62.1, "AP_S": 26.6, "AP_M": 45.4, "AP_L": 53.4}
    rows = (
        ("faster-rcnn", "Faster R-CNN", _FASTER, Published(40.2, further=smaller), plain_share),
        ("faster-rcnn-plus", "Faster R-CNN+", _FASTER, Published(42.0, further=plus), 1.0),
        ("retinanet", "RetinaNet", f"{_ANCHORS}; feature pyramid", Published(36.4, source="torchvision"), 1.0),
        (
            "ssd",
            "SSD",
            f"{_ANCHORS}; sampling of negatives",
            Published(25.1, source="torchvision, SSD300 with VGG-16"),
            1.0,
        ),
    )
    crops = {"data": {"augmentation": {"crop": True}}}
    return [
        Setting(
            name,
            _DETECTORS,
            title,
            {**changes, **crops} if name.endswith("plus") else changes,
            model=f"{name}-{size}",
            published=published,
            share=share,
            compared=True,
            designed=parts,
        )
        for name, title, parts, published, share in rows
    ]


def _baseline(title: str, num_seeds: int) -> Setting:
    return Setting(BASELINE, BASELINE, title, published=_BASE, seeds=tuple(range(num_seeds)))


_FLIPS = {"augmentation": {"multi_scale": False, "crop": False}}
_DC5 = Published(43.3, 1.3, source="DETR paper, 500 epochs: 42.0 without DC5")
_NO_DC5 = Published(42.0, -1.3, source="DETR paper, 500 epochs: 43.3 with DC5")
_CROPS = "about 1 AP in the DETR paper"

_TINY = Scale(
    name="tiny",
    about="A small DETR on drawn scenes of 128 pixels with one class, on a CPU: a run takes half an hour on one core.",
    model="detr-tiny",
    weights="none",
    images=60_000,
    image_size=128,
    changes=_changed(
        data={"num_workers": 1, "side_multiple": 32, **_FLIPS},
        recipe={
            "num_evaluations": 60,
            "schedule": "cosine",
            "ema_decay": 0.99,
            "batch_size": 8,
            "warmup_steps": 200,
            "precision": "auto",
        },
    ),
    detr=_changed(
        model={"transformer": {"num_heads": 4, "encoder_layers": 2}},
        recipe={"learning_rate": 5e-4, "backbone_learning_rate": 5e-4, "clip_norm": 1.0},
    ),
    settings=(
        _baseline("2 encoder and 3 decoder layers, DC5, no crops", 3),
        *_comparison("tiny", {}, 1 / 3),
        *_ablations({0: 0, 1: 3, 4: 12}, (1, 6)),
        Setting("no-dc5", "resolution", "no DC5", {"model": {"backbone": {"dilation": False}}}, published=_NO_DC5),
        Setting(
            "crops",
            "augmentation",
            "with random crops",
            {"data": {"augmentation": {"crop": True}}},
            published=Published(None, 1.0, source=_CROPS),
        ),
    ),
    draws_scenes=True,
)
_SMALL = Scale(
    name="small",
    about="DETR with ResNet-18 on your own dataset, on one GPU: a run takes about an hour.",
    model="detr-r18",
    weights="imagenet",
    images=400_000,
    image_size=480,
    changes=_changed(recipe={"num_evaluations": 40, "batch_size": 32, "precision": "auto"}, data={"num_workers": 8}),
    detr={},
    settings=(
        _baseline("6 encoder and 6 decoder layers", 3),
        *_comparison("r50", {"model": {"backbone": {"depth": 18}}}, 1 / 3),
        *_ablations({0: 0, 3: 3, 12: 12}, (1, 3)),
        Setting("dc5", "resolution", "DC5", {"model": {"backbone": {"dilation": True}}}, published=_DC5),
        Setting(
            "no-crops",
            "augmentation",
            "no random crops",
            {"data": {"augmentation": {"crop": False}}},
            published=Published(None, -1.0, source=_CROPS),
        ),
    ),
)
_PAPER = Scale(
    name="paper",
    about="The published setting on COCO: DETR with ResNet-50, 300 epochs on 32 GPUs. The commands are printed.",
    model="detr-r50",
    weights="imagenet",
    images=None,
    image_size=None,
    changes=_changed(recipe={"num_evaluations": 300}, data={"num_workers": 4}),
    detr=_changed(recipe={"batch_size": 64}),
    settings=(
        _baseline("6 encoder and 6 decoder layers", 1),
        *_comparison("r50", {}, 1.0),
        *_ablations({0: 0, 3: 3, 12: 12}, (1, 3)),
        Setting("dc5", "resolution", "DC5", {"model": {"backbone": {"dilation": True}}}, published=_DC5),
        Setting(
            "no-crops",
            "augmentation",
            "no random crops",
            {"data": {"augmentation": {"crop": False}}},
            published=Published(None, -1.0, source=_CROPS),
        ),
    ),
    nodes=4,
    processes=8,
)
SCALES = {scale.name: scale for scale in (_TINY, _SMALL, _PAPER)}
"""The scales by name."""

YOLO = (
    (
        "YOLOv3-608",
        Published(
            33.0,
            source="YOLOv3 paper, COCO test-dev",
            further={"AP50": 57.9, "AP_S": 18.3, "AP_M": 35.4, "AP_L": 41.9},
        ),
    ),
    (
        "YOLOv4-608",
        Published(
            43.5,
            source="YOLOv4 paper, COCO test-dev",
            further={"AP50": 65.7, "AP_S": 26.7, "AP_M": 46.7, "AP_L": 53.3},
        ),
    ),
)
"""Further detectors of the comparison, with published results only."""
YOLO_PARTS = "anchors from clusters of boxes, thresholds of their IoU with objects, coding of boxes, NMS"
