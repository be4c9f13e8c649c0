import gc
import hashlib
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from folders import one_line, write_image
from opendetr import distributed
from opendetr.categories import Categories
from opendetr.config import SettingError
from opendetr.data import loader as loader_module
from opendetr.data.config import AugmentationConfig, DataConfig
from opendetr.data.images import ImageError, read_image
from opendetr.data.loader import EvalLoader, TrainLoader, eval_loader, sample_rng, train_loader
from opendetr.data.records import DataError, DetectionData, ImageRecord, ObjectRecord
from opendetr.data.transforms import evaluation_transform
from opendetr.structures import ImageBatch

CONFIG = DataConfig(num_workers=0).resized(40)
SIZES = [(48, 64), (64, 48), (40, 80)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index in range(26):
        write_image(folder / f"{index}.png", *SIZES[index % 3], seed=index)
    return folder


@pytest.fixture
def data(folder):
    return records(folder)


def records(folder, count=26):
    things = (
        ObjectRecord(id=1, category_id=4, box=(2, 3, 20, 30), area=600),
        ObjectRecord(id=2, category_id=9, box=(0, 0, 9, 9), area=81, crowd=True),
    )
    images = [
        ImageRecord(id=100 + index, path=folder / f"{index}.png", height=h, width=w, objects=things)
        for index, (h, w) in enumerate(SIZES[index % 3] for index in range(count))
    ]
    return DetectionData(
        categories=Categories(("cat", "dog"), (4, 9)), images=tuple(images), split="train", folder=folder
    )


def same(a, b):
    return (
        torch.equal(a.images.pixels, b.images.pixels)
        and torch.equal(a.images.sizes, b.images.sizes)
        and a.names == b.names
        and all(
            torch.equal(x.boxes, y.boxes) and torch.equal(x.labels, y.labels) and x.image_id == y.image_id
            for x, y in zip(a.targets, b.targets, strict=True)
        )
    )


def all_same(a, b):
    return len(a) == len(b) and all(map(same, a, b))


def ids(batches):
    return [tuple(target.image_id for target in batch.targets) for batch in batches]


def test_a_batch_says_what_it_holds(data):
    loader = train_loader(data, CONFIG, batch_size=4, seed=0)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 6
    for batch in batches:
        assert len(batch) == 4
        for target, size, name in zip(batch.targets, batch.images.sizes.tolist(), batch.names, strict=True):
            record = data.images[target.image_id - 100]
            assert name == str(record.path)
            assert target.size == tuple(size)
            assert target.original_size == (record.height, record.width)
            assert target.labels.tolist() in ([0], [])


def test_an_epoch_sees_every_image_at_most_once(data):
    seen = ids(TrainLoader(data, evaluation_transform(CONFIG), batch_size=4, seed=0).epoch(0))
    assert len({image_id for batch in seen for image_id in batch}) == 24


def test_the_order_depends_on_seed_and_epoch_alone(data):
    def order(seed, epoch):
        return ids(train_loader(data, CONFIG, batch_size=4, seed=seed).epoch(epoch))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_the_augmentation_changes_from_epoch_to_epoch(data):
    one = replace(data, images=data.images[:1])
    loader = train_loader(one, CONFIG, batch_size=1, seed=0)
    shapes = {next(loader.epoch(epoch)).targets[0].size for epoch in range(20)}
    assert len(shapes) > 5


def test_an_epoch_can_be_entered_anywhere(data):
    loader = train_loader(data, CONFIG, batch_size=4, seed=3)
    whole = list(loader.epoch(7))
    for start in (0, 1, 5, 6):
        assert all_same(list(loader.epoch(7, start)), whole[start:])


def test_loader_processes_give_the_same_batches(data):
    expected = [list(train_loader(data, CONFIG, batch_size=4, seed=3).epoch(epoch)) for epoch in range(2)]
    loader = train_loader(data, replace(CONFIG, num_workers=2), batch_size=4, seed=3)
    for epoch in range(2):
        assert all_same(list(loader.epoch(epoch)), expected[epoch])
    left = loader.epoch(0)
    next(left)
    assert all_same(list(loader.epoch(1, 4)), expected[1][4:])
    with pytest.raises(RuntimeError, match="a newer pass"):
        next(left)


def test_the_cache_gives_the_same_batches(data, monkeypatch):
    expected = list(train_loader(data, CONFIG, batch_size=4, seed=3).epoch(0))
    loader = train_loader(data, replace(CONFIG, cache="ram"), batch_size=4, seed=3)
    monkeypatch.setattr("opendetr.data.loader.read_record", None)
    assert all_same(list(loader.epoch(0)), expected)


def test_a_cache_that_does_not_fit_is_refused(data):
    huge = replace(data, images=(replace(data.images[0], height=10**6, width=10**6),))
    with pytest.raises(DataError, match=r"cache 'ram': 1 images need 279.* GiB") as error:
        train_loader(huge, replace(CONFIG, cache="ram"), batch_size=1, seed=0)
    one_line(error.value)


def test_torch_and_numpy_global_generators_are_left_alone(data):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(train_loader(data, CONFIG, batch_size=4, seed=0).epoch(0))
    list(eval_loader(data, CONFIG, batch_size=4))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def fingerprint(batches):
    """A hash of everything about the batches but their pixels."""
    digest = hashlib.sha256()
    for batch in batches:
        for target in batch.targets:
            boxes = [[round(number, 5) for number in box] for box in target.boxes.tolist()]
            digest.update(repr((target.image_id, target.size, target.labels.tolist(), boxes)).encode())
        digest.update(repr(tuple(batch.images.pixels.shape)).encode())
    return digest.hexdigest()[:16]


def test_the_batches_of_a_seed_stay_the_same(data):
    """A run that was begun with an earlier version continues with the same images."""
    loader = train_loader(data, CONFIG, batch_size=4, seed=3)
    assert [fingerprint(loader.epoch(epoch)) for epoch in (0, 1)] == ["fe10e2205ee4e28f", "cf988b9d43ea5905"]
    assert fingerprint(eval_loader(data, CONFIG, batch_size=4)) == "3aa66481a61dd3cb"


def test_batches_are_padded_and_normalised_as_from_images(data):
    config = replace(CONFIG, augmentation=AugmentationConfig(flip=False, multi_scale=False, crop=False))
    batch = next(train_loader(data, config, batch_size=26, seed=0).epoch(0))
    transform = evaluation_transform(config)
    images = [transform.pixels(read_image(name)) for name in batch.names]
    expected = ImageBatch.from_images(images)
    assert torch.equal(batch.images.sizes, expected.sizes)
    assert torch.equal(batch.images.padding, expected.padding)
    levels = (batch.images.pixels - expected.pixels).abs() * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255
    assert levels.max() <= 1.001
    batch = next(iter(eval_loader(data, config, batch_size=26)))
    images = [transform.pixels(read_image(name)) for name in batch.names]
    assert torch.equal(batch.images.pixels, ImageBatch.from_images(images).pixels)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_every_batch(data, count):
    """Put together, the parts are the batch, padded the same."""

    def batches(share):
        return list(train_loader(data, CONFIG, batch_size=7, seed=0, share=share).epoch(0))

    parts = [batches((number, count)) for number in range(count)]
    for whole, *shared in zip(batches((0, 1)), *parts, strict=True):
        assert torch.equal(torch.cat([part.images.pixels for part in shared]), whole.images.pixels)
        assert sum((part.names for part in shared), ()) == whole.names
        assert {len(part) for part in shared} <= {7 // count, 7 // count + 1}


@pytest.mark.parametrize("count", [2, 3, 40])
def test_processes_share_the_batches_of_evaluation(data, count):
    """Each has whole batches, as even in number as can be, and together they have every image once."""
    parts = [list(eval_loader(data, CONFIG, batch_size=4, share=(number, count))) for number in range(count)]
    sizes = list(map(len, parts))
    assert max(sizes) - min(sizes) <= 1
    whole = list(eval_loader(data, CONFIG, batch_size=4))
    assert sorted(batch.names for part in parts for batch in part) == sorted(batch.names for batch in whole)


def test_more_processes_than_images_in_a_batch_are_refused(data):
    with pytest.raises(DataError, match="a batch of 2 images is too small for 3 processes") as error:
        train_loader(data, CONFIG, batch_size=2, seed=0, share=(0, 3))
    one_line(error.value)


def pixels_of(batch):
    return len(batch) * math.prod(batch.images.pixels.shape[-2:])


BOUND = 12_000


@pytest.fixture
def many(folder):
    """156 images: enough that batches differ in shape and number from epoch to epoch."""
    data = records(folder)
    return replace(data, images=tuple(replace(image, id=index) for index, image in enumerate(data.images * 6)))


def test_bounded_batches_stay_below_the_bound(many):
    loader = train_loader(many, replace(CONFIG, batch_pixels=BOUND), batch_size=8, seed=0)
    first = None
    for epoch in range(3):
        batches = list(loader.epoch(epoch))
        sizes = [pixels_of(batch) for batch in batches]
        first = first or sizes[0]
        assert len(batches) == len(loader), "the number of steps is known beforehand"
        assert max(sizes) == sizes[0] <= first <= BOUND, (
            "the largest batch comes first, the largest of all first of all"
        )
        assert max(map(len, batches)) <= 8
        counts = Counter(image_id for batch in ids(batches) for image_id in batch)
        assert len(counts) > 0.9 * len(many), "few images are left out"
        assert sum(counts.values()) < 1.05 * len(many), "few images come twice"
        assert padding_share(batches) < 0.25
    assert first > 0.9 * BOUND
    alike = [frozenset(batch) for epoch in range(2) for batch in ids(loader.epoch(epoch))]
    assert len(set(alike)) > 0.9 * len(alike)


def test_no_bounded_batch_is_larger_than_the_very_first(many):
    """Whichever is short: room, or the images that a batch may have."""
    for batch_size in (2, 8):
        for seed in range(4):
            loader = train_loader(many, replace(CONFIG, batch_pixels=BOUND), batch_size=batch_size, seed=seed)
            sizes = [[len(plan.indices) * math.prod(plan.shape) for plan in loader._plans(epoch)] for epoch in range(5)]
            assert max(map(max, sizes)) == sizes[0][0]


def test_bounded_batches_can_be_entered_anywhere(many):
    config = replace(CONFIG, batch_pixels=BOUND)
    whole = list(train_loader(many, config, batch_size=8, seed=1).epoch(2))
    for start in (1, len(whole) - 2):
        assert all_same(list(train_loader(many, config, batch_size=8, seed=1).epoch(2, start)), whole[start:])


def test_bounded_batches_have_an_image_for_every_process(many):
    config = replace(CONFIG, batch_pixels=BOUND)
    parts = [list(train_loader(many, config, batch_size=8, seed=0, share=(n, 3)).epoch(0)) for n in range(3)]
    for shared in zip(*parts, strict=True):
        assert len({part.images.pixels.shape[-2:] for part in shared}) == 1
        assert sum(map(pixels_of, shared)) <= BOUND
    for count in range(3, 40):
        few = replace(many, images=many.images[:count])
        loader = train_loader(few, config, batch_size=8, seed=0, share=(0, 3))
        assert min(len(plan.indices) for plan in loader._plans(0)) >= 3


def test_a_bound_below_one_image_is_refused(data):
    for share, least in (((0, 1), "2,680"), ((0, 2), "5,360")):
        with pytest.raises(SettingError, match=f"can have 40x67 pixels; give at least {least}") as error:
            train_loader(data, replace(CONFIG, batch_pixels=2_679), batch_size=4, seed=0, share=share)
        one_line(error.value)
    train_loader(data, replace(CONFIG, batch_pixels=2_680), batch_size=4, seed=0)


def padding_share(batches):
    padded = sum(0 if batch.images.padding is None else int(batch.images.padding.sum()) for batch in batches)
    return padded / sum(batch.images.pixels[:, 0].numel() for batch in batches)


def test_batches_are_of_like_shape(folder):
    data = records(folder)
    data = replace(data, images=tuple(replace(image, id=index) for index, image in enumerate(data.images * 12)))
    plain = replace(CONFIG, augmentation=AugmentationConfig(multi_scale=False, crop=False))
    assert padding_share(list(train_loader(data, plain, batch_size=4, seed=0).epoch(0))) < 0.02
    assert padding_share(list(train_loader(data, CONFIG, batch_size=4, seed=0).epoch(0))) < 0.12


def test_batches_of_like_shape_still_change(folder):
    data = records(folder)
    loader = TrainLoader(data, evaluation_transform(CONFIG), batch_size=2, seed=0)
    pairs = [frozenset(batch) for epoch in range(4) for batch in ids(loader.epoch(epoch))]
    assert len(set(pairs)) > 0.8 * len(pairs)


def test_data_smaller_than_a_batch_is_one_batch(data):
    few = replace(data, images=data.images[:3])
    loader = train_loader(few, CONFIG, batch_size=8, seed=0)
    assert len(loader) == 1
    assert sorted(ids(loader.epoch(0))[0]) == [100, 101, 102]


def test_evaluation_sees_every_image_once(data):
    for num_workers in (0, 2):
        loader = eval_loader(data, replace(CONFIG, num_workers=num_workers), batch_size=4)
        batches = list(loader)
        assert len(batches) == len(loader) == 8
        assert all(batch.images.padding is None for batch in batches)
        assert sorted(sum(ids(batches), ())) == list(range(100, 126))
        assert all_same(batches, list(loader))


@pytest.fixture
def damaged(tmp_path):
    for index in range(26):
        write_image(tmp_path / f"{index}.png", *SIZES[index % 3], seed=index)
    for index in (5, 6):
        path = tmp_path / f"{index}.png"
        path.write_bytes(path.read_bytes()[:200])
    return records(tmp_path)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_replaced_in_training(damaged, caplog, num_workers):
    loader = train_loader(damaged, replace(CONFIG, num_workers=num_workers), batch_size=13, seed=0)
    with caplog.at_level(logging.WARNING):
        first = list(loader.epoch(0))
        list(loader.epoch(1))
    assert sorted(sum(ids(first), ())) == sorted([*range(100, 105), 107, 107, 107, *range(108, 126)])
    assert sorted(loader.unreadable) == [105, 106]
    assert len(caplog.records) == 2, "each is named once"
    assert str(damaged.images[5].path) in loader.unreadable[105]
    assert all_same(first, list(train_loader(damaged, CONFIG, batch_size=13, seed=0).epoch(0)))


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_an_unreadable_image_is_left_out_of_evaluation(damaged, cache):
    loader = eval_loader(damaged, replace(CONFIG, cache=cache), batch_size=1)
    assert sorted(sum(ids(loader), ())) == [100, 101, 102, 103, 104, *range(107, 126)]
    assert sorted(loader.unreadable) == [105, 106]


def refusal(load):
    """The error's type and its one line. Unlike `pytest.raises` it keeps no loader alive through the traceback."""
    try:
        load()
    except DataError as error:
        return type(error), one_line(error)
    return None, ""


@pytest.mark.parametrize("num_workers", [0, 1])
def test_strict_loading_refuses_an_unreadable_image(damaged, num_workers):
    config = replace(CONFIG, num_workers=num_workers, strict=True)
    for load in (
        lambda: list(train_loader(damaged, config, batch_size=26, seed=0).epoch(0)),
        lambda: list(eval_loader(damaged, config, batch_size=4)),
    ):
        kind, message = refusal(load)
        assert kind is ImageError
        assert re.search(r"[56]\.png: the image cannot be read", message)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_that_cannot_be_used_are_told_in_one_line(tmp_path, data, num_workers):
    config = replace(CONFIG, num_workers=num_workers)
    missing = replace(data, images=tuple(replace(i, path=tmp_path / i.path.name) for i in data.images))
    kind, message = refusal(lambda: list(train_loader(missing, config, batch_size=4, seed=0).epoch(0)))
    assert kind is DataError
    assert re.search("none of 26 images can be read; the first: .*no such file", message)
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    kind, message = refusal(lambda: list(eval_loader(missing, config, batch_size=4)))
    assert kind is DataError
    assert "the image is 9x9, its annotation says 64x48" in message


def test_no_images_and_no_batch_size_are_refused(data):
    with pytest.raises(DataError, match="contains no images"):
        train_loader(replace(data, images=()), CONFIG, batch_size=4, seed=0)
    with pytest.raises(ValueError, match="the batch size is 0"):
        EvalLoader(data, evaluation_transform(CONFIG), batch_size=0)


def test_the_generators_of_images_differ():
    draws = {sample_rng(*key).integers(2**60) for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert len(draws) == 4


TRAINING = """
import sys, time
from dataclasses import replace
sys.path.insert(0, {tests!r})
from test_loader import CONFIG, records, train_loader
from pathlib import Path

def main():
    loader = train_loader(records(Path({folder!r})), replace(CONFIG, num_workers=2), batch_size=2, seed=0)
    batches = loader.epoch(0)
    next(batches), next(batches)  # one from each, so that both are at work
    try:
        print(*(worker.pid for worker in loader._loader._iterator._workers), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print(len(list(batches)), flush=True)

if __name__ == "__main__":
    main()
"""


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


class Training:
    """A process of its own group that has begun to train with two loader processes."""

    def __init__(self, folder):
        code = TRAINING.format(tests=str(Path(__file__).parent), folder=str(folder))
        source = str(Path(loader_module.__file__).parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        )

    def workers(self):
        return [int(word) for word in self.process.stdout.readline().split()]


def wait_for_end(workers):
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(alive, workers))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="looks at processes through /proc")
def test_loader_processes_end_with_the_training(folder):
    trainings = {number: Training(folder) for number in (signal.SIGTERM, signal.SIGKILL)}
    workers = [worker for training in trainings.values() for worker in training.workers()]
    assert len(workers) == 2 * min(2, distributed.usable_cpus())
    assert all(map(alive, workers))
    for number, training in trainings.items():
        training.process.send_signal(number)
    assert wait_for_end(workers)
    for training in trainings.values():
        training.process.communicate(timeout=30)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="looks at processes through /proc")
def test_ctrl_c_leaves_the_last_word_to_the_main_process(folder):
    """It reaches the whole group; the workers go on until the main process has done with them."""
    training = Training(folder)
    workers = training.workers()
    os.killpg(training.process.pid, signal.SIGINT)
    rest, errors = training.process.communicate(timeout=30)
    assert (rest.split(), errors, training.process.returncode) == (["11"], "", 0)
    assert wait_for_end(workers)


def kill_a_loader_process(loader, batches):
    """Checks that the next batch is refused in a line that names it, and that nothing else is disturbed."""
    before = signal.getsignal(signal.SIGCHLD)
    killed = loader._loader._iterator._workers[0]
    killed.kill()
    killed.join()
    assert signal.getsignal(signal.SIGCHLD) is before
    kind, message = refusal(lambda: list(batches))
    assert kind is DataError
    assert re.search(rf"a loader process died \(.*{killed.pid}.*\), perhaps because memory ran out", message)


def test_nothing_hinders_processes_that_are_spawned(data):
    """What a spawned process is sent is what it works with: cached images, and those that others are mixed with."""
    config = replace(CONFIG, augment="strong")
    expected = list(train_loader(data, config, batch_size=2, seed=3).epoch(0))
    loader = train_loader(data, replace(config, cache="ram", num_workers=1), batch_size=2, seed=3)
    loader._loader.multiprocessing_context = "spawn"
    assert all_same(list(loader.epoch(0)), expected)
    batches = loader.epoch(1)
    next(batches)
    kill_a_loader_process(loader, batches)


def test_a_loader_process_that_dies_is_told_in_one_line(data, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    loader = train_loader(data, replace(CONFIG, num_workers=2), batch_size=1, seed=0)
    before = signal.getsignal(signal.SIGCHLD)
    batches = loader.epoch(0)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) is before, "no error while the main process is doing something else"
    kill_a_loader_process(loader, batches)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "no such file")]
)
def test_a_connection_that_breaks_is_a_loader_process_that_died(data, monkeypatch, error):
    """The connection to a process that was killed breaks some time before the process counts as dead."""
    loader = train_loader(data, replace(CONFIG, num_workers=1), batch_size=2, seed=0)
    batches = loader.epoch(0)
    next(batches)

    def broken(timeout):
        raise error

    monkeypatch.setattr(loader._loader._iterator._data_queue, "get", broken)
    kind, message = refusal(lambda: list(batches))
    assert kind is DataError
    assert message.startswith(f"a loader process died ({str(error) or 'EOFError'}), perhaps") and "\n" not in message


@pytest.mark.parametrize("error", [RuntimeError("mine"), ConnectionResetError("mine"), EOFError("mine")])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_loader_process_is_not_its_death(data, monkeypatch, num_workers, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(loader_module, "sample_rng", fail)
    loader = train_loader(data, replace(CONFIG, num_workers=num_workers), batch_size=2, seed=0)
    monkeypatch.setattr(loader, "_shapes", lambda epoch, indices: dict.fromkeys(indices, (40, 40)))
    with pytest.raises(type(error), match="mine") as raised:
        list(loader.epoch(0))
    assert raised.type is type(error)


def test_a_loader_process_that_dies_amid_a_large_batch_does_not_stop_the_training_for_ever(data):
    """What goes through the pipe is small: half of a large message would be waited for."""
    many = [replace(record, objects=record.objects[:1] * 200) for record in data.images]
    loader = train_loader(replace(data, images=tuple(many)), replace(CONFIG, num_workers=1), batch_size=13, seed=0)
    batches = loader.epoch(0)
    next(batches)
    assert loader._loader._iterator._data_queue._reader.poll(20), "the next batch is on the way"

    alarms = []
    before = signal.signal(signal.SIGALRM, lambda signum, frame: [alarms.append(signum), 1 / 0])
    signal.alarm(20)
    try:
        kill_a_loader_process(loader, batches)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not alarms, "the loader waited for a process that is dead"


def test_nothing_is_kept_from_epoch_to_epoch(data):
    loader = train_loader(data, replace(CONFIG, augment="strong"), batch_size=4, seed=0)

    def num_kept():
        gc.collect()
        return len(gc.get_objects())

    for epoch in range(2):
        list(loader.epoch(epoch))
    before = num_kept()
    for epoch in range(2, 6):
        list(loader.epoch(epoch))
    assert num_kept() - before < 20, "24 batches were loaded"


@pytest.mark.parametrize("augment", ["colour", "mosaic", "copy-paste", "strong"])
def test_every_recipe_gives_the_same_batches_again(data, augment):
    """With loader processes, from the cache, and when images that others are mixed with cannot be read."""
    config = replace(CONFIG, augment=augment)
    expected = list(train_loader(data, config, batch_size=4, seed=3).epoch(1))
    assert not all_same(expected, list(train_loader(data, CONFIG, batch_size=4, seed=3).epoch(1)))
    cached = train_loader(data, replace(config, cache="ram"), batch_size=4, seed=3)
    for _ in range(2):
        assert all_same(list(cached.epoch(1)), expected), "mixing leaves the images in the cache as they are"
    parallel = train_loader(data, replace(config, num_workers=2), batch_size=4, seed=3)
    assert all_same(list(parallel.epoch(1)), expected)


@pytest.mark.parametrize("augment", ["mosaic", "copy-paste"])
def test_an_unreadable_image_is_replaced_where_images_are_mixed(damaged, augment):
    loader = train_loader(damaged, replace(CONFIG, augment=augment), batch_size=13, seed=0)
    assert len(list(loader.epoch(0))) == 2
    assert sorted(loader.unreadable) == [105, 106]


@pytest.mark.parametrize(("cpus", "limit", "expected"), [(1, "max 100000", 1), (3, "50000 100000", 1), (3, "", 2)])
def test_there_are_no_more_processes_than_usable_cpus(data, tmp_path, monkeypatch, recwarn, cpus, limit, expected):
    """Neither the affinity nor the limit of a container is exceeded, and torch does not warn."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cpus)), raising=False)
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(distributed, "_CPU_LIMIT", tmp_path / "cpu.max")
    config = replace(CONFIG, num_workers=2)
    for loader in (train_loader(data, config, batch_size=4, seed=0), eval_loader(data, config, batch_size=4)):
        assert loader._loader.num_workers == expected
    assert not [warning for warning in recwarn if "worker" in str(warning.message)]
