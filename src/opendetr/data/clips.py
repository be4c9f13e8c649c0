"""Clips of videos, the training data of trackers; and the videos of a dataset, frame by frame, for their evaluation.

Shape letters: B batch, T frames, n objects, H W batch, h w image.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from opendetr.data.batching import same_shape_groups
from opendetr.data.collate import collate_samples
from opendetr.data.config import SINGLE_IMAGE_AUGMENTS, DataConfig
from opendetr.data.formats.coco_videos import FRAME, TRACK, VIDEO
from opendetr.data.transforms import Crop, LabelledImage, Resize, TransformAround
from opendetr.structures import Batch, ClipBatch, Sample

if TYPE_CHECKING:
    from opendetr.data.batching import Batches, Shapes
    from opendetr.data.records import DetectionData
    from opendetr.data.transforms import TrainingTransform, Transform

_MAX_SHIFT_SHARE = 4  # a shift is at most a fourth of a side
_FRAMES, _SEED = "frames", "seed"  # extras of a sample


class Videos:
    """The videos of a dataset.

    Images that do not name their video, as those of detection datasets, belong to none.

    Args:
        data: the dataset; None for no videos.

    Attributes:
        names: the names of the videos, in the order of their first images.
        frames: for each video, the indices of its images in the order of their frames.
    """

    def __init__(self, data: DetectionData | None) -> None:
        records = () if data is None else data.images
        by_video: dict[str, list[int]] = {}
        for index, record in enumerate(records):
            if VIDEO in record.extras:
                by_video.setdefault(str(record.extras[VIDEO]), []).append(index)
        self.names = tuple(by_video)
        self.frames = tuple(
            sorted(indices, key=lambda index: int(records[index].extras[FRAME])) for indices in by_video.values()
        )
        self._places = {
            index: (number, position)
            for number, indices in enumerate(self.frames)
            for position, index in enumerate(indices)
        }

    def __len__(self) -> int:
        """The number of videos."""
        return len(self.frames)

    def place(self, index: int) -> tuple[int, int] | None:
        """The number of the video of an image, and the position of the image in it; None for a still image."""
        return self._places.get(index)


def has_tracks(data: DetectionData) -> bool:
    """Whether the images of a dataset are frames of videos, and all their objects belong to tracks."""
    in_videos = all(VIDEO in image.extras for image in data.images)
    return (
        bool(data.images) and in_videos and all(TRACK in obj.extras for image in data.images for obj in image.objects)
    )


@dataclass(frozen=True, kw_only=True)
class VideoDataConfig(DataConfig):
    """How videos become clips for training, and frames in their order for evaluation.

    All frames of a clip have the same augmentation: flip, crop, size and colours. An epoch has one clip for every
    image of the dataset.

    Attributes:
        max_interval: largest number of frames from one frame of a clip to the next. The interval of a clip is uniform
            from 1 to it, and smaller in a video that is too short for it.

    Raises:
        ValueError: a field is out of its range, or changes the frames of a clip in different ways.
    """

    max_interval: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_interval < 1:
            raise ValueError(f"data.max_interval: expected at least 1 frame, got {self.max_interval}")
        if self.augment not in SINGLE_IMAGE_AUGMENTS:
            raise ValueError(
                f"data.augment: {self.augment!r} mixes images, which the frames of a clip do not support; give "
                f"{' or '.join(SINGLE_IMAGE_AUGMENTS)}"
            )
        if self.augmentation.keep_objects:
            raise ValueError("data.augmentation.keep_objects: crops each frame of a clip in another way; set false")
        if self.masks != "none":
            raise ValueError(f"data.masks: trackers have no masks, so it must be none, got {self.masks!r}")

    @abstractmethod
    def sampling(self, videos: Videos) -> ClipSampling:
        """Which frames become the clip of an image."""

    def training_transform(self, data: DetectionData | None = None) -> Transform:
        """The transform from images to clips."""
        from opendetr.data.augmentation import training_transform

        plain = replace(training_transform(self), make_sample=make_tracked_sample)
        return ClipTransform(plain, self.sampling(Videos(data)))

    def evaluation_groups(self, data: DetectionData, shapes: Shapes, batch_size: int) -> list[Batches]:
        """The frames of each video in their order, one per batch. Still images are batched as for detection."""
        videos = Videos(data)
        stills = [index for index in range(len(data)) if videos.place(index) is None]
        in_order = [[(index,) for index in frames] for frames in videos.frames]
        return [*in_order, *(same_shape_groups(stills, shapes, batch_size) if stills else ())]

    def evaluation_subset(self, data: DetectionData, num_images: int) -> DetectionData:
        """Select `num_images` frames: whole videos, evenly spread over the data, and the first frames of one more.

        If every video has more frames than that, they are the first frames of one video.
        """
        videos = Videos(data)
        if sum(map(len, videos.frames)) < len(data):
            return super().evaluation_subset(data, num_images)
        count = min(len(videos), -(-num_images * len(videos) // len(data)))
        # The videos between the chosen ones follow, in case the chosen ones are shorter than the others.
        chosen = [number * len(videos) // count for number in range(count)]
        chosen += [number for number in range(len(videos)) if number not in chosen]
        indices = [index for number in chosen for index in videos.frames[number]][:num_images]
        return data.subset([data.images[index] for index in sorted(indices)], data.split)

    def collate(self, samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> Batch:
        """Make a batch of clips, or of single images for evaluation; see `data.collate.Collate`.

        If the clips have different numbers of frames, because some are still images, only the last frames are used.
        """
        if any(_SEED not in sample.extras for sample in samples):
            return collate_samples(samples, shape, device)
        clips = [(*sample.extras[_FRAMES], sample) for sample in samples]
        length = min(map(len, clips))
        frames = [
            collate_samples(frame, shape, device) for frame in zip(*(clip[-length:] for clip in clips), strict=True)
        ]
        return ClipBatch.of(frames, seeds=tuple(sample.extras[_SEED] for sample in samples))


@dataclass(frozen=True, kw_only=True)
class ClipDataConfig(VideoDataConfig):
    """Clips that become longer during the run. The defaults are those of MOTR.

    Still images become clips, too: each frame is the one before it, shifted by a random number of pixels in the
    direction of the clip, and stretched to its size again.

    Attributes:
        clip_lengths: the numbers of frames of a clip, in the order in which they are used.
        lengthen_at: the fractions of the run at which the next length begins.
        max_shift: largest shift of a frame of a still image, in pixels of the resized image, and at most a fourth of a
            side. 0 repeats the image.
    """

    max_interval: int = 10
    clip_lengths: tuple[int, ...] = (2, 3, 4, 5)
    lengthen_at: tuple[float, ...] = (50 / 200, 90 / 200, 150 / 200)
    max_shift: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths, times = self.clip_lengths, self.lengthen_at
        if not lengths or lengths[0] < 1 or list(lengths) != sorted(lengths):
            raise ValueError(f"data.clip_lengths: expected ascending numbers of frames, got {list(lengths)}")
        if len(times) != len(lengths) - 1 or list(times) != sorted(times) or not all(0 <= time <= 1 for time in times):
            raise ValueError(
                f"data.lengthen_at: expected {len(lengths) - 1} ascending fractions from 0 to 1, one for each of "
                f"data.clip_lengths after the first, got {list(times)}"
            )
        if self.max_shift < 0:
            raise ValueError(f"data.max_shift: expected at least 0 pixels, got {self.max_shift}")

    def clip_length(self, progress: float) -> int:
        """The number of frames of a clip after a fraction of the run."""
        return self.clip_lengths[bisect_right(self.lengthen_at, progress)]

    def sampling(self, videos: Videos) -> ClipSampling:
        """Clips of the largest length, around the image."""
        return ClipSampling(videos, self.clip_lengths[-1], self.max_interval, max_shift=self.max_shift)

    def at_progress(self, batch: Batch, progress: float) -> Batch:
        """Consecutive frames of the clips, as many as a clip has at this point of the run, from a random one on.

        Clips are loaded with the largest length, because the loader is ahead of the training. So the length in a step
        depends on nothing but the plan of the run.
        """
        if not isinstance(batch, ClipBatch):
            return batch
        length = self.clip_length(progress)
        start = int(np.random.default_rng((batch.seed, 1)).integers(max(len(batch.frames) - length, 0) + 1))
        return ClipBatch.of(batch.frames[start : start + length], seeds=batch.seeds, seed=batch.seed)

    def work(self, progress: float) -> float:
        """The number of frames of a clip."""
        return float(self.clip_length(progress))


@dataclass(frozen=True, kw_only=True)
class PairDataConfig(VideoDataConfig):
    """An image and the two frames before it, for TransTrack. A still image stays alone; see `PairConfig`.

    The frames before the first one of a video are copies of it, as in prediction.
    """

    def sampling(self, videos: Videos) -> ClipSampling:
        """Clips that end with the image."""
        return ClipSampling(videos, 3, self.max_interval, ends_with_image=True)


@dataclass(frozen=True)
class ClipSampling:
    """Chooses the frames of a clip.

    Attributes:
        videos: the videos of the dataset.
        length: T.
        max_interval: see `VideoDataConfig`.
        max_shift: see `ClipDataConfig`; None: a still image is a clip of one frame.
        ends_with_image: whether the image is the last frame of its clip. Otherwise its place in the clip is random. A
            clip that does not fit into the video is moved, and has a smaller interval.
    """

    videos: Videos
    length: int
    max_interval: int
    max_shift: int | None = None
    ends_with_image: bool = False

    def draw(self, index: int, rng: np.random.Generator) -> list[int] | None:
        """The images of the clip for the image at `index`, in the order of their frames; None for a still image."""
        place = self.videos.place(index)
        if place is None:
            return None
        frames, position = self.videos.frames[place[0]], place[1]
        steps = self.length - 1
        if self.ends_with_image:
            start, interval = position, int(rng.integers(1, self.max_interval, endpoint=True))
            start -= steps * interval
        else:
            longest = max(1, min(self.max_interval, (len(frames) - 1) // max(steps, 1)))
            interval = int(rng.integers(1, longest, endpoint=True))
            start = position - interval * int(rng.integers(self.length))
            start = max(0, min(start, len(frames) - 1 - steps * interval))
        positions = np.clip(start + interval * np.arange(self.length), 0, len(frames) - 1)
        return [frames[each] for each in positions.tolist()]

    def shifts(self, height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """The shifts in x and y of the frames after the first one of a still image, in pixels."""
        if self.max_shift is None:
            return []
        limits = [min(self.max_shift, side // _MAX_SHIFT_SHARE) for side in (width, height)]
        x, y = rng.choice((-1, 1), 2).tolist()
        sizes = [
            [int(rng.integers(min(limit, 1), limit, endpoint=True)) for limit in limits] for _ in range(self.length)
        ]
        return [(x * across, y * down) for across, down in sizes[1:]]


@dataclass(frozen=True)
class ClipTransform(TransformAround):
    """Makes a clip of an image of a video, or of a still image.

    Attributes:
        plain: the augmentation of a frame. Its `make_sample` keeps the ids of the tracks.
        sampling: chooses the frames.
    """

    plain: TrainingTransform
    sampling: ClipSampling

    def __call__(self, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage] = ()) -> Sample:
        """The last frame as a sample; `extras` has the samples of the frames before it, and a seed for the task."""
        state = rng.bit_generator.state
        transformed = self.plain.transformed(image, rng, others)
        indices = self.sampling.draw(image.index, rng)
        if indices is None:
            frames = self._shifted(transformed, rng)
        else:
            frames, same = [], np.random.default_rng()
            for index in indices:
                if index == image.index:
                    frames.append(transformed)
                else:
                    frame = self._frame(index, image, others)
                    same.bit_generator.state = state
                    frames.append(self.plain.transformed(frame, same, others))
        *before, last = map(self.plain.make_sample, frames)
        return replace(last, extras={_FRAMES: tuple(before), _SEED: int(rng.integers(2**63))})

    def _frame(self, index: int, image: LabelledImage, others: Sequence[LabelledImage]) -> LabelledImage:
        """A frame of the video of `image`, in the size of `image`, which replaces a frame that cannot be read."""
        frame, videos = others[index], self.sampling.videos
        places = videos.place(frame.index), videos.place(image.index)
        if places[0] is None or places[1] is None or places[0][0] != places[1][0]:
            return image
        height, width = image.pixels.shape[:2]
        return frame if frame.pixels.shape[:2] == (height, width) else Resize(height, width).apply(frame)

    def _shifted(self, image: LabelledImage, rng: np.random.Generator) -> list[LabelledImage]:
        """The frames of a still image. Its objects get ids."""
        height, width = image.pixels.shape[:2]
        count = len(image.labels)
        frames = [replace(image, per_object={**image.per_object, TRACK: np.arange(count)} if count else {})]
        for x, y in self.sampling.shifts(height, width, rng):
            crop = Crop(max(0, -y), max(0, -x), height - abs(y), width - abs(x))
            frames.append(Resize(height, width).apply(crop.apply(frames[-1])))
        return frames


def make_tracked_sample(image: LabelledImage) -> Sample:
    """The sample of a frame: the ids of its tracks become those of the target.

    Raises:
        DataError: an object belongs to no track.
    """
    sample = image.sample()
    ids = image.values_of_objects(TRACK, np.zeros(0, dtype=np.int64))
    target = replace(sample.target, track_ids=torch.from_numpy(np.asarray(ids, dtype=np.int64)))
    return replace(sample, target=target, extras={})
