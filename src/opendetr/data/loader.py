"""Loads the batches of a dataset. The batches do not depend on the number of loader processes.

The order of an epoch is a function of (seed, epoch). The augmentation of an image is a function of (seed, epoch, index
of the image). So an epoch can be resumed at any batch. Loader processes send pixels as uint8, a quarter of the
size of float32; they become float on the device.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from types import FrameType
from typing import Any, ClassVar, NamedTuple, overload

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from opendetr.config import SettingError
from opendetr.data.batching import (
    Groups,
    Shapes,
    bounded_batches,
    equal_batches,
    padded_pixels,
    repeat_or_drop,
)
from opendetr.data.collate import Collate, collate_samples
from opendetr.data.config import DataConfig
from opendetr.data.images import ImageError, read_record
from opendetr.data.masks import empty_mask, read_masks
from opendetr.data.packing import Packed, pack, unpack
from opendetr.data.records import DataError, DetectionData, ImageRecord
from opendetr.data.transforms import LabelledImage, Transform
from opendetr.distributed import gather, usable_cpus
from opendetr.structures import Batch

# Images of similar shape are grouped within a pool of this many batches, or of half an epoch if that is less. A pool is
# large enough to leave little padding (COCO, batches of 8: 45 % without pools, 8 % with) and small enough for random
# batches.
_POOL_BATCHES = 64

_Read = Callable[[ImageRecord], np.ndarray]

_log = logging.getLogger(__name__)


class _BatchPlan(NamedTuple):
    """What a loader process needs to load one batch.

    Attributes:
        epoch: the epoch that the batch belongs to.
        indices: indices of the images in the data.
        shape: height and width to pad the images to. The batch is larger if a substituted image is.
        seed: seed of the random choices that a task makes once per batch.
        group: the number of the group of evaluation batches that it belongs to.
    """

    epoch: int
    indices: tuple[int, ...]
    shape: tuple[int, int]
    seed: int = 0
    group: int = 0


@dataclass(frozen=True)
class _LoadedBatch:
    """What a loader process sends for one batch.

    Attributes:
        samples: the packed samples; None if no image could be read.
        shape: height and width to pad to.
        seed, group: as in `_BatchPlan`.
        unreadable: image id and message of each image that could not be read.
        empty_masks: image id and message of each image with objects whose mask has no pixels.
        error: the message of a fault that makes the dataset unusable, or None.
    """

    samples: Packed | None = None
    shape: tuple[int, int] = (0, 0)
    seed: int = 0
    group: int = 0
    unreadable: tuple[tuple[int, str], ...] = ()
    empty_masks: tuple[tuple[int, str], ...] = ()
    error: str | None = None


class _Records(Sequence[ImageRecord]):
    """A sequence of records, pickled in one array.

    A forked process shares memory with its parent until one of them writes to it. Python writes a reference count into
    every object that is used, so a sequence of objects would soon be copied. The array is never written to.
    """

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        pickled = [pickle.dumps(record) for record in records]
        self._ends = np.cumsum([len(record) for record in pickled])
        self._bytes = np.frombuffer(b"".join(pickled), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | Sequence[ImageRecord]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]].tobytes())


class RamCache:
    """Decodes every image once, on creation, and returns it from memory.

    Forked loader processes share the memory. Spawned ones have a copy each.

    Raises:
        DataError: the images need more than half of the machine's memory.
    """

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        needed = sum(3 * record.height * record.width for record in records)
        total = psutil.virtual_memory().total
        if needed > total // 2:
            raise DataError(
                f"cache 'ram': {len(records)} images need {needed / 2**30:.1f} GiB, and this machine has "
                f"{total / 2**30:.1f} GiB, of which half may be used; use cache 'none'"
            )
        self._images: dict[int, np.ndarray] = {}
        self._unreadable: dict[int, str] = {}
        for record in records:
            try:
                self._images[record.id] = read_record(record)
            except ImageError as error:
                self._unreadable[record.id] = str(error)

    def __call__(self, record: ImageRecord) -> np.ndarray:
        """The image, (height, width, 3) uint8 RGB. Raises ImageError if it could not be read."""
        if record.id in self._unreadable:
            raise ImageError(self._unreadable[record.id])
        return self._images[record.id]


class _Samples(Dataset[_LoadedBatch]):
    """Loads the samples of a batch, in the loader processes.

    Errors that a user can cause are returned as messages, because torch would print a traceback.
    """

    def __init__(
        self, data: DetectionData, transform: Transform, read: _Read, seed: int, *, substitute: bool, masks: bool
    ) -> None:
        self._records = _Records(data.images)
        self._categories = data.categories
        self._transform = transform
        self._read = read
        self._seed = seed
        self._substitutes = substitute
        self._masks = masks
        self._empty_masks: dict[int, str] = {}

    def __getitem__(self, plan: _BatchPlan) -> _LoadedBatch:
        unreadable: dict[int, str] = {}
        others = _AllImages(self, unreadable)
        samples = []
        try:
            for index in plan.indices:
                labelled = self.labelled(index, unreadable)
                if labelled is not None:
                    samples.append(self._transform(labelled, sample_rng(self._seed, plan.epoch, index), others))
        except DataError as error:
            return _LoadedBatch(error=str(error))
        empty_masks = tuple(self._empty_masks.items())
        self._empty_masks.clear()
        packed = pack(samples) if samples else None
        return _LoadedBatch(packed, plan.shape, plan.seed, plan.group, tuple(unreadable.items()), empty_masks)

    def __len__(self) -> int:
        return len(self._records)

    def labelled(self, index: int, unreadable: dict[int, str]) -> LabelledImage | None:
        """The image at `index`. If it cannot be read, the next readable image, or None without substitution.

        Unreadable images are added to `unreadable`: image id -> message.
        """
        if self._substitutes:
            return self.readable(index, unreadable)
        return self._first_readable(index, 1, unreadable)

    def readable(self, index: int, unreadable: dict[int, str]) -> LabelledImage:
        """The image at `index`, or the next readable one, also without substitution. Raises DataError if none is."""
        labelled = self._first_readable(index, len(self), unreadable)
        if labelled is None:
            raise DataError(f"none of {len(self)} images can be read; the first: {next(iter(unreadable.values()))}")
        return labelled

    def _first_readable(self, index: int, num_tried: int, unreadable: dict[int, str]) -> LabelledImage | None:
        for offset in range(num_tried):
            position = (index + offset) % len(self)
            record = self._records[position]
            try:
                return self._labelled(record, position)
            except ImageError as error:
                unreadable[record.id] = str(error)
        return None

    def _labelled(self, record: ImageRecord, index: int) -> LabelledImage:
        """The image, with masks if the loader reads them. Raises ImageError if it cannot be read."""
        labelled = LabelledImage.from_record(record, self._read(record), self._categories, index)
        if not self._masks:
            return labelled
        objects = [obj for obj in record.objects if not obj.crowd]
        masks = read_masks(record, objects)
        empty = [obj for obj, mask in zip(objects, masks, strict=True) if not mask.any()]
        if empty:
            fault = empty_mask(record, empty[0])
            self._empty_masks[record.id] = f"{fault.kind.describe(len(empty))} (first: {fault.place})"
        return labelled.with_masks(masks)


class _AllImages(Sequence[LabelledImage]):
    """All images of the data, each read on access. The next readable image is substituted for an unreadable one."""

    def __init__(self, images: _Samples, unreadable: dict[int, str]) -> None:
        self._images = images
        self._unreadable = unreadable

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> LabelledImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LabelledImage]: ...
    def __getitem__(self, index: int | slice) -> LabelledImage | Sequence[LabelledImage]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._images.readable(index, self._unreadable)


class _PlanSampler(Sampler[_BatchPlan]):
    """Yields the plans of the current pass. Replacing `plans` lets the loader processes persist from epoch to epoch."""

    def __init__(self) -> None:
        self.plans: Sequence[_BatchPlan] = ()

    def __iter__(self) -> Iterator[_BatchPlan]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)


class _Loader:
    """Base class of the loaders for training and evaluation.

    Args:
        data: the split to load.
        transform: makes samples of images.
        batch_size: images per batch.
        seed: seed of everything random.
        num_workers: number of loader processes, at most one for each usable CPU core; 0 loads in this process. The
            batches are the same.
        skip_unreadable: skip unreadable images, with one warning each in the main process; otherwise raise ImageError.
        cache: decode every image once and keep it in memory.
        share: rank of this process, and number of processes. Each process loads its part of every batch. The batches
            and their padding are the same in all processes.
        device: the device of the batches.
        masks: load the masks of objects; `data` must have been read with masks (see `DetectionData.masks`).
        collate: makes a batch of samples.
        logged: warnings that are not logged again, because another loader has logged them. New ones are added.

    Attributes:
        unreadable: image id -> why the image could not be read. Grows while this process loads images; see
            `gather_skipped`.
        empty_masks: image id -> which objects were skipped because their mask has no pixels. Grows likewise.
    """

    _substitutes: ClassVar[bool]  # whether another image is substituted for an unreadable one

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
        share: tuple[int, int] = (0, 1),
        device: torch.device | str = "cpu",
        masks: bool = False,
        collate: Collate = collate_samples,
        logged: set[str] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}; give 1 or more")
        if not len(data):
            raise DataError(f"{data.folder}: the split '{data.split}' contains no images")
        if masks and data.masks == "none":
            raise DataError(f"{data.folder}: the split '{data.split}' was read without masks; open it with masks")
        self.unreadable: dict[int, str] = {}
        self.empty_masks: dict[int, str] = {}
        self._data = data
        self._transform = transform
        self._batch_size = min(batch_size, len(data))
        self._seed = seed
        self._skip_unreadable = skip_unreadable
        self._share = share
        self._device = torch.device(device)
        self._collate = collate
        self._logged = set() if logged is None else logged
        self._sampler = _PlanSampler()
        self._current_pass: object = None
        read = RamCache(data.images) if cache else read_record
        self._loader = DataLoader(
            _Samples(data, transform, read, seed, substitute=self._substitutes, masks=masks),
            batch_size=None,
            sampler=self._sampler,
            num_workers=min(num_workers, usable_cpus()),  # more would only take turns, and torch would warn
            collate_fn=_identity,
            worker_init_fn=_start_worker,
            persistent_workers=num_workers > 0,
            # Without it, every epoch would draw a number from torch's global generator, and a resumed run would differ.
            generator=torch.Generator(),
        )

    def _iterate(self, plans: Sequence[_BatchPlan]) -> Iterator[tuple[int, Batch]]:
        """Yield the group and the batch of each plan. Plans without a readable image have none.

        All passes use the same loader processes, so an earlier iterator raises RuntimeError after a new call.
        """
        self._current_pass = this_pass = object()
        self._sampler.plans = [self._own_part(plan) for plan in plans]
        loaded = _start_iterator(self._loader)
        while True:
            if self._current_pass is not this_pass:
                raise RuntimeError("a newer pass over this loader has begun; finish a pass before the next one")
            try:
                arrived = next(loaded)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if self._loader.num_workers and _is_worker_death(error):
                    raise _worker_death_error(error) from None
                raise
            batch = self._unpack(arrived)
            if batch is not None:
                yield arrived.group, batch

    def _own_part(self, plan: _BatchPlan) -> _BatchPlan:
        """The part of a batch that this process loads."""
        number, count = self._share
        first, end = (len(plan.indices) * part // count for part in (number, number + 1))
        return plan._replace(indices=plan.indices[first:end])

    def _unpack(self, loaded: _LoadedBatch) -> Batch | None:
        if loaded.error is not None:
            raise DataError(loaded.error)
        if loaded.unreadable and not self._skip_unreadable:
            raise ImageError(loaded.unreadable[0][1])
        self._note(dict(loaded.unreadable), self.unreadable)
        self._note(dict(loaded.empty_masks), self.empty_masks)
        if loaded.samples is None:
            return None
        return replace(self._collate(unpack(loaded.samples), loaded.shape, self._device), seed=loaded.seed)

    def _note(self, messages: Mapping[int, str], known: dict[int, str]) -> None:
        """Add to `known` what is new; process 0 logs it."""
        for image_id, message in messages.items():
            if image_id not in known:
                known[image_id] = message
                if self._share[0] == 0 and message not in self._logged:
                    self._logged.add(message)
                    _log.warning("skipped: %s", message)

    def gather_skipped(self) -> None:
        """Add what the other processes skipped to `unreadable` and `empty_masks`; all processes call this together.

        Process 0 logs it. Until then it has logged only what it skipped itself.
        """
        for unreadable, empty_masks in gather((self.unreadable, self.empty_masks)):
            self._note(unreadable, self.unreadable)
            self._note(empty_masks, self.empty_masks)

    def _shapes(self, epoch: int, indices: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Index -> height and width of the image after the transform in this epoch."""
        shapes = {}
        for index in indices:
            record = self._data.images[index]
            rng = sample_rng(self._seed, epoch, index)
            shapes[index] = self._transform.output_shape(record.height, record.width, rng)
        return shapes


class TrainLoader(_Loader):
    """Shuffled batches of images of similar shape, epoch by epoch.

    The next readable image is substituted for an unreadable one.
    """

    _substitutes = True

    def __len__(self) -> int:
        """Batches per epoch. The images that do not fill a last batch are dropped in this epoch."""
        return len(self._data) // self._batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch number `start`. They are the same as in a full pass.

        Raises:
            DataError: the data cannot be used.
            ImageError: an image cannot be read, and `skip_unreadable` is False.
        """
        plans = self._plans(epoch)
        seeds = np.random.SeedSequence([self._seed, epoch], spawn_key=(2,)).generate_state(len(plans))
        seeded = [plan._replace(seed=int(seed)) for plan, seed in zip(plans, seeds, strict=True)]
        return map(itemgetter(1), self._iterate(seeded[start:]))

    def _plans(self, epoch: int) -> list[_BatchPlan]:
        rng = self._order_rng(epoch)
        order = rng.permutation(len(self._data)).tolist()
        shapes = self._shapes(epoch, order)
        batches = self._batches(order, shapes)
        return [_plan(epoch, batches[position], shapes) for position in rng.permutation(len(batches))]

    def _order_rng(self, epoch: int) -> np.random.Generator:
        # The spawn key separates this stream from those of the images.
        return np.random.default_rng(np.random.SeedSequence([self._seed, epoch], spawn_key=(1,)))

    def _batches(self, order: list[int], shapes: Shapes) -> list[tuple[int, ...]]:
        pools = self._pools(order[: len(self) * self._batch_size])
        return [batch for pool in pools for batch in equal_batches(pool, shapes, self._batch_size)]

    def _pools(self, order: list[int]) -> Iterator[list[int]]:
        """The pools of images within which batches are formed."""
        length = min(_POOL_BATCHES, math.ceil(len(order) // self._batch_size / 2)) * self._batch_size
        return (order[first : first + length] for first in range(0, len(order), length))


class BoundedTrainLoader(TrainLoader):
    """A `TrainLoader` that limits the number of pixels of a batch. `batch_size` is the maximum number of images.

    All epochs have the same number of batches. Every epoch begins with its largest batch. The first batch of the first
    epoch is the largest of all, except for batches of one image per process. So if it fits into memory, all do.

    Args:
        max_pixels: maximum number of pixels of a batch, padding included.
    """

    def __init__(self, data: DetectionData, transform: Transform, *, max_pixels: int, **options: Any) -> None:
        super().__init__(data, transform, **options)
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._first_epoch[0]

    @cached_property
    def _first_epoch(self) -> tuple[int, int]:
        """Number of batches of the first epoch, and pixels of its largest batch."""
        order = self._order_rng(0).permutation(len(self._data)).tolist()
        shapes = self._shapes(0, order)
        batches = self._bounded(order, shapes, self._max_pixels)
        return len(batches), max(padded_pixels(batch, shapes) for batch in batches)

    def _plans(self, epoch: int) -> list[_BatchPlan]:
        plans = super()._plans(epoch)
        sizes = [len(plan.indices) * math.prod(plan.shape) for plan in plans]
        plans.insert(0, plans.pop(sizes.index(max(sizes))))
        return plans

    def _batches(self, order: list[int], shapes: Shapes) -> list[tuple[int, ...]]:
        count, largest = self._first_epoch
        return repeat_or_drop(self._bounded(order, shapes, largest), count)

    def _bounded(self, order: list[int], shapes: Shapes, max_pixels: int) -> list[tuple[int, ...]]:
        """Batches of at most `max_pixels`, each with an image for every process."""
        pools = self._pools(order)
        batches = (batch for pool in pools for batch in bounded_batches(pool, shapes, self._batch_size, max_pixels))
        return [batch for batch in batches if len(batch) >= self._share[1]]


class EvalLoader(_Loader):
    """Every image once, in a fixed order. Unreadable images are skipped.

    By default each batch has images of one shape, so no image is padded, and the predictions for an image do not depend
    on the other images. With several processes, each loads whole groups of batches.

    Args:
        data, transform, options: those of the base class.
        groups: the batches as groups that one process evaluates in order; see `DataConfig.evaluation_groups`.
    """

    _substitutes = False

    def __init__(self, data: DetectionData, transform: Transform, *, groups: Groups | None = None, **options: Any):
        super().__init__(data, transform, **options)
        self._groups = groups or DataConfig().evaluation_groups

    def __len__(self) -> int:
        """Batches of this process in one pass."""
        return len(self._plans())

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the images. The errors are those of `TrainLoader.epoch`."""
        return map(itemgetter(1), self._iterate(self._plans()))

    def groups(self) -> Iterator[Iterator[Batch]]:
        """One pass over the images as in `__iter__`, group by group."""
        for _, group in groupby(self._iterate(self._plans()), key=itemgetter(0)):
            yield map(itemgetter(1), group)

    def _plans(self) -> list[_BatchPlan]:
        shapes = self._shapes(0, range(len(self._data)))
        number, count = self._share
        groups = self._groups(self._data, shapes, self._batch_size)[number::count]
        return [_plan(0, batch, shapes, group) for group, batches in enumerate(groups) for batch in batches]

    def _own_part(self, plan: _BatchPlan) -> _BatchPlan:
        return plan


def train_loader(
    data: DetectionData,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    share: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
) -> TrainLoader:
    """Make the training loader of a configuration.

    Args:
        data: the split to train on.
        config: sizes, augmentation and loading options.
        batch_size: images per batch over all processes; the maximum number of images if `config.batch_pixels` is set.
        seed: seed of the order and the augmentation.
        share: rank of this process, and number of processes. Each process loads its part of every batch. The batches
            and their padding are the same in all processes.
        device: the device of the batches.

    Raises:
        DataError: the split has no images, or a batch has fewer images than there are processes.
        SettingError: `batch_pixels` is less than the largest image needs.
    """
    size = min(batch_size, len(data))
    if 0 < size < share[1]:
        raise DataError(
            f"{data.folder}: a batch of {size} images is too small for {share[1]} processes; use a larger batch size, "
            "or fewer processes"
        )
    transform = config.training_transform(data)
    options = {**_options(config), "batch_size": batch_size, "seed": seed, "share": share, "device": device,
               "masks": config.masks != "none"}  # fmt: skip
    if config.batch_pixels is None:
        return TrainLoader(data, transform, **options)
    short, long = transform.largest_shape
    if config.batch_pixels < short * long * share[1]:
        raise SettingError(
            f"{config.batch_pixels:,} is too small: an image can have {short}x{long} pixels; give at least "
            f"{short * long * share[1]:,}, for one image per process, or make the images smaller",
            setting="data.batch_pixels",
        )
    return BoundedTrainLoader(data, transform, max_pixels=config.batch_pixels, **options)


def eval_loader(
    data: DetectionData,
    config: DataConfig,
    *,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
    logged: set[str] | None = None,
) -> EvalLoader:
    """Make the evaluation loader of a configuration; the arguments are those of `train_loader` and `EvalLoader`.

    It loads no masks: predictions are evaluated against the masks of the dataset itself (see `data.masks`).
    """
    return EvalLoader(
        data,
        config.evaluation_transform(),
        groups=config.evaluation_groups,
        batch_size=batch_size,
        share=share,
        device=device,
        logged=logged,
        **_options(config),
    )


def _options(config: DataConfig) -> dict[str, Any]:
    """The loader options that training and evaluation share."""
    return {
        "num_workers": config.num_workers,
        "skip_unreadable": not config.strict,
        "cache": config.cache == "ram",
        "collate": config.collate,
    }


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random generator for the augmentation of the image at `index` in an epoch."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, index]))


def _plan(epoch: int, indices: tuple[int, ...], shapes: Shapes, group: int = 0) -> _BatchPlan:
    height, width = (max(shapes[index][side] for index in indices) for side in (0, 1))
    return _BatchPlan(epoch, indices, (height, width), group=group)


def _start_iterator(loader: DataLoader[_LoadedBatch]) -> Iterator[_LoadedBatch]:
    """An iterator over the loader, with its processes started.

    When a loader process dies, torch's signal handler raises an error at an arbitrary point of the main process.
    Without the handler, the error is raised when the next batch is requested.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before)


def _identity(loaded: Any) -> Any:
    return loaded


def _start_worker(worker: int) -> None:
    """Set up a loader process: ignore SIGINT, exit on SIGTERM, and freeze the garbage collector.

    A forked worker inherits the signal handlers of the main process. On Ctrl-C the main process stops the workers
    itself, after saving. Frozen objects are not visited by the garbage collector, which would copy shared memory.
    """
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_at_once)


def _exit_at_once(signum: int, frame: FrameType | None) -> None:
    os._exit(0)


def _is_worker_death(error: Exception) -> bool:
    """Whether the error means that a loader process has died, as opposed to an error raised in it.

    Torch raises a RuntimeError when it detects the death. The connection to the process may break before that.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    broken = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
    return broken and "in DataLoader worker process" not in str(error)


def _worker_death_error(error: Exception) -> DataError:
    """The one-line error for a loader process that has died."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"a loader process died ({reason}), perhaps because memory ran out; use fewer num_workers, or 0")
