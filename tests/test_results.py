"""Results as a user holds them: how they select, print, draw, and convert. What could be misread is an error."""

from __future__ import annotations

import builtins
import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageShow

from folders import make_image, one_line
from opendetr.categories import Categories
from opendetr.results import Detections, Panoptic, Segment

CATEGORIES = Categories(("cat", "dog", "sky"), (3, 7, 9), isthing=(True, True, False))
SCORES = torch.tensor([0.9, 0.6, 0.8, 0.2])
KEPT = [True, False, True, False]


def detections(count: int = 4, **fields) -> Detections:
    x = torch.arange(count).float() * 10
    boxes = torch.stack((x, x + 1, x + 20, x + 30), 1)
    scores = SCORES if count == 4 else torch.linspace(0.9, 0.1, count)
    fields = {"image": make_image(), "source": "photos/x.jpg"} | fields
    return Detections(boxes, scores, torch.arange(count) % 2, CATEGORIES, (48, 64), **fields)


def panoptic(**fields) -> Panoptic:
    segments = torch.zeros(48, 64, dtype=torch.int32)
    segments[:30], segments[30:40, :10] = 1, 2
    info = (Segment(1, 2, isthing=False, area=1920, score=0.7), Segment(2, 0, isthing=True, area=100, score=0.9))
    return Panoptic(segments, info, torch.ones(48, 64), CATEGORIES, (48, 64), image=make_image(), **fields)


def test_boxes_are_clipped_to_the_image():
    boxes = torch.tensor([[-3.0, -1, 70, 50], [1, 2, 30, 40], [60, 10, 64.5, 48.5], [-9, 50, -4, 60]])
    whole = Detections(boxes, SCORES, torch.arange(4) % 2, CATEGORIES, (48, 64), image=make_image())
    clipped = whole.clip()
    assert clipped.boxes.tolist() == [[0, 0, 64, 48], [1, 2, 30, 40], [60, 10, 64, 48], [0, 48, 0, 48]]
    assert torch.equal(whole.boxes, boxes) and clipped.image is whole.image
    assert torch.equal(clipped.scores, SCORES) and len(detections(0).clip()) == 0


# ------------------------------------------------------------------------------------------------------------ selection

SELECTIONS = {
    "a tensor mask": (SCORES > 0.7, [0, 2]),
    "a NumPy mask": (SCORES.numpy() > 0.7, [0, 2]),
    "a list of truth values": (KEPT, [0, 2]),
    "a list of NumPy truth values": (list(np.array(KEPT)), [0, 2]),
    "a list of the tensor's truth values": (list(SCORES > 0.7), [0, 2]),
    "a mask without True": ([False] * 4, []),
    "an index": (1, [1]),
    "the last": (-1, [3]),
    "a NumPy index": (np.int64(2), [2]),
    "a tensor of no dimension": (torch.tensor(2), [2]),
    "indices": ([2, 0, 2], [2, 0, 2]),
    "indices from the end": ([-1, -4], [3, 0]),
    "NumPy indices": (np.array([3, 1], dtype=np.int16), [3, 1]),
    "tensor indices": (torch.tensor([3, -3]), [3, 1]),
    "a range": (range(1, 4), [1, 2, 3]),
    "nothing": ([], []),
    "a slice": (slice(1, 3), [1, 2]),
    "backwards": (slice(None, None, -1), [3, 2, 1, 0]),
    "the order of a sort": (SCORES.argsort(), [3, 1, 2, 0]),
}


@pytest.mark.parametrize("kind", SELECTIONS)
def test_what_selects(kind):
    chosen, expected = SELECTIONS[kind]
    masks = torch.zeros(4, 48, 64, dtype=torch.bool)
    masks[range(4), range(4)] = True
    found = detections(masks=masks, track_ids=torch.arange(4) + 10)[chosen]
    assert found.scores.tolist() == SCORES[expected].tolist()
    assert found.track_ids.tolist() == [index + 10 for index in expected]
    assert torch.equal(found.masks, masks[expected])
    assert found.source == "photos/x.jpg"


REFUSED = {
    "a short mask": ([True, False], "bool of shape (2,)"),
    "a truth value": (True, "bool does not select"),
    "a NumPy truth value": (np.True_, "bool does not select"),
    "truth values among numbers": ([True, 2], "list of shape (2,)"),
    "two indices": ((0, 1), "detections[0, 1]: detections have one dimension"),
    "two truth values": ((True, False), "detections[True, False]"),
    "a float": (1.0, "float does not select"),
    "floats": ([0.0, 1.0], "float64 of shape (2,)"),
    "scores": (SCORES, "float32 of shape (4,)"),
    "bytes that may be a mask": (torch.tensor([0, 1, 1, 0], dtype=torch.uint8), "uint8 of shape (4,) (a mask or"),
    "two dimensions": (np.zeros((4, 1), dtype=int), "int64 of shape (4, 1)"),
    "lists of different lengths": ([[0], [1, 2]], "list does not select"),
    "a name": ("cat", "detections are selected by numbers; write d[[name == 'cat' for name in d.names]]"),
    "names": (["cat"], "of shape (1,)"),
    "a set": ({1, 2}, "set does not select"),
    "a dict": ({0: True}, "dict does not select"),
    "None": (None, "NoneType does not select"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_could_be_misread_is_one_line(kind):
    chosen, words = REFUSED[kind]
    with pytest.raises(ValueError) as caught:
        detections()[chosen]
    assert words in one_line(caught.value)


@pytest.mark.parametrize("chosen", [4, -5, [0, 4], torch.tensor([-5]), np.int64(4)])
def test_an_index_that_is_not_there(chosen):
    with pytest.raises(IndexError, match=r"there are 4 detections, numbered from 0"):
        detections()[chosen]


def test_each_of_them():
    assert [len(each) for each in detections()] == [1] * 4
    assert len(detections(0)[:0]) == len(list(detections(0))) == 0


# ----------------------------------------------------------------------------------------------------------------- text


def test_the_text_has_a_line_for_each_of_ten():
    head, *lines = repr(detections()).splitlines()
    assert head == "Detections: 4 objects, image of 64 x 48, photos/x.jpg"
    assert [line.split() for line in lines][1] == ["1", "dog", "0.60", "10.0", "11.0", "30.0", "40.0"]
    assert len(lines) == 4
    many = repr(detections(23)).splitlines()
    assert len(many) == 12
    assert many[-1].strip() == "... and 13 more"
    assert repr(detections(1)[:0]) == "Detections: 0 objects, image of 64 x 48, photos/x.jpg"
    assert repr(detections(1, source=None)).startswith("Detections: 1 object, image of 64 x 48\n")
    tracked = detections(2, track_ids=torch.tensor([5, 70]), masks=torch.zeros(2, 48, 64, dtype=torch.bool), frame=3)
    assert repr(tracked).startswith("Detections with masks: 2 objects, image of 64 x 48, photos/x.jpg, frame 3\n")
    assert repr(tracked).endswith("track 70")


def test_the_text_of_a_map_has_the_largest_first():
    assert repr(panoptic()).splitlines() == [
        "Panoptic: 2 segments, image of 64 x 48",
        "  1  sky  0.70  62.5% of the image  stuff",
        "  2  cat  0.90  3.3% of the image   thing",
    ]


# --------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("result", [detections(), panoptic()], ids=["detections", "panoptic"])
def test_a_drawing_is_saved_in_the_size_of_the_image(result, tmp_path):
    for name in ("x.png", "new/folder/x.jpg", "X.WEBP"):
        path = result.save(tmp_path / name)
        with Image.open(path) as saved:
            assert saved.size == (64, 48)
    with Image.open(tmp_path / "x.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(result.plot()))
    for name in ("x", "x.doc", "x.mp4"):
        with pytest.raises(ValueError, match=r"give a name such as image\.png"):
            result.save(tmp_path / name)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".new", ".doc")]


@pytest.mark.parametrize("result", [detections(), panoptic()], ids=["detections", "panoptic"])
def test_a_notebook_gets_a_legible_image(result):
    with Image.open(io.BytesIO(result._repr_png_())) as shown:
        assert shown.size == (512, 384)  # small images are enlarged
    large = detections(0).__class__(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), CATEGORIES, (1000, 4000), np.zeros((1000, 4000, 3), np.uint8)
    )
    with Image.open(io.BytesIO(large._repr_png_())) as shown:
        assert shown.size == (1280, 320)
    assert detections(image=None)._repr_png_() is None


def test_show_opens_a_viewer_or_says_what_to_do(monkeypatch):
    shown: list[Image.Image] = []
    monkeypatch.setattr(ImageShow, "show", lambda image: not shown.append(image))
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"show: no display.*save\(path\)"):
        detections().show()
    monkeypatch.setenv("DISPLAY", ":0")
    detections().show()
    assert [image.size for image in shown] == [(512, 384)]
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=None)
    display.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(ImageShow, "show", None)
    panoptic().show()
    assert len(shown) == 2


def test_what_is_drawn_on(tmp_path):
    """A path, and a PIL image, with its EXIF orientation applied, as `predict` reads them."""
    pixels = make_image(64, 48)  # stored, before the turn
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    found = detections(0, image=None)
    turned = np.rot90(pixels, -1)
    for image in (tmp_path / "turned.png", str(tmp_path / "turned.png"), Image.open(tmp_path / "turned.png"),
                  np.ascontiguousarray(turned), torch.from_numpy(turned.copy()).permute(2, 0, 1)):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(found.plot(image)), turned)
    for image, words in ((turned / 255, "float64"), (None, "pass the image"), (pixels, "48 x 64"), (3, "int is not")):
        with pytest.raises(ValueError) as caught:
            found.plot(image)
        assert words in one_line(caught.value)


# --------------------------------------------------------------------------------------------------------------- pandas


def test_to_pandas():
    pytest.importorskip("pandas")
    frame = detections(track_ids=torch.arange(4)).to_pandas()
    assert list(frame.columns) == ["file_name", "frame", "category_id", "category", "score", "x_min", "y_min", "x_max",
                                   "y_max", "track_id"]  # fmt: skip
    assert frame["category"].tolist() == ["cat", "dog", "cat", "dog"]
    assert frame["category_id"].tolist() == [3, 7, 3, 7]
    assert frame["file_name"].tolist() == ["photos/x.jpg"] * 4
    assert frame[["x_min", "y_min", "x_max", "y_max"]].to_numpy()[1].tolist() == [10, 11, 30, 40]
    assert len(detections(0).to_pandas()) == 0
    frame = panoptic(source="a", frame=2).to_pandas()
    assert frame.loc[0].to_dict() == {"file_name": "a", "frame": 2, "segment_id": 1, "category_id": 9,
                                      "category": "sky", "isthing": False, "score": 0.7, "area": 1920}  # fmt: skip


def test_without_pandas_the_line_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *options):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *options)

    monkeypatch.setattr(builtins, "__import__", missing)
    for result in (detections(), panoptic()):
        with pytest.raises(ImportError) as caught:
            result.to_pandas()
        assert "pip install pandas" in one_line(caught.value)
