"""Panoptic quality equals the numbers of the original, and a count pixel by pixel."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest

from golden import FOLDER
from opendetr.categories import Categories
from opendetr.evaluation import PANOPTIC_METRICS, PanopticEvaluator

GOLDEN = json.loads((FOLDER / "detr" / "panoptic_quality.json").read_text())
ARRAYS = np.load(FOLDER / "detr" / "panoptic_quality.npz")
THINGS_AND_STUFF = Categories(("cat", "dog", "sky", "sea"), (3, 7, 9, 20), isthing=(True, True, False, False))


class Segment(NamedTuple):
    id: int
    label: int
    crowd: bool = False


def golden_categories() -> Categories:
    ids = sorted(map(int, GOLDEN["isthing"]))
    things = tuple(bool(GOLDEN["isthing"][str(id_)]) for id_ in ids)
    return Categories(tuple(f"class {id_}" for id_ in ids), tuple(ids), isthing=things)


def golden_case(name: str) -> PanopticEvaluator:
    """The evaluation of one case of the golden."""
    categories = golden_categories()
    evaluation = PanopticEvaluator(categories)
    for truth, predicted in zip(GOLDEN["gt_annotations"], GOLDEN["cases"][name]["predictions"], strict=True):
        stem = truth["file_name"].removesuffix(".png")
        truth_map = ARRAYS[f"gt_{stem}_ids"][ARRAYS[f"gt_{stem}_index"]]
        info = [
            Segment(row["id"], categories.label_of_id(row["category_id"]), _is_crowd(row, position, name))
            for position, row in enumerate(truth["segments_info"])
        ]
        found = [Segment(row["id"], categories.label_of_id(row["category_id"])) for row in predicted["segments_info"]]
        evaluation.update(truth_map, info, ARRAYS[f"{name}_pred_{stem}"], found)
    return evaluation


def _is_crowd(row: dict[str, Any], position: int, case: str) -> bool:
    return bool(row["iscrowd"]) or (case == "crowd_id0" and position % 4 == 1)


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_every_number_of_the_golden(name):
    evaluation, expected = golden_case(name), GOLDEN["cases"][name]
    metrics = evaluation.compute()
    for kind, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        numbers = [metrics[f"{quality}{suffix}"] for quality in ("PQ", "SQ", "RQ")]
        assert numbers == pytest.approx([expected["result"][kind][key] for key in ("pq", "sq", "rq")], abs=1e-8)
    per_class = evaluation.per_class()
    counted = {f"class {id_}": row for id_, row in expected["per_class_nonzero"].items()}
    found = {name: quality for name, quality in per_class.items() if quality and any(quality)}
    assert len(per_class) == expected["n_per_class_listed"]
    assert found.keys() == counted.keys()
    for class_name, quality in found.items():
        expected_row = [counted[class_name][key] for key in ("pq", "sq", "rq")]
        assert list(quality) == pytest.approx(expected_row, abs=1e-8)
    assert sum(quality is not None for quality in per_class.values()) == expected["result"]["All"]["n"]
    assert metrics["per_class"] == {name: quality and quality.PQ for name, quality in per_class.items()}
    assert metrics.keys() - {"per_class"} == PANOPTIC_METRICS.keys()


# ------------------------------------------------------------------------------------------------- pixel by pixel


def random_map(rng: np.random.Generator, ids: list[int], side: int = 12) -> np.ndarray:
    """Rectangles over one another, ids up to those of a PNG, void between them."""
    segments = np.zeros((side, side), dtype=np.int32)
    for id_ in ids:
        top, left = rng.integers(0, side - 3, 2)
        height, width = rng.integers(2, side, 2)
        segments[top : top + height, left : left + width] = id_
    return segments


def random_image(rng: np.random.Generator) -> tuple[np.ndarray, list[Segment], np.ndarray, list[Segment]]:
    """A true map with crowd regions, several of one class too, and a map that resembles it."""
    ids = rng.choice(2**24 - 1, 6, replace=False) + 1
    truth = random_map(rng, ids.tolist())
    info = [Segment(int(id_), int(rng.integers(4)), bool(rng.random() < 0.35)) for id_ in ids]
    found = np.roll(truth, rng.integers(-1, 2, 2), (0, 1))
    found = np.where(rng.random(found.shape) < 0.1, 0, found)
    listed = [Segment(id_, label if rng.random() < 0.8 else int(rng.integers(4))) for id_, label, _ in info]
    zero = rng.random() < 0.3
    present = set(np.unique(found).tolist())
    listed = [segment for segment in listed if segment.id in present]
    return truth, info, found, [*listed, Segment(0, int(rng.integers(4)))] if zero and 0 in present else listed


def counted(images: list[tuple[np.ndarray, list[Segment], np.ndarray, list[Segment]]]) -> list[list[float] | None]:
    """PQ, SQ and RQ of each class, with sets of pixels."""
    matched, in_vain, missed, iou = Counter(), Counter(), Counter(), Counter()
    for truth, info, found, listed in images:
        pixels = {("t", s.id): set(np.flatnonzero(truth.ravel() == s.id)) for s in info}
        pixels |= {("p", s.id): set(np.flatnonzero(found.ravel() == s.id)) for s in listed}
        void = set(np.flatnonzero(truth.ravel() == 0))
        taken = set()
        for true in info:
            for segment in listed:
                a, b = pixels["t", true.id], pixels["p", segment.id]
                if a & b and not true.crowd and true.label == segment.label:
                    overlap = len(a & b) / len((a | b) - (b & void))
                    if overlap > 0.5:
                        matched[true.label] += 1
                        iou[true.label] += overlap
                        taken |= {("t", true.id), ("p", segment.id)}
        crowds = {true.label: pixels["t", true.id] for true in info if true.crowd}
        for true in info:
            missed[true.label] += not true.crowd and ("t", true.id) not in taken
        for segment in listed:
            own = pixels["p", segment.id]
            ignored = len(own & void) + len(own & crowds.get(segment.label, set()))
            in_vain[segment.label] += ("p", segment.id) not in taken and ignored / len(own) <= 0.5
    rows: list[list[float] | None] = []
    for label in range(4):
        size = matched[label] + (in_vain[label] + missed[label]) / 2
        sq = iou[label] / matched[label] if matched[label] else 0.0
        rows.append([iou[label] / size, sq, matched[label] / size] if size else None)
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_equals_a_count_with_sets_of_pixels(seed):
    rng = np.random.default_rng(seed)
    images = [random_image(rng) for _ in range(30)]
    evaluation = PanopticEvaluator(THINGS_AND_STUFF)
    for image in images:
        evaluation.update(*image)
    per_class = list(evaluation.per_class().values())
    for quality, expected in zip(per_class, counted(images), strict=True):
        assert (quality is None) == (expected is None)
        assert quality is None or list(quality) == pytest.approx(expected, abs=1e-12)
    assert any(quality and 0 < quality.PQ < 1 for quality in per_class)


# --------------------------------------------------------------------------------------------------------- the edges


def square(*ids: int) -> np.ndarray:
    """A column of 4 x 4 pixels for each id."""
    return np.repeat(np.array(ids, dtype=np.int32), 4)[None].repeat(4, axis=0)


def test_nothing_to_find_and_nothing_found():
    evaluation = PanopticEvaluator(THINGS_AND_STUFF)
    assert evaluation.compute()["PQ"] is None
    evaluation.update(square(0), [], square(0), [])
    metrics = evaluation.compute()
    assert metrics["PQ"] is None and set(metrics["per_class"].values()) == {None}
    evaluation.update(square(1), [Segment(1, 0)], square(0), [])
    assert evaluation.compute()["PQ"] == 0
    assert evaluation.compute()["PQ_stuff"] is None


def test_what_lies_on_void_or_crowd_is_no_mistake():
    evaluation = PanopticEvaluator(THINGS_AND_STUFF)
    truth, crowd = square(0, 1), [Segment(1, 0, crowd=True)]
    evaluation.update(truth, crowd, square(5, 6), [Segment(5, 1), Segment(6, 0)])
    assert evaluation.compute()["PQ"] is None
    evaluation.update(truth, crowd, square(5, 6), [Segment(5, 1), Segment(6, 1)])  # a dog on a crowd of cats
    assert evaluation.compute()["per_class"] == {"cat": None, "dog": 0, "sky": None, "sea": None}


def test_an_iou_of_a_half_is_no_match():
    evaluation = PanopticEvaluator(THINGS_AND_STUFF)
    evaluation.update(square(1, 1), [Segment(1, 2)], square(1, 0), [Segment(1, 2)])
    assert evaluation.per_class()["sky"] == (0, 0, 0)


def test_classes_that_share_a_name_are_told_apart():
    twice = Categories(("cat", "cat"), (1, 2))
    evaluation = PanopticEvaluator(twice)
    evaluation.update(square(1, 2), [Segment(1, 0), Segment(2, 1)], square(1, 0), [Segment(1, 0)])
    assert evaluation.compute()["per_class"] == {"cat (1)": 1, "cat (2)": 0}


def test_bad_input_is_refused_in_one_line():
    evaluation = PanopticEvaluator(THINGS_AND_STUFF)
    with pytest.raises(ValueError, match="the predicted map has 4x4 pixels, the ground truth 8x4; resize"):
        evaluation.update(square(1, 2), [Segment(1, 0), Segment(2, 0)], square(1), [Segment(1, 0)])
    with pytest.raises(ValueError, match="the predicted map has a segment 2, which `info` does not list"):
        evaluation.update(square(1, 1), [Segment(1, 0)], square(1, 2), [Segment(1, 0)])
    with pytest.raises(ValueError, match="the ground-truth segment 1 is listed twice"):
        evaluation.update(square(1), [Segment(1, 0), Segment(1, 1)], square(1), [Segment(1, 0)])
    assert evaluation.compute()["PQ"] is None
