"""The data types that pass between the layers of the library.

Shape letters: B batch, Q queries, L decoder layers, C class logits, D width, H W image, h w features, n objects,
m matches, T tokens of a caption.
Frames: in models and targets a box is (cx, cy, w, h) in 0..1 of the unpadded image; elsewhere it is (x0, y0, x1, y1) in
pixels of the original image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F


def _moved(value: Any, device: torch.device | str) -> Any:
    """`value` on `device`: a tensor, a `Movable`, or a tuple or mapping of these; other values are not changed."""
    if isinstance(value, Tensor | Movable):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    if isinstance(value, Mapping):
        return {name: _moved(item, device) for name, item in value.items()}
    return value


class Movable:
    """Base class of dataclasses that contain tensors: adds `to(device)`."""

    def to(self, device: torch.device | str) -> Self:
        """A copy with all tensors, nested ones included, on `device`."""
        changes = {field.name: _moved(getattr(self, field.name), device) for field in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changes)  # type: ignore[type-var]


class NonFiniteError(ValueError):
    """A loss, a gradient or an output of the model was not finite."""


def expect_shape(condition: bool, type_name: str, field: str, expected: str, actual: Any) -> None:
    """Raise ValueError with the expected and the actual shape unless `condition` is True."""
    if not condition:
        shown = tuple(actual.shape) if isinstance(actual, Tensor) else actual
        raise ValueError(f"{type_name}.{field}: expected {expected}, got {shown}")


def _checked() -> bool:
    """Whether shapes are checked: not while a model is exported or compiled."""
    return not (torch.jit.is_tracing() or torch.compiler.is_compiling())


@dataclass(frozen=True)
class ImageBatch(Movable):
    """Images of different sizes in one tensor, padded with zeros at the right and at the bottom.

    Attributes:
        pixels: (B, 3, H, W) float, RGB normalised with ImageNet's mean and std.
        padding: (B, H, W) bool, True where padded; None when nothing is padded.
        sizes: (B, 2) int64, height and width of each image before padding, in pixels.
    """

    pixels: Tensor
    padding: Tensor | None
    sizes: Tensor

    def __post_init__(self) -> None:
        if not _checked():
            return
        expect_shape(self.pixels.ndim == 4, "ImageBatch", "pixels", "(B, 3, H, W)", self.pixels)
        b, _, h, w = self.pixels.shape
        expect_shape(tuple(self.sizes.shape) == (b, 2), "ImageBatch", "sizes", f"({b}, 2)", self.sizes)
        if self.padding is not None:
            expect_shape(
                tuple(self.padding.shape) == (b, h, w), "ImageBatch", "padding", f"({b}, {h}, {w})", self.padding
            )

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def __getitem__(self, chosen: slice) -> ImageBatch:
        """The images of a slice, with the same padding."""
        padding = None if self.padding is None else self.padding[chosen]
        return ImageBatch(self.pixels[chosen], padding, self.sizes[chosen])

    @property
    def shape(self) -> tuple[int, int]:
        """H and W, padding included."""
        return self.pixels.shape[2], self.pixels.shape[3]

    def pad_to(self, height: int, width: int) -> ImageBatch:
        """Pad the images further, at the right and the bottom, to a height and width not below the current ones."""
        bottom, right = height - self.shape[0], width - self.shape[1]
        if not (right or bottom):
            return self
        padding = torch.zeros_like(self.pixels[:, 0], dtype=torch.bool) if self.padding is None else self.padding
        padding = F.pad(padding, (0, right, 0, bottom), value=True)
        return ImageBatch(F.pad(self.pixels, (0, right, 0, bottom)), padding, self.sizes)

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> ImageBatch:
        """Pad `images`, each (3, h, w) normalised, to their largest height and width. Raises ValueError if empty."""
        if not images:
            raise ValueError("ImageBatch.from_images: expected at least one image, got none")
        for image in images:
            expect_shape(image.ndim == 3, "ImageBatch", "from_images", "images of (3, h, w)", image)
        sizes = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64, device=images[0].device)
        height, width = sizes.amax(0).tolist()
        if all(tuple(image.shape[-2:]) == (height, width) for image in images):
            return cls(torch.stack(tuple(images)), None, sizes)
        pixels = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        padding = torch.ones(len(images), height, width, dtype=torch.bool, device=pixels.device)
        for index, image in enumerate(images):
            h, w = image.shape[-2:]
            pixels[index, :, :h, :w] = image
            padding[index, :h, :w] = False
        return cls(pixels, padding, sizes)


@dataclass(frozen=True)
class Target(Movable):
    """The ground truth of one image, in the frame of the model's input image.

    Crowd regions are not included: they are not trained on.

    Attributes:
        labels: (n,) int64 in 0..K-1.
        boxes: (n, 4) float, cxcywh in 0..1 of the unpadded image.
        size: height and width of the model's input image before padding, in pixels.
        original_size: height and width of the original image (orientation applied), in pixels.
        image_id: the dataset's id of the image.
        masks: (n, h, w) bool at `size`, or None.
        track_ids: (n,) int64, the same for one object in all frames of a clip. Transforms of clips set them; None for
            single images.
        token_map: (n, T) bool, the tokens of the caption that name each object. Collation of captions sets it.
        spans: for each object, the (begin, end) characters of the caption that name it; None without a caption.
        is_final: (n,) bool, whether the caption as a whole refers to the object; None if unknown.
        answers: the index of the correct answer to a question, by the name of the answer head; None without a question.
            Heads that the question does not concern are missing.
    """

    labels: Tensor
    boxes: Tensor
    size: tuple[int, int]
    original_size: tuple[int, int]
    image_id: int
    masks: Tensor | None = None
    track_ids: Tensor | None = None
    token_map: Tensor | None = None
    spans: tuple[tuple[tuple[int, int], ...], ...] | None = None
    is_final: Tensor | None = None
    answers: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if not _checked():
            return
        n = len(self.labels)
        expect_shape(self.labels.ndim == 1, "Target", "labels", "(n,)", self.labels)
        expect_shape(tuple(self.boxes.shape) == (n, 4), "Target", "boxes", f"({n}, 4)", self.boxes)
        if self.masks is not None:
            expect_shape(self.masks.ndim == 3 and len(self.masks) == n, "Target", "masks", f"({n}, h, w)", self.masks)
        for name in ("track_ids", "is_final"):
            values = getattr(self, name)
            expect_shape(values is None or tuple(values.shape) == (n,), "Target", name, f"({n},)", values)
        tokens = self.token_map
        fits = tokens is None or (tokens.ndim == 2 and len(tokens) == n)
        expect_shape(fits, "Target", "token_map", f"({n}, T)", tokens)
        expect_shape(self.spans is None or len(self.spans) == n, "Target", "spans", f"{n} entries", self.spans)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Sample:
    """The result of a transform for one image of a dataset: the input of collation.

    Attributes:
        pixels: (3, h, w) uint8 RGB.
        target: the ground truth of the image, in the frame of `pixels`.
        name: the file name of the image, for messages.
        extras: further inputs of a model, by name, such as patches, a caption or further frames. Tensors in it are sent
            efficiently from loader processes. Random values in it must be drawn from the sample's own generator, so
            that they are a function of (seed, epoch, index).
    """

    pixels: Tensor
    target: Target
    name: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch(Movable):
    """The input of one step: images and their targets.

    The trainer splits, pads and moves a batch without knowing its fields. So a subclass may add any field with one
    entry per image: a tensor (B, ...), a tuple of length B, an `ImageBatch`, or a dataclass of these that inherits from
    `Movable`. A number or None belongs to the whole batch. Other fields raise ValueError.

    Attributes:
        images: the B images.
        targets: B targets, in the order of the images.
        names: the file name of each image, for messages; empty if the images have none.
        seed: seed of the random choices that a task makes once per step. It is a function of (seed, epoch, position of
            the batch), and the same in all processes and micro-batches.
    """

    images: ImageBatch
    targets: tuple[Target, ...]
    names: tuple[str, ...] = ()
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        for name in self._per_image():
            value = getattr(self, name)
            if not (name in self._may_be_empty() and value == ()):
                _expect_entries(value, len(self), f"{type(self).__name__}.{name}")

    def _per_image(self) -> list[str]:
        """The names of the fields with one entry per image."""
        return [each.name for each in fields(self)]

    def _may_be_empty(self) -> tuple[str, ...]:
        """The names of the fields that may be empty."""
        return ("names",)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_names(self) -> tuple[str, ...]:
        """A name for every image, for messages: its file name, or "image" with its id."""
        return self.names or tuple(f"image {target.image_id}" for target in self.targets)

    @property
    def shape(self) -> tuple[int, int]:
        """H and W of the padded images."""
        return self.images.shape

    @property
    def extent(self) -> tuple[int, ...]:
        """The arguments of `pad_to` that pad nothing: the lengths to which the shares of all processes are padded."""
        return self.shape

    @property
    def object_counts(self) -> list[int]:
        """Number of objects of each image, by which losses are normalised."""
        return [len(target) for target in self.targets]

    @property
    def loss_counts(self) -> list[Any]:
        """What `Task.normaliser` gets of each image of the step: its number of objects, or more in a subclass."""
        return self.object_counts

    def split(self, parts: int) -> list[Self]:
        """Split the batch into `parts` micro-batches, or fewer if it has fewer images, with the same padding."""
        size = math.ceil(len(self) / parts)
        return [self._part(slice(start, start + size)) for start in range(0, len(self), size)]

    def _part(self, chosen: slice) -> Self:
        return replace(self, **{each.name: _sliced(getattr(self, each.name), chosen) for each in fields(self)})

    def pad_to(self, height: int, width: int) -> Self:
        """The batch with its images padded, at the right and the bottom, to a height and width."""
        return replace(self, images=self.images.pad_to(height, width))


def _expect_entries(value: Any, count: int, name: str) -> None:
    """Raise ValueError unless a field of a batch belongs to the whole batch or has one entry for each of its images."""
    if value is None or isinstance(value, int | float):
        return
    if isinstance(value, Tensor | tuple | ImageBatch):
        length = 0 if isinstance(value, Tensor) and value.ndim == 0 else len(value)
        expected = f"one entry for each of {count} images"
        if length != count:
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{length} entries"
            raise ValueError(f"{name}: expected {expected}, got {found}")
    elif isinstance(value, Movable):
        for each in fields(value):  # type: ignore[arg-type]
            _expect_entries(getattr(value, each.name), count, f"{name}.{each.name}")
    else:
        raise ValueError(
            f"{name}: a batch cannot split a {type(value).__name__}; use a tensor, a tuple, an ImageBatch or a "
            "dataclass of these that inherits from Movable"
        )


def _sliced(value: Any, chosen: slice) -> Any:
    """The entries of some images in a tensor, a tuple, an `ImageBatch` or a dataclass of these; numbers stay whole."""
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Tensor | tuple | ImageBatch):
        return value[chosen]
    return replace(value, **{each.name: _sliced(getattr(value, each.name), chosen) for each in fields(value)})


@dataclass(frozen=True)
class PatchBatch(Batch):
    """Images with patches that are to be located in them, M in each image.

    The i-th object of a target is the place of the i-th patch of its image.

    Attributes:
        patches: (B, M, 3, h, w) float, RGB normalised like the images.
        sample_seeds: one seed per image, for what a model draws at random for this image, such as query dropout. In
            training it is a function of (seed, epoch, index of the image). None in evaluation: nothing is drawn.
    """

    patches: Tensor = field(kw_only=True)
    sample_seeds: tuple[int, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.patches.ndim == 5 and self.patches.shape[2] == 3
        expect_shape(fits, "PatchBatch", "patches", "(B, M, 3, h, w)", self.patches)


@dataclass(frozen=True)
class ClipBatch(Batch):
    """Clips of T frames each, the training input of video models. `len` is the number of clips.

    Attributes:
        images, targets, names: those of the last frame.
        seed: as in `Batch`. All frames get it.
        frames: T batches of B images each, first to last; the i-th images of all frames form one clip.
        seeds: one seed per clip, for what a task draws at random for it; a function of (seed, epoch, index of the
            sample). Empty for clips that are not trained on.
    """

    frames: tuple[Batch, ...] = ()
    seeds: tuple[int, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = {len(frame) for frame in self.frames}
        expect_shape(lengths == {len(self)}, "ClipBatch", "frames", f"frames of {len(self)} images", sorted(lengths))
        frames = tuple(replace(frame, seed=self.seed) for frame in self.frames)
        object.__setattr__(self, "frames", frames)  # the dataclass is frozen

    def _per_image(self) -> list[str]:
        return [name for name in super()._per_image() if name != "frames"]

    def _may_be_empty(self) -> tuple[str, ...]:
        return ("names", "seeds")

    @classmethod
    def of(cls, frames: Sequence[Batch], **extras: Any) -> Self:
        """The clips of these frames, with the seed of the last one.

        Args:
            frames: T batches of B images each.
            extras: further fields by name: `seeds`, those of a subclass, or another `seed`.
        """
        last = frames[-1]
        return cls(last.images, last.targets, last.names, frames=tuple(frames), **{"seed": last.seed, **extras})

    @property
    def image_names(self) -> tuple[str, ...]:
        """A name for every image of every frame, frame by frame."""
        return tuple(name for frame in self.frames for name in frame.image_names)

    @property
    def shape(self) -> tuple[int, int]:
        """The largest H and the largest W over all frames."""
        heights, widths = zip(*(frame.shape for frame in self.frames), strict=True)
        return max(heights), max(widths)

    @property
    def object_counts(self) -> list[int]:
        """Number of objects of each image, frame by frame."""
        return [count for frame in self.frames for count in frame.object_counts]

    def _with_frames(self, frames: Sequence[Batch], change: Callable[[Any], Any] = lambda value: value) -> Self:
        """The clips with other frames, and with `change` applied to the fields that are not those of the last frame."""
        of_frames = ("images", "targets", "names", "frames")
        extras = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in of_frames}
        return type(self).of(frames, **{name: change(value) for name, value in extras.items()})

    def to(self, device: torch.device | str) -> Self:
        """A copy with all tensors on `device`. The last frame is copied once."""
        return self._with_frames([frame.to(device) for frame in self.frames], lambda value: _moved(value, device))

    def _part(self, chosen: slice) -> Self:
        frames = [frame._part(chosen) for frame in self.frames]
        return self._with_frames(frames, lambda value: _sliced(value, chosen))

    def pad_to(self, height: int, width: int) -> Self:
        """The clips with every frame padded to a height and width."""
        return self._with_frames([frame.pad_to(height, width) for frame in self.frames])


@dataclass(frozen=True)
class Tokens(Movable):
    """The tokens of B captions, padded to the longest one.

    Attributes:
        ids: (B, T) int64, ids in the vocabulary of the tokenizer.
        padding: (B, T) bool, True where padded.
        spans: (B, T, 2) int64, the first character of each token in its caption, and the one after its last. Both are 0
            for tokens without characters: the start, the end and the padding.
        pad_id: the id of padding.
    """

    ids: Tensor
    padding: Tensor
    spans: Tensor
    pad_id: int = 1

    def __post_init__(self) -> None:
        shape = tuple(self.ids.shape)
        expect_shape(len(shape) == 2, "Tokens", "ids", "(B, T)", self.ids)
        expect_shape(tuple(self.padding.shape) == shape, "Tokens", "padding", str(shape), self.padding)
        expect_shape(tuple(self.spans.shape) == (*shape, 2), "Tokens", "spans", str((*shape, 2)), self.spans)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: slice | Tensor) -> Tokens:
        """The tokens of some captions, with the same padding."""
        return replace(self, ids=self.ids[chosen], padding=self.padding[chosen], spans=self.spans[chosen])

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.ids.shape[1]

    def token_at(self, caption: int, character: int) -> int | None:
        """The index of the token that a character of a caption belongs to; None for a space."""
        begin, end = self.spans[caption].unbind(1)
        found = ((begin <= character) & (character < end)).nonzero()
        return int(found[0]) if len(found) else None

    def range_of(self, caption: int, begin: int, end: int, *, fallback: int | None = None) -> range:
        """The indices of the tokens of the characters `begin` to `end` of a caption; empty if it has none there.

        A boundary without a token, such as a space, moves inwards by up to two characters, as in MDETR.

        Args:
            caption: index of the caption.
            begin: first character.
            end: the character after the last one.
            fallback: index of the caption in which a moved boundary is looked up; by default the same one.
        """
        other = caption if fallback is None else fallback
        found = []
        for boundary, step in ((begin, 1), (end - 1, -1)):
            places = ((caption, boundary), (other, boundary + step), (other, boundary + 2 * step))
            tokens = (self.token_at(*place) for place in places)
            found.append(next((token for token in tokens if token is not None), None))
        first, last = found
        return range(0) if first is None or last is None else range(first, last + 1)

    def map_of(
        self, caption: int, spans: Sequence[Sequence[tuple[int, int]]], *, fallback: int | None = None
    ) -> Tensor:
        """The tokens of n objects, (n, T) bool.

        Args:
            caption: index of the caption.
            spans: for each object, the (begin, end) characters of the caption that name it.
            fallback: as in `range_of`.
        """
        tokens = torch.zeros(len(spans), self.num_tokens, dtype=torch.bool)
        for row, own in zip(tokens, spans, strict=True):
            for begin, end in own:
                found = self.range_of(caption, begin, end, fallback=fallback)
                row[found.start : found.stop] = True
        return tokens

    def pad_to(self, num_tokens: int) -> Tokens:
        """The tokens, padded further to a length not below the current one."""
        more = num_tokens - self.num_tokens
        if not more:
            return self
        return replace(
            self,
            ids=F.pad(self.ids, (0, more), value=self.pad_id),
            padding=F.pad(self.padding, (0, more), value=True),
            spans=F.pad(self.spans, (0, 0, 0, more)),
        )


@dataclass(frozen=True)
class CaptionBatch(Batch):
    """Images with a caption each. The captions are padded to a common length, as the images are.

    Attributes:
        captions: B captions.
        tokens: their tokens; `token_map` of a target has as many columns.
    """

    captions: tuple[str, ...] = field(kw_only=True)
    tokens: Tokens = field(kw_only=True)

    @property
    def extent(self) -> tuple[int, ...]:
        """H, W and T, padding included."""
        return (*self.shape, self.tokens.num_tokens)

    @property
    def loss_counts(self) -> list[tuple[int, tuple[str, ...]]]:
        """The number of objects of each image, and the names of the answer heads that its question concerns."""
        return [(len(target), tuple(target.answers or ())) for target in self.targets]

    def pad_to(self, height: int, width: int, num_tokens: int | None = None) -> Self:
        """The batch with its images padded to a height and width, and its captions to a number of tokens."""
        tokens = self.tokens.pad_to(self.tokens.num_tokens if num_tokens is None else num_tokens)
        more = tokens.num_tokens - self.tokens.num_tokens
        targets = tuple(
            target if target.token_map is None else replace(target, token_map=F.pad(target.token_map, (0, more)))
            for target in self.targets
        )
        return replace(self, images=self.images.pad_to(height, width), tokens=tokens, targets=targets)


@dataclass(frozen=True)
class FeatureMap(Movable):
    """One level of features, with its padding and position encoding for attention.

    Attributes:
        values: (B, C, h, w) float.
        padding: (B, h, w) bool, True where padded; None when nothing is padded.
        position: (B, D, h, w) float position encoding, or None if none was computed.
    """

    values: Tensor
    padding: Tensor | None = None
    position: Tensor | None = None


class Scoring(Protocol):
    """How class logits become scores. A model carries its scoring, so no other code depends on the model family.

    Attributes:
        panoptic_score: default threshold of a panoptic map; queries with a lower score are not part of it.
    """

    panoptic_score: ClassVar[float]

    def strictly(self) -> Scoring:
        """The scoring with score 0 where "no object" is the most probable class.

        Raises ValueError if there is no "no object" class.
        """
        ...

    def num_logits(self, num_classes: int) -> int:
        """The number of logits C for K classes."""
        ...

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., C) logits -> (..., K) probabilities of the K classes, without "no object"."""
        ...

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(..., C) logits -> score and label of the best class, (...) each; 0 where "no object" is more probable."""
        ...

    def select(self, logits: Tensor, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, Q, C) logits -> scores, labels and query indices, (B, k) each, as in the published post-processing."""
        ...


@dataclass(frozen=True)
class Predictions(Movable):
    """The predictions of one decoder layer.

    Attributes:
        logits: (B, Q, C) float class logits; `scoring` defines the meaning of the columns.
        boxes: (B, Q, 4) float, cxcywh in 0..1 of the unpadded image.
        scoring: converts the logits to scores.
    """

    logits: Tensor
    boxes: Tensor
    scoring: Scoring

    def __post_init__(self) -> None:
        if _checked():
            shape = (*self.logits.shape[:2], 4)
            expect_shape(tuple(self.boxes.shape) == shape, "Predictions", "boxes", str(shape), self.boxes)


@dataclass(frozen=True)
class LazyMasks:
    """The masks of the last layer's queries, computed on demand for selected queries.

    Attributes:
        decode: (m,) int64 images and (m,) int64 queries -> (m, h, w) float32 logits at stride 4 of the padded images.
        size: H and W of the padded images, in pixels.
    """

    decode: Callable[[Tensor, Tensor], Tensor]
    size: tuple[int, int]

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        """The mask logits (m, h, w) of m queries, given by their `image` (m,) and `query` (m,) indices."""
        return self.decode(image, query)


@dataclass(frozen=True)
class Output(Movable):
    """The output of a model for a batch of images, in training and in evaluation.

    A model with further outputs returns a subclass.

    Attributes:
        layers: the predictions of every decoder layer, first to last.
        queries: (L, B, Q, D) float, the normalised decoder output, which is the input of the heads.
        features: the backbone features, one map per level, fine to coarse.
        memory: the encoder's output, one map per level.
        masks: computes the masks of selected queries; None for a model without a mask head.
    """

    layers: tuple[Predictions, ...]
    queries: Tensor
    features: tuple[FeatureMap, ...]
    memory: tuple[FeatureMap, ...]
    masks: LazyMasks | None = field(default=None, kw_only=True)

    @property
    def final(self) -> Predictions:
        """The predictions of the last layer."""
        return self.layers[-1]


@dataclass(frozen=True)
class GroundingOutput(Output):
    """The output of a model that detects what a caption names.

    Attributes:
        tokens: the tokens of the captions. The logits of a query are those of the first C - 1 of them, and "no object".
        query_features: (L, B, Q, E) and
        token_features: (B, T, E), of unit length, close to each other for a query and the tokens that name its object;
            None without contrastive alignment.
        is_final: (L, B, Q) logits that the caption as a whole refers to the object; None without such a head.
        answers: logits of the answers to a question, by the name of the answer head: (B, K), or (B,) for yes and no.
        image_feature, caption_feature: (B, E), close to each other for an image and its caption; None without such a
            loss.
        inputs: the levels that the encoder takes, with the shapes of those of the memory: image, text, and so on.
    """

    tokens: Tokens = field(kw_only=True)
    query_features: Tensor | None = field(default=None, kw_only=True)
    token_features: Tensor | None = field(default=None, kw_only=True)
    is_final: Tensor | None = field(default=None, kw_only=True)
    answers: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    image_feature: Tensor | None = field(default=None, kw_only=True)
    caption_feature: Tensor | None = field(default=None, kw_only=True)
    inputs: tuple[FeatureMap, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class TrackingOutput(Output):
    """The output of a video model for one frame of each of B videos.

    Attributes:
        state: what the model needs for the next frame: `model(images, state)`. Its type depends on the model.
        track_ids: (B, Q) int64, the track of each query, or -1. The model gives the tracks that its queries follow; a
            session gives those that are reported in this frame.
        tracks: the predictions of a second decoder for the queries of the frame before, one per layer; empty for
            models that have one decoder.
    """

    state: Movable = field(kw_only=True)
    track_ids: Tensor = field(kw_only=True)
    tracks: tuple[Predictions, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Matches(Movable):
    """The matching between queries and objects over all layers and images, sorted by (layer, image, query).

    Attributes:
        layer, image, query, target: (m,) int64 each; `target` is the index of the object in its image.
        per_layer: number of matches of each layer, on the host, so that no synchronisation with the device is needed;
            None if unknown.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor
    per_layer: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.layer)

    def counts(self, num_layers: int) -> list[int]:
        """The number of matches of each of the L layers."""
        if self.per_layer is not None:
            return list(self.per_layer)
        return self.layer.bincount(minlength=num_layers).tolist()

    def of_layer(self, layer: int) -> Matches:
        """The matches of one decoder layer."""
        chosen = self.layer == layer
        return Matches(self.layer[chosen], self.image[chosen], self.query[chosen], self.target[chosen])
