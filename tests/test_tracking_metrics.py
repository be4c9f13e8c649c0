"""Tracking metrics against the numbers of TrackEval, and their rules for objects that are not evaluated."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest

from golden import FOLDER
from opendetr.evaluation import TRACKING_METRICS, TrackingMetrics, Tracks, TrueTracks

pytest.importorskip("trackeval")

FILES = {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "tracking_metrics").glob("*.json"))}
DISTRACTORS = {"MOT17": (2, 7, 8, 12), "MOT20": (2, 6, 7, 8, 12)}


def rows(text: str) -> np.ndarray:
    return np.array([[float(value) for value in line.split(",")] for line in text.split()]).reshape(-1, 9 + 1)


def corners(table: np.ndarray) -> np.ndarray:
    return np.concatenate((table[:, 2:4], table[:, 2:4] + table[:, 4:6]), axis=1)


def tracks(frames, ids, boxes) -> dict[str, Any]:
    return {
        "frames": np.asarray(frames, np.int64),
        "ids": np.asarray(ids, np.int64),
        "boxes": np.asarray(boxes, np.float64).reshape(-1, 4),
    }


def golden_sequence(given: dict[str, Any], benchmark: str) -> tuple[TrueTracks, Tracks]:
    truth = np.array([[float(value) for value in line.split(",")] for line in given["gt"].split()])
    result = rows(given["result"])
    classes, flags = truth[:, 7], truth[:, 6]
    true_tracks = TrueTracks(
        **tracks(truth[:, 0] - 1, truth[:, 1], corners(truth)),
        ignored=(flags == 0) | ((classes != 1) & (benchmark in DISTRACTORS)),
        distractors=np.isin(classes, DISTRACTORS.get(benchmark, ())),
    )
    return true_tracks, Tracks(**tracks(result[:, 0] - 1, result[:, 1], corners(result)))


@pytest.mark.parametrize("benchmark", ["MOT17", "MOT20", "no_preproc"])
@pytest.mark.parametrize("name", FILES)
def test_every_value_equals_the_golden_value(name, benchmark):
    golden = FILES[name]
    metrics = TrackingMetrics()
    for sequence, given in golden["sequences"].items():
        metrics.add(sequence, given["length"], *golden_sequence(given, benchmark))
    report = metrics.compute()
    compared = 0
    for sequence, families in golden["runs"][benchmark].items():
        ours = report.details["combined" if sequence == "COMBINED_SEQ" else sequence]
        for family in ("HOTA", "CLEAR", "Identity", "Count"):
            assert ours[family].keys() == families[family].keys()
            for key, value in families[family].items():
                np.testing.assert_allclose(ours[family][key], value, rtol=0, atol=1e-12, err_msg=f"{sequence} {key}")
                compared += 1
    assert compared > 100
    assert report.sequences.keys() == golden["sequences"].keys()
    assert list(report.combined) == list(TRACKING_METRICS)
    clear = golden["runs"][benchmark]["COMBINED_SEQ"]["CLEAR"]
    assert report.combined["MOTA"] == pytest.approx(clear["MOTA"])
    assert report.combined["HOTA"] == pytest.approx(np.mean(golden["runs"][benchmark]["COMBINED_SEQ"]["HOTA"]["HOTA"]))
    assert report.combined["switches"] == clear["IDSW"]


def square(x: float) -> list[float]:
    return [x, 0, x + 10, 10]


def truth(frames, ids, boxes, ignored=None, distractors=None) -> TrueTracks:
    none = np.zeros(len(frames), bool)
    return TrueTracks(
        **tracks(frames, ids, boxes),
        ignored=none if ignored is None else np.array(ignored),
        distractors=none if distractors is None else np.array(distractors),
    )


def test_a_prediction_on_a_distractor_is_removed_and_one_on_an_ignored_object_is_a_false_positive():
    predicted = Tracks(**tracks([0, 0], [5, 6], [square(0), square(50)]))
    for kind, expected in ((None, 1.0), ("distractors", 1.0), ("ignored", 0.0)):
        flags = {} if kind is None else {kind: [False, True]}
        metrics = TrackingMetrics()
        metrics.add("a", 1, truth([0, 0], [1, 2], [square(0), square(50)], **flags), predicted)
        assert metrics.compute().combined["MOTA"] == expected


def test_a_switch_is_counted_once_and_ids_may_be_any_integers():
    metrics = TrackingMetrics()
    boxes = [square(0)] * 4
    metrics.add("a", 4, truth(range(4), [10**9] * 4, boxes), Tracks(**tracks(range(4), [-3, -3, 2**40, 2**40], boxes)))
    report = metrics.compute()
    assert report.sequences["a"] == report.combined
    assert (report.combined["switches"], report.combined["objects"]) == (1, 1)
    assert report.combined["MOTA"] == 0.75 and report.combined["IDF1"] == 0.5


def test_faulty_tracks_are_one_line():
    with pytest.raises(ValueError, match="frame 1 has id 2 more than once"):
        Tracks(**tracks([1, 1], [2, 2], [square(0), square(1)]))
    metrics, empty = TrackingMetrics(), Tracks(**tracks([], [], []))
    with pytest.raises(ValueError, match="no sequence was added"):
        metrics.compute()
    with pytest.raises(ValueError, match="a: the ground truth has objects outside its 3 frames"):
        metrics.add("a", 3, truth([3], [1], [square(0)]), empty)
    metrics.add("a", 3, truth([], [], []), empty)
    with pytest.raises(ValueError, match="'a' was added before"):
        metrics.add("a", 3, truth([], [], []), empty)
    assert metrics.compute().combined["HOTA"] == 0


def test_without_trackeval_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.delitem(sys.modules, "trackeval")
    with pytest.raises(ImportError, match=r"pip install 'opendetr\[track\]'"):
        TrackingMetrics()
