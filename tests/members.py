"""Four miniature members, each built through public interfaces only: they prove that the boundaries hold.

- `patches` (as UP-DETR): an extra tensor per image, a random draw that travels in the batch, an extra loss term.
- `captions` (as MDETR): captions and their tokens in the batch, targets with a map of tokens, a soft class term.
- `pairs` (as TransTrack): a sample is a pair of frames; boxes and content pass from the first to the second; one of two
  deformable decoders, drawn once a step, has no gradient.
- `clips` (as MOTR): a sample is a clip; matches are carried from frame to frame by track id, and the divisor of the
  losses is known after the forward pass only.

Shape letters: B batch, Q queries, L decoder layers, D width, M patches, T tokens, n objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opendetr import distributed, open_data
from opendetr.boxes import cxcywh_to_xyxy
from opendetr.data import DataConfig, DetectionData, LabelledImage, Transform, collate_samples, train_loader
from opendetr.losses import CriterionConfig, Normaliser, SetCriterion, SigmoidFocalClassification, of_matches
from opendetr.models import (
    DETR,
    DecoderLayer,
    DeformableDETR,
    DeformableDETRConfig,
    DeformableTransformerConfig,
    DETRConfig,
    LayerStack,
)
from opendetr.nn import BackboneConfig, TransformerConfig
from opendetr.recipe import Recipe
from opendetr.scoring import Sigmoid, SoftmaxNoObject
from opendetr.structures import Batch, ClipBatch, ImageBatch, Matches, Movable, Output, Sample, Target
from opendetr.tasks import Task
from opendetr.training import Trainer

WIDTH, NUM_QUERIES, NUM_CLASSES = 32, 12, 3
CONFIG = DETRConfig(
    backbone=BackboneConfig(depth=18, half_width=True),
    transformer=TransformerConfig(
        width=WIDTH, num_heads=4, ffn_width=32, encoder_layers=1, decoder_layers=2, dropout=0.1
    ),
    num_queries=NUM_QUERIES,
)


@dataclass(frozen=True)
class Around:
    """A transform that adds to what another one makes."""

    plain: Transform
    add: Callable[[Sample, LabelledImage, np.random.Generator, Sequence[LabelledImage]], Sample]

    @property
    def largest_shape(self) -> tuple[int, int]:
        return self.plain.largest_shape

    def output_shape(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        return self.plain.output_shape(height, width, rng)

    def __call__(self, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage] = ()) -> Sample:
        return self.add(self.plain(image, rng, others), image, rng, others)


# ------------------------------------------------------------------------------------------------------------- patches

NUM_PATCHES = 3


@dataclass(frozen=True)
class PatchBatch(Batch):
    """Patches (B, M, 3, 8, 8), and which queries keep the content of their patch (B, Q) bool."""

    patches: Tensor = field(kw_only=True)
    kept: Tensor = field(kw_only=True)


@dataclass(frozen=True)
class PatchOutput(Output):
    """Reconstructed features (B, Q, D) and those of the patches (B, M, D)."""

    reconstruction: Tensor = field(kw_only=True)
    patch_features: Tensor = field(kw_only=True)


@dataclass(frozen=True, kw_only=True)
class PatchData(DataConfig):
    """Random patches of the image are what is to be found in it."""

    def training_transform(self, data: DetectionData | None = None) -> Transform:
        return Around(super().training_transform(), _with_patches)

    def collate(self, samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> PatchBatch:
        plain = collate_samples(samples, shape, device)
        patches, kept = (torch.stack([each.extras[name] for each in samples]) for name in ("patches", "kept"))
        return PatchBatch(plain.images, plain.targets, plain.names, patches=patches.to(device), kept=kept.to(device))


def _with_patches(
    sample: Sample, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage]
) -> Sample:
    height, width = sample.pixels.shape[-2:]
    sides = torch.from_numpy(rng.uniform(0.2, 0.5, (NUM_PATCHES, 2)))
    corners = torch.from_numpy(rng.uniform(0, 0.5, (NUM_PATCHES, 2)))
    boxes = torch.cat((corners + sides / 2, sides), 1).float()
    patches = []
    for left, top, right, bottom in cxcywh_to_xyxy(boxes).tolist():
        rows, columns = (slice(int(a * n), int(b * n) + 1) for a, b, n in ((top, bottom, height), (left, right, width)))
        patches.append(F.interpolate(sample.pixels[None, :, rows, columns].float() / 255, (8, 8))[0])
    labels = torch.ones(NUM_PATCHES, dtype=torch.int64)
    kept = torch.from_numpy(rng.random(NUM_QUERIES) > 0.1)
    extras = {"patches": torch.stack(patches), "kept": kept}
    return replace(sample, target=replace(sample.target, labels=labels, boxes=boxes), extras=extras)


class PatchDETR(DETR):
    """The content of each group of queries is that of a patch."""

    def __init__(self) -> None:
        super().__init__(CONFIG, 3, SoftmaxNoObject())
        self.patch_content = nn.Linear(3 * 8 * 8, WIDTH)
        self.feature_head = nn.Linear(WIDTH, WIDTH)

    def forward(self, images: ImageBatch, patches: Tensor, kept: Tensor | None = None) -> PatchOutput:  # type: ignore[override]
        content = self.patch_content(patches.flatten(2))
        position = content.repeat_interleave(NUM_QUERIES // NUM_PATCHES, 1)
        if kept is not None:
            position = position * kept[..., None]
        features = self.backbone(images)
        memory = self.encode(self.project_features(features, images.padding))
        output = self.decode(memory, features, self.queries.weight + position)
        reconstruction = self.feature_head(output.queries[-1])
        return PatchOutput(
            output.layers, output.queries, features, memory, reconstruction=reconstruction, patch_features=content
        )


class FeatureReconstruction:
    """A loss term: the matched queries of the last layer tell the features of their patch."""

    weights: ClassVar[Mapping[str, float]] = {"feature": 1.0}

    def __call__(
        self, output: PatchOutput, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        last = matches.of_layer(len(output.layers) - 1)
        found = output.reconstruction[last.image, last.query]
        wanted = output.patch_features[last.image, last.target]
        apart = F.normalize(found, dim=-1) - F.normalize(wanted, dim=-1)
        return {"feature": apart.square().sum()[None] / normaliser.objects}


class PatchTask(Task[PatchBatch, PatchOutput]):
    """Pre-training on patches."""

    def __init__(self) -> None:
        criterion = SetCriterion(CriterionConfig())
        super().__init__(PatchDETR(), criterion, {"set": criterion, "feature": FeatureReconstruction()})

    def frames(self, batch: PatchBatch) -> Iterator[tuple[PatchOutput, Sequence[Target], Matches]]:
        output = self.model(batch.images, batch.patches, batch.kept)
        yield output, batch.targets, self.match(output, batch.targets)


# ------------------------------------------------------------------------------------------------------------ captions

VOCABULARY = 16


@dataclass(frozen=True)
class CaptionTarget(Target):
    """An object's tokens in the caption: (n, T) bool."""

    word_map: Tensor = field(kw_only=True)


@dataclass(frozen=True)
class Tokens(Movable):
    """Ids (B, T) int64 and padding (B, T) bool of captions."""

    ids: Tensor
    padding: Tensor


@dataclass(frozen=True)
class CaptionBatch(Batch):
    """Captions and their tokens."""

    captions: tuple[str, ...] = field(kw_only=True)
    tokens: Tokens = field(kw_only=True)


@dataclass(frozen=True, kw_only=True)
class CaptionData(DataConfig):
    """The caption of an image lists the classes of its objects, a token each."""

    def training_transform(self, data: DetectionData | None = None) -> Transform:
        return Around(super().training_transform(), _with_caption)

    def collate(self, samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> CaptionBatch:
        plain = collate_samples(samples, shape, device)
        captions = tuple(each.extras["caption"] for each in samples)
        words = [[int(word) for word in caption.split()] for caption in captions]
        ids = torch.zeros(len(words), VOCABULARY, dtype=torch.int64)
        padding = torch.ones(len(words), VOCABULARY, dtype=torch.bool)
        for index, row in enumerate(words):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
            padding[index, : len(row)] = False
        tokens = Tokens(ids, padding).to(device)
        return CaptionBatch(plain.images, plain.targets, plain.names, captions=captions, tokens=tokens)


def _with_caption(
    sample: Sample, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage]
) -> Sample:
    classes = sorted(set((sample.target.labels % VOCABULARY).tolist()))
    word_map = torch.zeros(len(sample.target), VOCABULARY, dtype=torch.bool)
    for row, label in enumerate((sample.target.labels % VOCABULARY).tolist()):
        word_map[row, classes.index(label)] = True
    values = {name: getattr(sample.target, name) for name in Target.__dataclass_fields__}
    target = CaptionTarget(**values, word_map=word_map)
    return replace(sample, target=target, extras={"caption": " ".join(map(str, classes))})


@dataclass(frozen=True, kw_only=True)
class SoftTokens:
    """A class term over the tokens of a caption and "no object"; an object may have several tokens."""

    no_object_weight: float = 0.1

    def scoring(self) -> SoftmaxNoObject:
        return SoftmaxNoObject()

    def cost(self, logits: Tensor, targets: Sequence[CaptionTarget]) -> Tensor:
        probabilities = logits.softmax(-1)[..., :-1]
        per_image = [
            torch.einsum("lqt,nt->nlq", probabilities[:, index], target.word_map.to(logits))
            for index, target in enumerate(targets)
        ]
        return -torch.cat(per_image)

    def loss(self, logits: Tensor, targets: Sequence[CaptionTarget], matches: Matches) -> Tensor:
        wanted = torch.zeros_like(logits)
        wanted[..., -1] = self.no_object_weight
        rows = of_matches(targets, matches, "word_map").to(logits)
        wanted[matches.layer, matches.image, matches.query] = F.pad(rows, (0, 1))
        return -(wanted * logits.log_softmax(-1)).sum((1, 2, 3))

    def normaliser(self, object_counts: Sequence[int], num_queries: int) -> float:
        return max(float(sum(object_counts)), 1.0)


class CaptionDETR(DETR):
    """Queries know the caption; classes are its tokens."""

    def __init__(self) -> None:
        super().__init__(CONFIG, VOCABULARY + 1, SoftmaxNoObject())
        self.words = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, images: ImageBatch, tokens: Tokens) -> Output:  # type: ignore[override]
        shown = self.words(tokens.ids).masked_fill(tokens.padding[..., None], 0.0).sum(1, keepdim=True)
        features = self.backbone(images)
        memory = self.encode(self.project_features(features, images.padding))
        return self.decode(memory, features, self.queries.weight + shown)


class CaptionTask(Task[CaptionBatch, Output]):
    """Grounding: objects are found by the tokens of a caption."""

    def __init__(self) -> None:
        criterion = SetCriterion(CriterionConfig(classification=SoftTokens()))
        super().__init__(CaptionDETR(), criterion, {"set": criterion})

    def frames(self, batch: CaptionBatch) -> Iterator[tuple[Output, Sequence[Target], Matches]]:
        output = self.model(batch.images, batch.tokens)
        yield output, batch.targets, self.match(output, batch.targets)


# --------------------------------------------------------------------------------------------------------------- clips


@dataclass(frozen=True, kw_only=True)
class ClipData(DataConfig):
    """Frames of a clip are shifted copies of a still image; one augmentation for all of them, ids by object."""

    num_frames: int = 3

    def training_transform(self, data: DetectionData | None = None) -> Transform:
        def add(
            sample: Sample, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage]
        ) -> Sample:
            frames, target = [], replace(sample.target, track_ids=torch.arange(len(sample.target)) + 10)
            for index in range(self.num_frames):
                shift = int(rng.integers(0, 4)) * index
                pixels = torch.roll(sample.pixels, shift, -1)
                boxes = target.boxes + torch.tensor([shift / pixels.shape[-1], 0, 0, 0])
                seen = (boxes[:, 0] < 1) & (torch.arange(len(boxes)) != index)  # each object is away once
                moved = replace(target, labels=target.labels[seen], boxes=boxes[seen], track_ids=target.track_ids[seen])
                frames.append(Sample(pixels, moved, sample.name))
            return replace(frames[-1], extras={"frames": tuple(frames[:-1])})

        return Around(super().training_transform(), add)

    def collate(self, samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> ClipBatch:
        clips = [(*each.extras["frames"], each) for each in samples]
        return ClipBatch.of([collate_samples(frame, shape, device) for frame in zip(*clips, strict=True)])


@dataclass(frozen=True)
class State:
    """What a model carries from frame to frame.

    Attributes:
        content: (B, Q, D), the queries of the frame before.
        ids: (B, Q) int64 track ids, -1 where a query follows nothing.
    """

    content: Tensor
    ids: Tensor


@dataclass(frozen=True)
class TrackingOutput(Output):
    """An output with the state for the next frame."""

    state: State = field(kw_only=True)


@dataclass(frozen=True)
class PairState(State):
    """The boxes of the frame before as well: (B, Q, 4), cxcywh in 0..1."""

    boxes: Tensor = field(kw_only=True)


class PairDETR(DeformableDETR):
    """Two decoders with the same heads: one for objects, one for the boxes and queries of the frame before."""

    def __init__(self) -> None:
        transformer = DeformableTransformerConfig(
            width=WIDTH, num_heads=4, ffn_width=32, encoder_layers=1, decoder_layers=2, num_levels=3, num_points=2
        )
        config = DeformableDETRConfig(
            backbone=CONFIG.backbone, transformer=transformer, num_queries=NUM_QUERIES, refine=True
        )
        super().__init__(config, NUM_CLASSES, Sigmoid())
        self.track_decoder = LayerStack(DecoderLayer(transformer) for _ in range(transformer.decoder_layers))

    def forward(self, images: ImageBatch, state: PairState | None = None) -> TrackingOutput:
        features = self.backbone(images)
        memory = self.encode(self.project_features(features, images.padding))
        if state is None:
            position, content = self.queries.weight.chunk(2, -1)
            output = self.decode(
                memory, position=torch.zeros_like(content), content=content, reference=self.reference_of(position)
            )
            layers, queries = output.layers, output.queries
        else:
            layers, queries = self.decode_queries(
                memory,
                torch.zeros_like(state.content),
                state.content,
                state.boxes,
                decoder=self.track_decoder,
                refine=False,
            )
        ids = torch.full(queries.shape[1:3], -1)
        after = PairState(queries[-1], ids, boxes=layers[-1].boxes)
        return TrackingOutput(layers, queries, features, memory, state=after)


class PairTask(Task[ClipBatch, TrackingOutput]):
    """The first frame gives the state without gradients; the second one is learned, by one of two decoders."""

    optional_parameters = ("model.queries.", "model.reference_points.", "model.decoder.", "model.track_decoder.")

    def __init__(self) -> None:
        criterion = SetCriterion(CriterionConfig(classification=SigmoidFocalClassification()))
        super().__init__(PairDETR(), criterion, {"set": criterion})

    def frames(self, batch: ClipBatch) -> Iterator[tuple[TrackingOutput, Sequence[Target], Matches]]:
        before, now = batch.frames[-2:]
        with torch.no_grad():
            state = self.model(before.images).state
        output = self.model(now.images, state if batch.seed % 2 else None)
        targets = [replace(target, labels=target.labels % NUM_CLASSES) for target in now.targets]
        yield output, targets, self.match(output, targets)


class ClipDETR(DETR):
    """A query that follows an object keeps what it knows; gradients flow through it over the clip."""

    def __init__(self) -> None:
        super().__init__(CONFIG, NUM_CLASSES + 1, SoftmaxNoObject())
        self.interaction = nn.Linear(WIDTH, WIDTH)

    def forward(self, images: ImageBatch, state: State | None = None) -> TrackingOutput:
        features = self.backbone(images)
        memory = self.encode(self.project_features(features, images.padding))
        position = self.queries.weight.expand(len(images), -1, -1)
        if state is not None:
            position = torch.where((state.ids >= 0)[..., None], self.interaction(state.content), position)
        output = self.decode(memory, features, position)
        ids = torch.full(position.shape[:2], -1) if state is None else state.ids
        return TrackingOutput(output.layers, output.queries, features, memory, state=State(output.queries[-1], ids))

    def update(self, output: TrackingOutput, ids: Tensor) -> State:
        """The state for the next frame, with new ids (B, Q)."""
        return replace(output.state, ids=ids)


class ClipTask(Task[ClipBatch, TrackingOutput]):
    """Live tracks keep their object in every layer; free queries are matched with new objects alone."""

    optional_parameters = ("model.interaction.",)  # in a clip without any track

    def __init__(self) -> None:
        criterion = SetCriterion(CriterionConfig())
        super().__init__(ClipDETR(), criterion, {"set": criterion})

    def normaliser(self, object_counts: Sequence[int]) -> None:
        return None

    def frames(self, batch: ClipBatch) -> Iterator[tuple[TrackingOutput, Sequence[Target], Matches]]:
        state = None
        for frame in batch.frames:
            targets = [replace(target, labels=target.labels % NUM_CLASSES) for target in frame.targets]
            output = self.model(frame.images, state)
            matches = self.match(output, targets)
            yield output, targets, matches
            state = self.model.update(output, _born(output.state.ids, targets, matches.of_layer(1)))

    def match(self, output: TrackingOutput, targets: Sequence[Target]) -> Matches:
        fixed = _inherited(output.state.ids, targets)
        return self.criterion.match(output, targets, candidates=output.state.ids < 0, fixed=fixed)

    def count(self, output: TrackingOutput, targets: Sequence[Target], matches: Matches) -> Tensor:
        away = (output.state.ids >= 0).sum() - len(_inherited(output.state.ids, targets))
        return super().count(output, targets, matches) + away


def _inherited(ids: Tensor, targets: Sequence[Target]) -> Matches:
    """The pairs of live tracks and objects of the same id."""
    rows = [
        (0, image, query, target.track_ids.tolist().index(track))
        for image, (own, target) in enumerate(zip(ids.tolist(), targets, strict=True))
        for query, track in enumerate(own)
        if track >= 0 and track in target.track_ids.tolist()
    ]
    return Matches(*torch.tensor(rows, dtype=torch.int64).view(-1, 4).unbind(1))


def _born(ids: Tensor, targets: Sequence[Target], matches: Matches) -> Tensor:
    ids = ids.clone()
    for image, query, target in zip(matches.image, matches.query, matches.target, strict=True):
        ids[image, query] = targets[image].track_ids[target]
    return ids


class TrackingSession:
    """One video at inference: state in, state out; nothing of it is kept in the module."""

    def __init__(self, model: PairDETR | ClipDETR) -> None:
        self._model = model.eval()
        self._state: State | None = None

    @torch.inference_mode()
    def step(self, images: ImageBatch, prompt: Any = None) -> TrackingOutput:
        output = self._model(images, self._state)
        ids = output.state.ids.clone()
        ids[ids < 0] = torch.arange(int((ids < 0).sum()))
        self._state = replace(output.state, ids=ids)
        return replace(output, state=self._state)

    def reset(self) -> None:
        self._state = None


# ------------------------------------------------------------------------------------------------------------ training

TASKS: Mapping[str, tuple[type[Task], type[DataConfig], dict[str, int]]] = {
    "patches": (PatchTask, PatchData, {}),
    "captions": (CaptionTask, CaptionData, {}),
    "pairs": (PairTask, ClipData, {"num_frames": 2}),
    "clips": (ClipTask, ClipData, {"num_frames": 3}),
}


def new_task(name: str) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TASKS[name][0]()


def new_config(name: str, num_workers: int = 0) -> DataConfig:
    _, config, settings = TASKS[name]
    return config(num_workers=num_workers, **settings).resized(48)


def new_loader(name: str, data: Path, num_workers: int = 0) -> Any:
    made = new_config(name, num_workers)
    share = (distributed.rank(), distributed.world_size())
    return train_loader(open_data(data)["train"], made, batch_size=4, seed=5, share=share)


def train(
    name: str, data: Path, folder: Path, *, dropout: bool = True, callbacks: Sequence[Any] = (), **options: Any
) -> Any:
    """Two steps, or what is left of them."""
    torch.set_num_threads(1)
    resume = options.pop("resume", False)
    recipe = Recipe(batch_size=4, max_steps=2, precision="fp32", learning_rate=1e-3, **options)
    task = new_task(name)
    if not dropout:  # each process draws its own numbers for it
        for module in task.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    trainer = Trainer(task, new_loader(name, data), recipe, folder, callbacks=callbacks, device="cpu")
    return trainer.train(resume=resume)
