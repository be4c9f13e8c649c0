"""The numbers of the analyses: against COCO's code, against brute force, and on planted mistakes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from collected import coco_scores, collected_of, found_of, objects_of, random_case
from opendetr.analysis import KINDS, analyse_errors, analyse_intervals, analyse_layers
from opendetr.analysis.comparison import compare_collected
from opendetr.analysis.errors import label_errors
from opendetr.analysis.layers import NMS_IOU, analyse_no_object, suppress
from opendetr.analysis.objects import analyse_objects
from opendetr.analysis.queries import analyse_queries
from opendetr.evaluation import (
    IOU_THRESHOLDS,
    ClassMatches,
    ImageErrors,
    analyse_operation,
    average_precisions,
    label_thresholds,
    match_found,
    precision_at_recalls,
    worst_images,
)

BOX = (50.0, 50.0, 40.0, 40.0)
FAR = (150.0, 150.0, 40.0, 40.0)
SEEDS = range(6)


def case(seed: int, **options):
    objects, found = random_case(seed, **options)
    return collected_of(objects, found, num_images=options.get("num_images", 12))


# --------------------------------------------------------------------------------------------------------------- AP


@pytest.mark.parametrize("seed", SEEDS)
def test_ap_is_that_of_coco(seed):
    collected = case(seed)
    expected = coco_scores(collected, collected.found)
    intervals = analyse_intervals(collected, resamples=2)
    for name, estimate in intervals.metrics.items():
        assert estimate.value == pytest.approx(expected[name], abs=1e-9), name
    known = {name: value for name, value in expected["per_class"].items() if value is not None}
    assert {name: each.value for name, each in intervals.per_class.items()} == pytest.approx(known, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_curve_has_the_area_ap(seed):
    collected = case(seed)
    for one in match_found(collected.objects, collected.found, 12).of_classes(collected.labels):
        expected = average_precisions(one)[:, 0]
        np.testing.assert_allclose(precision_at_recalls(one).mean(1), expected, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_resample_is_a_dataset_of_copies(seed):
    """AP with counts equals that of a dataset in which each image occurs as often."""
    collected = case(seed)
    counts = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12), size=3)
    for label in collected.labels:
        one = match_found(collected.objects, collected.found, 12).of_class(label)
        got = average_precisions(one, counts)
        for index, own in enumerate(counts):
            copies = [image for image, count in enumerate(own) for _ in range(count)]
            rows = [np.flatnonzero(one.image == image) for image in copies]
            chosen = np.concatenate(rows)
            image = np.repeat(np.arange(len(copies)), [len(row) for row in rows])
            order = np.lexsort((np.array(copies)[image], -one.score[chosen]))
            chosen, image = chosen[order], image[order]
            copied = ClassMatches(
                image, one.score[chosen], one.correct[:, chosen], one.ignored[:, chosen], one.num_objects[copies]
            )
            # Equal scores may be ordered in another way among the copies.
            if len(np.unique(one.score)) == len(one.score):
                np.testing.assert_allclose(got[:, index], average_precisions(copied)[:, 0], atol=1e-12)
            else:
                np.testing.assert_allclose(got[:, index], average_precisions(copied)[:, 0], atol=0.05)


def test_intervals_surround_the_value_and_are_repeatable():
    collected = case(1, num_images=40)
    first, again = analyse_intervals(collected, resamples=200), analyse_intervals(collected, resamples=200)
    assert first == again
    for each in (*first.metrics.values(), *first.per_class.values()):
        assert each.low < each.value < each.high


# ------------------------------------------------------------------------------------------------------------ layers


def brute_force_nms(found):
    """The detections that NMS keeps, one by one."""
    kept = []
    for index in np.argsort(-found.score, kind="stable").tolist():
        if not any(
            found.image[other] == found.image[index]
            and found.label[other] == found.label[index]
            and overlap(found.box[other], found.box[index]) > NMS_IOU
            for other in kept
        ):
            kept.append(index)
    return found[np.sort(np.array(kept))]


def overlap(a, b) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_table_of_layers_equals_brute_force(seed):
    objects, last = random_case(seed)
    _, first = random_case(seed + 100)
    collected = collected_of(objects, first, last, num_images=12)
    scores = analyse_layers(collected)
    for layer, found in enumerate((first, last)):
        kept = brute_force_nms(found)
        assert len(kept) == len(suppress(found)) == len(found) - scores.dropped[layer]
        plain, with_nms = coco_scores(collected, found), coco_scores(collected, kept)
        assert scores.ap[layer] == pytest.approx(plain["AP"], abs=1e-9)
        assert scores.ap50[layer] == pytest.approx(plain["AP50"], abs=1e-9)
        assert scores.ap_nms[layer] == pytest.approx(with_nms["AP"], abs=1e-9)
        assert scores.ap50_nms[layer] == pytest.approx(with_nms["AP50"], abs=1e-9)


def test_nms_removes_a_duplicate_and_keeps_other_classes():
    objects = objects_of([(0, 0, BOX), (1, 1, BOX)])
    found = found_of([(0, 0, 0.9, BOX), (0, 0, 0.8, BOX), (0, 1, 0.7, BOX), (1, 1, 0.6, BOX)])
    assert suppress(found).score.tolist() == [0.9, 0.7, 0.6]
    assert analyse_layers(collected_of(objects, found, num_images=2)).dropped == (1,)


def test_the_rule_for_no_object():
    objects = objects_of([(0, 0, BOX), (1, 0, FAR)])
    found = found_of([(0, 0, 0.9, BOX), (1, 0, 0.2, FAR)])
    collected = collected_of(objects, found, num_images=2, strict=found[found.score > 0.5])
    scores = analyse_no_object(collected)
    assert (scores.ap, scores.dropped) == (1.0, 0.5)
    assert scores.ap_strict == pytest.approx(51 / 101)
    assert analyse_no_object(collected_of(objects, found, num_images=2)) is None


# ------------------------------------------------------------------------------------------------------------ errors

NEAR = (50.0, 50.0, 40.0, 12.0)  # IoU of 0.3 with BOX
PLANTED = {
    "classification": (1, BOX),
    "localisation": (0, NEAR),
    "both": (1, NEAR),
    "duplicate": (0, (50.0, 50.0, 40.0, 38.0)),
    "background": (0, FAR),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_mistake_has_the_right_kind(kind):
    label, box = PLANTED[kind]
    good = [(image, of, 0.9, BOX) for image, of in enumerate((0, 1, 0))]
    objects = objects_of([(image, of, BOX) for image, of in enumerate((0, 1, 0))])
    if kind != "duplicate":
        good.pop()  # the mistake stands alone in the last image
    collected = collected_of(objects, found_of([*good, (2, label, 0.95 if kind != "duplicate" else 0.85, box)]),
                             num_images=3)  # fmt: skip
    errors = analyse_errors(collected)
    expected = dict.fromkeys(KINDS, 0) | {kind: 1, "missed": int(kind in ("both", "background"))}
    assert errors.counts == expected
    assert errors.fixed["missed"] == 1.0
    if kind in ("classification", "localisation"):
        assert errors.lost[kind] == pytest.approx(1.0 - errors.ap50)


def test_a_missed_object():
    errors = analyse_errors(collected_of(objects_of([(0, 0, BOX), (1, 0, BOX)]), found_of([(0, 0, 0.9, BOX)]),
                                         num_images=2))  # fmt: skip
    assert errors.counts == dict.fromkeys(KINDS, 0) | {"missed": 1}
    assert errors.ap50 == pytest.approx(51 / 101)
    assert errors.lost["missed"] == errors.false_negatives == pytest.approx(50 / 101)


@pytest.mark.parametrize("size", ["all", "small", "medium", "large"])
@pytest.mark.parametrize("seed", SEEDS)
def test_fixing_one_kind_after_another_ends_at_one(seed, size):
    errors = analyse_errors(case(seed), size)
    if errors.ap50 is None:
        return
    assert list(errors.fixed.values())[-1] == pytest.approx(1.0)
    values = [errors.ap50, *errors.fixed.values()]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(values))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_errors_start_from_ap50(seed):
    collected = case(seed)
    assert analyse_errors(collected).ap50 == pytest.approx(coco_scores(collected, collected.found)["AP50"], abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kinds_equal_brute_force(seed):
    collected = case(seed)
    errors = label_errors(match_found(collected.objects, collected.found, 12, thresholds=np.array([0.5])))
    found, objects, matches = errors.matches.found, collected.objects, errors.matches
    for row in range(len(found)):
        if matches.ignored[0, row] or matches.object[0, row] >= 0:
            assert errors.kind[row] == -1
            continue
        own = [at for at in np.flatnonzero(objects.image == found.image[row]) if not objects.crowd[at]]
        overlaps = {at: overlap(found.box[row], objects.box[at]) for at in own}
        same = [value for at, value in overlaps.items() if objects.label[at] == found.label[row]]
        others = [value for at, value in overlaps.items() if objects.label[at] != found.label[row]]
        if same and 0.1 <= max(same) < 0.5:
            expected = "localisation"
        elif others and max(others) >= 0.5:
            expected = "classification"
        elif same and max(same) >= 0.5:
            expected = "duplicate"
        elif max(overlaps.values(), default=0) < 0.1:
            expected = "background"
        else:
            expected = "both"
        assert list(KINDS)[errors.kind[row]] == expected


# --------------------------------------------------------------------------------------------------- at the thresholds


def test_the_confusion_matrix_and_the_worst_image():
    """A dog is taken for a cat, and a cat is missed. A cat without an object is below the threshold of best F1, 0.7."""
    objects = objects_of([(0, 0, BOX), (0, 1, FAR), (1, 0, BOX), (2, 0, BOX)])
    found = found_of([(0, 0, 0.9, FAR), (0, 0, 0.8, BOX), (1, 0, 0.2, FAR), (2, 0, 0.7, BOX)])
    operation = analyse_operation(collected_of(objects, found, num_images=3))
    assert operation.names == ("cat", "dog")
    assert operation.confusion == ((2, 0, 1), (1, 0, 0), (0, 0, 0))
    assert worst_images(operation, 5) == [ImageErrors(0, 2, wrong=1, missed=1), ImageErrors(1, 1, wrong=0, missed=1)]
    assert worst_images(operation, 1) == [operation.images[0]]


def test_calibrated_scores_have_no_error():
    objects = objects_of([(image, 0, BOX) for image in range(4)])
    found = found_of([(image, 0, 0.75, BOX) for image in range(3)] + [(3, 0, 0.75, FAR)])
    operation = analyse_operation(collected_of(objects, found, num_images=4))
    assert operation.calibration == ((0.7, 0.75, 0.75, 4),)
    assert operation.calibration_error == pytest.approx(0.0)


def test_thresholds_follow_the_classes():
    collected = case(2)
    points = analyse_operation(collected).points
    by_label, default = label_thresholds(collected, points)
    assert default == points.overall.threshold
    for label, name in enumerate(collected.names):
        assert by_label[label] == pytest.approx(points.per_class[name].threshold or default)


# ------------------------------------------------------------------------------------------------ queries and objects


def test_queries():
    """Query 0 fires in every image, query 1 never; query 1 is image-sized in a tenth of the images."""
    objects = objects_of([(image, 0, BOX) for image in range(10)] + [(0, 1, FAR)])
    boxes = np.full((10, 2, 4), 0.3, np.float32)
    boxes[0, 1, 2:] = 0.95
    scores = np.tile(np.array([0.9, 0.1], np.float32), (10, 1))
    collected = collected_of(
        objects, found_of([]), num_images=10, query_boxes=boxes, query_scores=scores,
        query_labels=np.zeros((10, 2), np.int64),
    )  # fmt: skip
    facts = analyse_queries(collected, np.full(3, 0.5), 0.5)
    assert facts.fires == (10, 0)
    assert (facts.never_fires, facts.most_at_once, facts.most_objects) == (1, 1, 2)
    assert facts.image_sized == pytest.approx((0.0, 0.1))
    assert facts.image_sized_queries == 0.5
    unknown = analyse_queries(
        collected_of(objects, found_of([]), num_images=10, query_boxes=boxes, query_scores=scores,
                     query_labels=np.full((10, 2), -1)), np.full(3, 0.5), 0.5)  # fmt: skip
    assert unknown.never_fires == 2


def test_objects():
    big = (0.0, 0.0, 100.0, 100.0)
    rows = [(0, 0, BOX), (0, 0, FAR), (0, 1, big), (2, 0, (5.0, 5.0, 10.0, 10.0)), (2, 0, BOX)]
    facts = analyse_objects(collected_of(objects_of(rows, crowd=(4,)), found_of([]), num_images=3))
    assert (facts.images, facts.objects, facts.most_per_image) == (3, 4, 3)
    assert facts.per_image == pytest.approx(4 / 3)
    assert (facts.most_of_class, facts.most_of_class_name) == (2, "cat")
    assert facts.sizes == {"small": 1, "medium": 2, "large": 1}
    assert facts.per_class == {"cat": 3, "dog": 1}
    assert facts.images_per_class == {"cat": 2, "dog": 1}


# -------------------------------------------------------------------------------------------------------- comparison


def test_a_detector_does_not_differ_from_itself():
    collected = case(3)
    comparison = compare_collected(collected, collected, resamples=50)
    for each in (*comparison.metrics.values(), *comparison.per_class.values()):
        assert each.difference.value in (0.0, None)
        assert not each.significant
    assert comparison.changes == ()


def test_a_much_better_detector_is_significantly_better():
    objects, found = random_case(4, num_images=40, crowds=False)
    rows = zip(objects.image.tolist(), objects.label.tolist(), objects.box.tolist(), strict=True)
    perfect = found_of([(image, label, 0.9, tuple(box)) for image, label, box in rows])
    worse = collected_of(objects, found, num_images=40)
    better = collected_of(objects, perfect, num_images=40)
    comparison = compare_collected(worse, better, resamples=200)
    ap = comparison.metrics["AP"]
    assert ap.b == pytest.approx(1.0)
    assert ap.significant and ap.difference.low > 0
    assert all(each.significant for each in comparison.per_class.values())
    assert comparison.changes[0].errors_a > comparison.changes[0].errors_b == 0
    reverse = compare_collected(better, worse, resamples=200).metrics["AP"]
    assert reverse.difference.value == pytest.approx(-ap.difference.value)


def test_only_common_classes_are_compared():
    objects, found = random_case(5)
    a = collected_of(objects, found, num_images=12)
    b = collected_of(objects, found[found.label == 0], num_images=12, known=frozenset({0}))
    comparison = compare_collected(a, b, resamples=20)
    assert list(comparison.per_class) == ["cat"]
    assert comparison.metrics["AP"].difference.value == 0.0


# -------------------------------------------------------------------------------------------------------- simulations


def simulated(rng, num_images, quality=0.8):
    """A detector that finds each object with some probability, in images with 1 to 6 objects of one class."""
    objects, found = [], []
    for image in range(num_images):
        for number in range(rng.integers(1, 7)):
            box = (45.0 * number, 20.0, 40.0, 40.0)
            objects.append((image, 0, box))
            if rng.random() < quality:
                shift = float(np.abs(rng.normal(0, 4)))
                found.append((image, 0, float(rng.beta(4, 2)), (box[0] + shift, *box[1:])))
        for number in range(rng.integers(0, 4)):
            found.append((image, 0, float(rng.beta(2, 4)), (45.0 * number, 150.0, 40.0, 40.0)))
    return objects_of(objects), found_of(found)


@pytest.mark.slow
def test_the_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    truth = analyse_intervals(collected_of(*simulated(rng, 6000), num_images=6000), resamples=1).metrics["AP"].value
    covered = 0
    for _ in range(200):
        collected = collected_of(*simulated(rng, 60), num_images=60)
        ap = analyse_intervals(collected, resamples=400).metrics["AP"]
        covered += ap.low <= truth <= ap.high
    assert 0.90 * 200 <= covered <= 0.99 * 200


@pytest.mark.slow
def test_equally_good_detectors_are_rarely_called_different():
    rng = np.random.default_rng(1)
    different = 0
    for _ in range(200):
        objects, found = simulated(rng, 40)
        other = again(rng, objects)
        a, b = (collected_of(objects, each, num_images=40) for each in (found, other))
        different += compare_collected(a, b, resamples=200).metrics["AP"].significant
    assert different <= 0.08 * 200


def again(rng, objects):
    """Other detections of the same objects by an equally good detector, as in `simulated`."""
    found = []
    for image, box in zip(objects.image.tolist(), objects.box.tolist(), strict=True):
        if rng.random() < 0.8:
            shift = float(np.abs(rng.normal(0, 4)))
            found.append((image, 0, float(rng.beta(4, 2)), (box[0] + shift, *box[1:])))
    for image in range(int(objects.image.max()) + 1):
        for number in range(rng.integers(0, 4)):
            found.append((image, 0, float(rng.beta(2, 4)), (45.0 * number, 150.0, 40.0, 40.0)))
    return found_of(found)


def test_the_thresholds_are_those_of_coco():
    assert IOU_THRESHOLDS.tolist() == pytest.approx([0.5 + 0.05 * step for step in range(10)])
