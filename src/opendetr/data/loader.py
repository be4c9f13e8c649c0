"""Batches of a data set: the same ones for the same seed, whoever loads them and wherever an epoch is entered.

The order of an epoch is a function of (seed, epoch), what happens to an image of (seed, epoch, its index in the data).
Loader processes only carry out what is fixed here.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from opendetr.data.config import DataConfig
from opendetr.data.images import ImageError, read_record
from opendetr.data.records import DataError, DetectionData, ImageRecord
from opendetr.data.transforms import LabelledImage, Transform, evaluation_transform, training_transform
from opendetr.structures import Batch, ImageBatch

# Images of like shape meet among the images of this many batches, or of half an epoch where that is less: enough to
# leave little padding (COCO, batches of 8: 45 % without, 8 % with), few enough that a batch is still a chance meeting.
_POOL_BATCHES = 64

_Read = Callable[[ImageRecord], np.ndarray]

_log = logging.getLogger(__name__)


class _Draw(NamedTuple):
    """What a batch is made of: images by their index in the data, as they are in an epoch."""

    epoch: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class _Loaded:
    """A batch on its way from a loader process.

    Attributes:
        images: None when no image could be read.
        described: the pickled targets and names. As tensors each would cost a shared memory file of its own.
        unreadable: image id and message of the images that could not be read.
        error: what is wrong with the data set, when it cannot be used at all.
    """

    images: ImageBatch | None = None
    described: bytes = b""
    unreadable: tuple[tuple[int, str], ...] = ()
    error: str | None = None


class RamCache:
    """Reads every image once, when it is made, and gives it from memory from then on.

    Forked loader processes share the memory; where processes are spawned each has a copy.
    """

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        needed = sum(3 * record.height * record.width for record in records)
        present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > present // 2:
            raise DataError(
                f"cache 'ram': {len(records)} images need {needed / 2**30:.1f} GiB, and this machine has "
                f"{present / 2**30:.1f}; use cache 'none'"
            )
        self._images: dict[int, np.ndarray] = {}
        self._unreadable: dict[int, str] = {}
        for record in records:
            try:
                self._images[record.id] = read_record(record)
            except ImageError as error:
                self._unreadable[record.id] = str(error)

    def __call__(self, record: ImageRecord) -> np.ndarray:
        """The picture, (height, width, 3) uint8 RGB. Raises ImageError for one that could not be read."""
        if record.id in self._unreadable:
            raise ImageError(self._unreadable[record.id])
        return self._images[record.id]


class _Images(Dataset[_Loaded]):
    """Loads a draw; runs in the loader processes. What a user can cause is returned, so that it arrives as one line."""

    def __init__(self, data: DetectionData, transform: Transform, read: _Read, seed: int, *, substitute: bool) -> None:
        self._data = data
        self._transform = transform
        self._read = read
        self._seed = seed
        self._substitute = substitute

    def __getitem__(self, draw: _Draw) -> _Loaded:
        unreadable: dict[int, str] = {}
        images, described = [], []
        try:
            for index in draw.indices:
                record, pixels = self._readable(index, unreadable)
                if pixels is not None:
                    labelled = LabelledImage.from_record(record, pixels, self._data.categories)
                    image, target = self._transform(labelled, sample_rng(self._seed, draw.epoch, index))
                    images.append(image)
                    described.append((target, str(record.path)))
        except DataError as error:
            return _Loaded(error=str(error))
        batch = ImageBatch.from_images(images) if images else None
        return _Loaded(batch, pickle.dumps(described), tuple(unreadable.items()))

    def _readable(self, index: int, unreadable: dict[int, str]) -> tuple[ImageRecord, np.ndarray | None]:
        """The image at `index`; where it cannot be read the next one that can, or None without substitutes."""
        count = len(self._data)
        for offset in range(count if self._substitute else 1):
            record = self._data.images[(index + offset) % count]
            try:
                return record, self._read(record)
            except ImageError as error:
                unreadable[record.id] = str(error)
        if self._substitute:
            raise DataError(f"none of {count} images can be read; the first: {next(iter(unreadable.values()))}")
        return self._data.images[index], None


class _Schedule(Sampler[_Draw]):
    """Hands out the draws that were set last; lets loader processes live on from epoch to epoch."""

    def __init__(self) -> None:
        self.draws: Sequence[_Draw] = ()

    def __iter__(self) -> Iterator[_Draw]:
        return iter(self.draws)

    def __len__(self) -> int:
        return len(self.draws)


class _Loader:
    """What loading for training and for evaluation share.

    Args:
        data: what to load.
        transform: makes inputs and targets of the images.
        batch_size: images in a batch.
        seed: fixes whatever is left to chance.
        num_workers: processes that load; the batches are the same with any number, 0 loads in this process.
        skip_unreadable: name an image that cannot be read once and do without it; else raise ImageError.
        cache: decode every image once and keep it in memory.

    Attributes:
        unreadable: image id -> why it could not be read; grows while images are loaded.
    """

    _substitute: ClassVar[bool]  # whether another image takes the place of one that cannot be read

    def __init__(
        self,
        data: DetectionData,
        transform: Transform,
        *,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        skip_unreadable: bool = True,
        cache: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}; give 1 or more")
        if not len(data):
            raise DataError(f"{data.folder}: the split '{data.split}' holds no images")
        self.unreadable: dict[int, str] = {}
        self._data = data
        self._transform = transform
        self._batch_size = min(batch_size, len(data))
        self._seed = seed
        self._skip_unreadable = skip_unreadable
        self._schedule = _Schedule()
        self._running: object = None
        read = RamCache(data.images) if cache else read_record
        self._loader = DataLoader(
            _Images(data, transform, read, seed, substitute=self._substitute),
            batch_size=None,
            sampler=self._schedule,
            num_workers=num_workers,
            collate_fn=_unchanged,
            worker_init_fn=_start_worker,
            persistent_workers=num_workers > 0,
            # Else a number is drawn from torch's global generator for every epoch, and a resumed run is another one.
            generator=torch.Generator(),
        )

    def _load(self, draws: Sequence[_Draw]) -> Iterator[Batch]:
        """The batches of the draws. Only the last call's iterator is good: it owns the loader processes."""
        self._running = running = object()
        self._schedule.draws = draws
        loaded = iter(self._loader)
        while True:
            if self._running is not running:
                raise RuntimeError("a newer pass over this loader has begun; finish one before the next")
            try:
                batch = self._unpacked(next(loaded))
            except StopIteration:
                return
            except RuntimeError as error:
                raise _worker_error(error) from None
            if batch is not None:
                yield batch

    def _unpacked(self, loaded: _Loaded) -> Batch | None:
        if loaded.error is not None:
            raise DataError(loaded.error)
        for image_id, message in loaded.unreadable:
            if not self._skip_unreadable:
                raise ImageError(message)
            if image_id not in self.unreadable:
                self.unreadable[image_id] = message
                _log.warning("skipped: %s", message)
        if loaded.images is None:
            return None
        targets, names = zip(*pickle.loads(loaded.described), strict=True)
        return Batch(loaded.images, targets, names)

    def _batches_of_like_shape(self, draw: _Draw) -> list[_Draw]:
        """The draw's images, put into batches so that little is padding."""
        shapes = {}
        for index in draw.indices:
            record = self._data.images[index]
            rng = sample_rng(self._seed, draw.epoch, index)
            shapes[index] = self._transform.output_shape(record.height, record.width, rng)
        return [_Draw(draw.epoch, indices) for indices in _grouped(draw.indices, shapes, self._batch_size)]


class TrainLoader(_Loader):
    """Shuffled batches of like shape, epoch by epoch; the next readable image stands in for one that is not."""

    _substitute = True

    def __len__(self) -> int:
        """Batches in an epoch. Images that do not fill a last batch wait for another epoch's order."""
        return len(self._data) // self._batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on: the same ones whether or not those before were loaded.

        Raises DataError when the data cannot be used, ImageError for an unreadable image that is not to be skipped.
        """
        return self._load(self._draws(epoch)[start:])

    def _draws(self, epoch: int) -> list[_Draw]:
        # The spawn key keeps this stream apart from those of the images.
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch], spawn_key=(1,)))
        order = rng.permutation(len(self._data))[: len(self) * self._batch_size].tolist()
        pool = min(_POOL_BATCHES, math.ceil(len(self) / 2)) * self._batch_size
        draws = []
        for first in range(0, len(order), pool):
            draws += self._batches_of_like_shape(_Draw(epoch, tuple(order[first : first + pool])))
        return [draws[position] for position in rng.permutation(len(draws))]


class EvalLoader(_Loader):
    """Every image once, in batches of like shape, in a fixed order; images that cannot be read are left out."""

    _substitute = False

    def __len__(self) -> int:
        """Batches of one pass."""
        return math.ceil(len(self._data) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the images. Raises as `TrainLoader.epoch` does."""
        return self._load(self._batches_of_like_shape(_Draw(0, tuple(range(len(self._data))))))


def train_loader(data: DetectionData, config: DataConfig, *, batch_size: int, seed: int) -> TrainLoader:
    """The loader that a configuration describes, for training."""
    return TrainLoader(
        data,
        training_transform(config),
        batch_size=batch_size,
        seed=seed,
        num_workers=config.num_workers,
        skip_unreadable=not config.strict,
        cache=config.cache == "ram",
    )


def eval_loader(data: DetectionData, config: DataConfig, *, batch_size: int) -> EvalLoader:
    """The loader that a configuration describes, for evaluation."""
    return EvalLoader(
        data,
        evaluation_transform(config),
        batch_size=batch_size,
        num_workers=config.num_workers,
        skip_unreadable=not config.strict,
        cache=config.cache == "ram",
    )


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that decides what happens to the image at `index` in an epoch."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, index]))


def _grouped(indices: Sequence[int], shapes: Mapping[int, tuple[int, int]], batch_size: int) -> list[tuple[int, ...]]:
    """Batches of images whose heights and widths are alike; only the last may be smaller than `batch_size`.

    As a k-d tree does: the images are halved along the side that varies most (as a ratio), and each half again. Images
    of one shape keep their order.
    """
    if len(indices) <= batch_size:
        return [tuple(indices)]
    height_ratio, width_ratio = (
        max(shapes[index][side] for index in indices) / min(shapes[index][side] for index in indices) for side in (0, 1)
    )
    along = (0, 1) if height_ratio > width_ratio else (1, 0)
    ordered = sorted(indices, key=lambda index: (shapes[index][along[0]], shapes[index][along[1]]))
    num_batches = math.ceil(len(ordered) / batch_size)
    middle = num_batches // 2 * batch_size
    return [*_grouped(ordered[:middle], shapes, batch_size), *_grouped(ordered[middle:], shapes, batch_size)]


def _unchanged(loaded: Any) -> Any:
    return loaded


def _start_worker(worker: int) -> None:
    """Ctrl-C is for the main process, which stops its workers when it is done saving; SIGTERM ends a worker quietly.

    Without this a worker that was forked keeps the handlers of the main process, or takes it down by dying first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _quit)


def _quit(signum: int, frame: FrameType | None) -> None:
    os._exit(0)


def _worker_error(error: RuntimeError) -> Exception:
    """One line for a loader process that died; other errors as they are."""
    if "DataLoader worker" not in str(error):
        return error
    return DataError(f"a loader process died ({str(error).splitlines()[0]}); try fewer, or none, with num_workers")
