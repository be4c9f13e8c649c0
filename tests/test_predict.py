"""The detector in use: any batch gives the same, images are read meanwhile, one bad image stops nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from folders import make_image, one_line, write_image
from opendetr.categories import Categories
from opendetr.config import ConfigError
from opendetr.data.images import ImageError
from opendetr.data.records import DataError
from opendetr.inference import predictor as predictor_module
from opendetr.inference.predictor import Predictor
from opendetr.inference.writers import images as written_images
from opendetr.inference.writers.folder import OutputConfig, results_folder
from opendetr.presets import build_model, miniature
from opendetr.results import Detections
from opendetr.weights import WeightsError

CLASSES = ("cat", "dog", "ant", "bee")
SIZES = ((48, 64), (64, 48), (30, 90), (48, 64), (64, 64), (48, 64), (100, 40))


@pytest.fixture(scope="module")
def detector() -> Predictor:
    torch.manual_seed(0)
    preset = miniature("detr-tiny")
    return Predictor(build_model(preset, len(CLASSES)), preset, Categories.from_names(CLASSES), device="cpu")


@pytest.fixture
def images() -> list[np.ndarray]:
    return [make_image(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


def assert_equal(a: Detections, b: Detections) -> None:
    assert len(a) == len(b) > 0
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=1e-3)
    assert a.labels.tolist() == b.labels.tolist()
    assert a.size == b.size


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
def test_neighbours_in_a_batch_change_nothing(detector, images, batch_size):
    alone = [detector.predict(each, min_score=0) for each in images]
    together = list(detector.predict(images, min_score=0, batch_size=batch_size))
    backwards = list(detector.predict(images[::-1], min_score=0, batch_size=batch_size))[::-1]
    for one, several, reversed_ in zip(alone, together, backwards, strict=True):
        assert_equal(one, several)
        assert_equal(one, reversed_)


def test_every_source_gives_the_same(detector, tmp_path):
    for seed in range(3):
        write_image(tmp_path / f"{seed}.png", seed=seed)
    alone = detector.predict(tmp_path / "0.png", min_score=0)
    assert alone.source == str(tmp_path / "0.png")
    for source in (str(tmp_path), tmp_path, str(tmp_path / "*.png"), [tmp_path / "0.png"], iter([make_image()])):
        found = next(detector.predict(source, min_score=0))
        assert_equal(found, alone)
        np.testing.assert_array_equal(found.image, make_image())
    mixed = [tmp_path, str(tmp_path / "[12].png"), make_image()]
    names = [found.source and Path(found.source).name for found in detector.predict(mixed)]
    assert names == ["0.png", "1.png", "2.png", "1.png", "2.png", None]


def test_frames_of_a_video_are_numbered(detector, tmp_path):
    pytest.importorskip("av")
    from clips import write_video

    path = write_video(tmp_path / "clip.mp4", num_frames=11)
    found = list(detector.predict(path, min_score=0, batch_size=4))
    assert [each.frame for each in found] == list(range(11))
    assert {each.source for each in found} == {str(path)}
    assert found[7].time == pytest.approx(0.7)
    assert found[7][:1].frame == 7


def test_one_bad_image_of_many_stops_nothing(detector, tmp_path):
    for seed in range(20):
        write_image(tmp_path / f"{seed:02}.png", seed=seed)
    (tmp_path / "13.png").write_bytes(b"nonsense")
    lines: list[str] = []
    found = list(detector.predict(tmp_path, on_unreadable=lines.append))
    assert len(found) == 19
    assert len(lines) == 1
    assert "13.png" in lines[0]
    with pytest.raises(ImageError, match=r"13\.png"):
        list(detector.predict(tmp_path))
    with pytest.raises(ImageError) as caught:
        detector.predict(tmp_path / "13.png")
    assert "13.png" in one_line(caught.value)


def test_a_folder_without_images_is_an_error_at_once(detector, tmp_path):
    with pytest.raises(DataError, match="no image in this folder"):
        detector.predict(tmp_path)


def test_scores_by_class(detector):
    everything = detector.predict(make_image(), min_score=0)
    label = int(everything.labels.mode().values)
    name, least = CLASSES[label], float(everything.scores[everything.labels == label].median())
    found = detector.predict(make_image(), min_score=1.0, class_min_scores={name: least})
    expected = (everything.labels == label) & (everything.scores >= least)
    assert 0 < len(found) == int(expected.sum()) < len(everything)
    assert set(found.names) == {name}
    others = detector.predict(make_image(), min_score=0, class_min_scores={name: 1.0})
    assert len(others) == int((everything.labels != label).sum())
    with pytest.raises(ConfigError, match="did you mean 'cat'"):
        detector.predict(make_image(), class_min_scores={"cats": 0.1})
    same = detector.predict(make_image(), min_score=np.float64(1), class_min_scores={name: torch.tensor(least)})
    assert_equal(same, found)


WRONG_OPTIONS = {
    "a percentage": ({"min_score": 50}, "min_score: expected"),
    "a negative score": ({"min_score": -0.1}, "min_score: expected"),
    "not a number": ({"min_score": float("nan")}, "min_score=nan"),
    "text": ({"min_score": "0.5"}, "min_score='0.5'"),
    "a truth value": ({"min_score": True}, "min_score=True"),
    "scores": ({"min_score": torch.zeros(4)}, "min_score=tensor"),
    "a score of a class": ({"class_min_scores": {"cat": 30}}, "class_min_scores['cat']: expected"),
    "a label": ({"class_min_scores": {1: 0.5}}, "1 is not the name of a class; give names, such as 'dog'"),
    "an unknown label": ({"class_min_scores": {9: 0.5}}, "9 is not the name of a class; give names, such as 'cat'"),
    "a list of scores": ({"class_min_scores": [0.5]}, "class_min_scores is a list; give a dict such as {'cat': 0.3}"),
    "an empty batch": ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    "a fraction": ({"batch_size": 2.0}, "batch_size=2.0"),
    "True images": ({"batch_size": True}, "batch_size=True"),
    "an unknown rule": ({"merge": "publised", "panoptic": True}, "merge='publised': give 'default' or 'published'"),
}


@pytest.mark.parametrize("kind", WRONG_OPTIONS)
def test_wrong_options_are_one_line_at_once(detector, kind):
    options, words = WRONG_OPTIONS[kind]
    with pytest.raises(ConfigError) as caught:
        detector.predict([make_image()], **options)
    assert words in one_line(caught.value)


def test_short_forms(detector):
    assert_equal(detector(make_image(), min_score=0), detector.predict(make_image(), min_score=0))
    assert detector.names == CLASSES
    assert repr(detector) == "Predictor(detr-tiny, 4 classes, cpu)"


def test_the_next_images_are_read_while_the_model_is_at_work(detector, tmp_path, monkeypatch):
    for seed in range(4):
        write_image(tmp_path / f"{seed}.png", seed=seed)
    reading = threading.Event()
    read, forward = predictor_module.read_source, detector.model.forward

    def watched(source):
        if Path(source).name == "3.png":
            reading.set()
        return read(source)

    def waiting(images):
        assert reading.wait(10), "the last image is not read before the model is done with the first ones"
        return forward(images)

    monkeypatch.setattr(predictor_module, "read_source", watched)
    monkeypatch.setattr(detector.model, "forward", waiting)
    assert len(list(detector.predict(tmp_path, batch_size=2))) == 4


def test_images_are_drawn_while_the_model_is_at_work(detector, tmp_path, monkeypatch):
    started = 0
    second = threading.Event()
    draw, forward = written_images.draw, detector.model.forward
    late: list[Path] = []

    def waiting(path, found):
        if not second.wait(10):
            late.append(path)
        draw(path, found)

    def counted(images):
        nonlocal started
        started += 1
        if started == 2:
            second.set()
        return forward(images)

    monkeypatch.setattr(written_images, "draw", waiting)
    monkeypatch.setattr(detector.model, "forward", counted)
    with results_folder(tmp_path, detector.categories, OutputConfig()) as write:
        for detections in detector.predict([make_image()] * 4, batch_size=2):
            write(detections)
    assert late == []
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_no_more_than_two_batches_are_held(detector):
    taken = 0

    def sources() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield make_image()

    found = detector.predict(sources(), batch_size=4)
    for number, _ in enumerate(found):
        assert taken <= number + 1 + 2 * 4
    assert taken == 100


def test_threads_end_with_the_iterator(detector):
    found = detector.predict([make_image()] * 50, batch_size=2)
    next(found)
    found.close()
    assert not any(thread.name.startswith("read") for thread in threading.enumerate())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["box_head.layers.0.weight", "backbone.body.bn1.running_mean"])
def test_weights_that_are_not_finite_are_one_line(value, part):
    preset = miniature("detr-tiny")
    model = build_model(preset, len(CLASSES))
    model.state_dict()[part].view(-1)[0] = value
    with pytest.raises(WeightsError, match=f"{part}: holds values that are not finite") as error:
        Predictor(model, preset, Categories.from_names(CLASSES), device="cpu")
    one_line(error.value)
