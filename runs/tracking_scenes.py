"""Trains motr-tiny, transtrack-tiny and a detector with ByteTrack on drawn videos, without a GPU, and compares them.

    python runs/tracking_scenes.py --folder WORK --minutes 100 --results docs/tracking/scenes.json

WORK/data and WORK/hard get the videos. All three models are trained on the same frames for the same minutes, one after
another, and start from the detector of the package. With --rounds 2, each is then trained for as many minutes again,
from its best weights. The script continues where it was interrupted; `--models` chooses some of the models, and the
results of the others stay in the file.

The results are the tracking metrics on 40 unseen videos of each set. In the hard set, half of the videos have crossings
between objects that look alike, and half between distinct ones; both halves are reported. The thresholds of all
trackers are chosen on training videos.
"""

from __future__ import annotations

import argparse
import configparser
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opendetr import Tracker, load, train
from opendetr.config import to_dict
from opendetr.data import DetectionData, VideoDataConfig, Videos, open_data
from opendetr.evaluation import VideoTracks
from opendetr.files import write_atomically
from opendetr.inference import Predictor
from opendetr.models import TrackerConfig
from opendetr.presets import get_preset
from opendetr.synthetic import VideoConfig, write_videos
from opendetr.training import resume

START = "deformable-detr-tiny"
MODELS = ("motr-tiny", "transtrack-tiny", START)
ASSOCIATION = "bytetrack"
BIRTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
NUM_VAL = 8  # videos, by which the best weights of a run are selected
FITTING_FRAMES = 400  # of training videos, to choose the thresholds of the detector's tracks
CROSSINGS = ("alike", "distinct")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of the comparison.

    Attributes:
        videos, frames: number and length of the training videos.
        test_videos: number of unseen videos in each of the two sets.
        minutes: of one training.
        rounds: number of trainings, each from the best weights of the one before.
        image_size: short side of the images, in pixels; None for that of the models.
    """

    videos: int
    frames: int
    test_videos: int
    minutes: float
    rounds: int
    image_size: int | None


def make_data(folder: Path, settings: Settings) -> tuple[dict[str, DetectionData], DetectionData]:
    """The default set with its splits, and the hard test videos. They are drawn unless they exist."""
    sets = {
        "data": (
            VideoConfig(frames=settings.frames),
            {"train": settings.videos, "val": 8, "test": settings.test_videos},
        ),
        "hard": (VideoConfig(frames=settings.frames, hard=True), {"test": settings.test_videos}),
    }
    for name, (config, counts) in sets.items():
        if not (folder / name / "complete").is_file():
            write_videos(folder / name, counts=counts, config=config)
            (folder / name / "complete").touch()
    config = VideoDataConfig()
    return open_data(folder / "data"), config.open_split(folder / "hard", "test")


def train_model(model: str, data: Path, folder: Path, settings: Settings) -> Path:
    """Train a model until its minutes are over, or continue an interrupted training. Returns the last run folder."""
    weights: str | Path = START
    for number in range(1, settings.rounds + 1):
        run = folder / f"{model}-{number}"
        if (run / "finished").is_file():
            print(f"{run}: finished before")
        elif (run / "config.yaml").is_file():
            ended = resume(run, say=print)
        else:
            seconds, size = 60 * settings.minutes, settings.image_size
            ended = train(data, model=model, weights=weights, out=run, time=seconds, image_size=size, say=print)
        if not (run / "finished").is_file():
            if ended.result.interrupted:
                raise SystemExit(f"{run}: interrupted; start the script again to continue")
            (run / "finished").touch()
        weights = run
    return run


# --------------------------------------------------------------------------------------------------------------- tracks


def crossings_of(data: DetectionData) -> dict[str, list[int]]:
    """Which objects cross each other in the videos, as `seqinfo.ini` says -> indices of the frames."""
    videos, by_kind = Videos(data), defaultdict(list)
    for frames in videos.frames:
        info = configparser.ConfigParser()
        info.read(data.images[frames[0]].path.parents[1] / "seqinfo.ini")
        by_kind[info["Sequence"]["crossings"]] += frames
    return by_kind


def follow(tracker: Tracker, data: DetectionData, collectors: Iterable[VideoTracks]) -> None:
    """Add the tracks of every video of a dataset to all collectors."""
    for frames in Videos(data).frames:
        tracker.reset()
        for index in frames:
            found = tracker.step(data.images[index].path)
            for collector in collectors:
                collector.add(data.images[index].id, found)


def metrics_of(tracker: Tracker, data: DetectionData, kinds: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """The metrics on all videos of a dataset, and on those with each kind of crossings."""
    frames = crossings_of(data) if kinds else {}
    parts = {kind: data.subset([data.images[index] for index in sorted(frames[kind])], kind) for kind in kinds}
    collectors = {"all": VideoTracks(data), **{kind: VideoTracks(part) for kind, part in parts.items()}}
    follow(tracker, data, collectors.values())
    reports = {name: collector.report() for name, collector in collectors.items()}
    return {name: report.combined for name, report in reports.items() if report is not None}


def new_tracker(detector: Predictor, train_data: DetectionData) -> Tracker:
    """The tracker of a model. For a detector, the birth threshold is the best one on training videos."""
    if detector.preset.follows_objects:
        return Tracker(detector)
    part = VideoDataConfig().evaluation_subset(train_data, FITTING_FRAMES)
    scores = {}
    for birth in BIRTHS:
        scores[birth] = metrics_of(Tracker(detector, association=ASSOCIATION, birth=birth), part)["all"]["HOTA"]
        print(f"birth {birth}: HOTA {scores[birth]:.3f} on training videos")
    return Tracker(detector, association=ASSOCIATION, birth=max(scores, key=lambda birth: scores[birth]))


def evaluate(run: Path, train_data: DetectionData, tests: Mapping[str, DetectionData]) -> dict[str, Any]:
    """The metrics and thresholds of a trained model."""
    tracker = new_tracker(load(run), train_data)
    config: TrackerConfig = tracker.config
    record: dict[str, Any] = {"tracker": asdict(config)}
    for name, data in tests.items():
        record[name] = metrics_of(tracker, data, CROSSINGS if name == "hard" else ())
        for part, metrics in record[name].items():
            print(name, part, {key: round(float(value), 3) for key, value in metrics.items()})
    return record


def main() -> None:
    """Draw the videos, train the models, and write the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where videos and runs are kept")
    parser.add_argument("--results", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--test-videos", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--image-size", type=int)
    given = vars(parser.parse_args())
    folder, results, models = given.pop("folder"), given.pop("results"), given.pop("models")
    settings = Settings(**given)
    splits, hard = make_data(folder, settings)
    tests = {"default": splits["test"], "hard": hard}
    for model in models:
        run = train_model(model, folder / "data", folder, settings)
        known = json.loads(results.read_text()) if results.is_file() else {"models": {}}
        record = {"preset": to_dict(get_preset(model)), **evaluate(run, splits["train"], tests)}
        content = {"settings": asdict(settings), "models": {**known["models"], model: record}}
        results.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(results, json.dumps(content, indent=1, default=np.ndarray.tolist) + "\n")


if __name__ == "__main__":
    main()
