"""Run the settings of an ablation study, one after another, in parts that can be resumed.

The folder of a study contains `ablation.json`, what it compares; `runs/NAME`, the run folders; and `results/NAME.json`,
the result of each complete run, which is small and never changes. A call trains what has no result yet. Several calls
can work on one folder at the same time, such as one per core: each takes the next run that no other one works on.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from opendetr.analysis.ablations import Scale, Setting
from opendetr.analysis.cost import count_operations, count_parameters, input_size
from opendetr.analysis.layers import analyse_layers
from opendetr.analysis.predictions import collect
from opendetr.config import ConfigError
from opendetr.data import DataError
from opendetr.files import json_value, write_atomically
from opendetr.inference import Predictor, load
from opendetr.structures import NonFiniteError
from opendetr.synthetic import EASY_SCENES, write_scenes
from opendetr.training import find_checkpoint, has_ended, read_metrics, resume, train

METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
STUDY_FILE = "ablation.json"
_SCENES, _RUNS, _RESULTS = "scenes", "runs", "results"
_COUNTS = {"train": 16_000, "val": 300}
LAST = 10  # evaluations, of which ablations take the median
_MODEL = "model.safetensors"  # in a checkpoint

Say = Callable[[str], object]


@dataclass(frozen=True)
class Study:
    """The runs of a scale on a dataset.

    Attributes:
        folder: where everything is written.
        scale: the settings.
        data: the dataset; None for easy scenes, which are drawn in the folder.
        images: training images of a run, repeated ones counted; None for the epochs of each recipe.
        device: as in `training.train`.
    """

    folder: Path
    scale: Scale
    data: Path | None
    images: int | None
    device: str = "auto"

    @property
    def dataset(self) -> Path:
        """The dataset folder."""
        return self.folder / _SCENES if self.data is None else self.data

    def run_folder(self, run: str) -> Path:
        """The folder of a run."""
        return self.folder / _RUNS / run

    def result_file(self, run: str) -> Path:
        """The file of the result of a run."""
        return self.folder / _RESULTS / f"{run}.json"

    def settings(self, setting: Setting) -> list[Mapping[str, Any]]:
        """What a run changes in the settings of its model; later changes override earlier ones."""
        return [self.scale.changes, self.scale.detr if setting.model is None else {}, setting.changes]

    def model(self, setting: Setting) -> str:
        """The name of the model of a setting."""
        return setting.model or self.scale.model

    def num_images(self, setting: Setting) -> int | None:
        """Training images of a run; None for the epochs of its recipe."""
        return None if self.images is None else round(self.images * setting.share)

    def results(self, setting: Setting) -> list[dict[str, Any]]:
        """The results of the complete runs of a setting."""
        files = [self.result_file(run) for run in setting.runs]
        return [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]

    def missing(self, settings: Sequence[Setting]) -> list[tuple[Setting, int, str]]:
        """The setting, the seed and the name of each run that has no result."""
        runs = [
            (setting, seed, run) for setting in settings for seed, run in zip(setting.seeds, setting.runs, strict=True)
        ]
        return [(setting, seed, run) for setting, seed, run in runs if not self.result_file(run).is_file()]


def open_study(folder: Path, scale: Scale, data: Path | None, *, images: int | None, device: str = "auto") -> Study:
    """Begin a study in a folder, or continue the one that it contains.

    Args:
        folder: the folder of the study.
        scale: what to compare.
        data: a dataset; None for easy scenes.
        images: training images of a run; None for those of the scale.
        device: as in `training.train`.

    Raises:
        ConfigError: the folder contains another study, or the scale needs a dataset.
    """
    if data is None and not scale.draws_scenes:
        raise ConfigError(f"the scale {scale.name} needs a dataset: name its folder")
    study = Study(folder, scale, data, scale.images if images is None else images, device)
    about = {"scale": scale.name, "data": None if data is None else data.resolve().name, "images": study.images}
    path = folder / STUDY_FILE
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, value in about.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{folder}: contains a study with {name} {before.get(name)}, not {value}; choose another --out"
                )
        return study
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(about) + "\n")
    return study


def run_study(study: Study, settings: Sequence[Setting], say: Say) -> list[str]:
    """Train and evaluate the runs that have no result yet.

    Returns:
        The names of the runs that failed or that another process works on.

    Raises:
        InterruptedStudyError: Ctrl-C or SIGTERM ended a run, which was saved.
    """
    if study.data is None:
        _draw_scenes(study, say)
    left = []
    runs = study.missing(settings)
    for index, (setting, seed, run) in enumerate(runs, 1):
        (study.folder / _RUNS).mkdir(exist_ok=True)
        try:
            with FileLock(study.folder / _RUNS / f"{run}.lock", timeout=0):
                if study.result_file(run).is_file():  # another process has finished it meanwhile
                    continue
                say(f"run {index} of {len(runs)}: {run} ({setting.title})")
                _write(study, run, _trained(study, setting, seed, run, say))
        except Timeout:
            say(f"{run}: another process works on it")
            left.append(run)
        except NonFiniteError as error:
            say(f"{run}: failed, {error}")
            left.append(run)
    return left


def collect_study(study: Study, settings: Sequence[Setting]) -> None:
    """Write the results of runs that were trained elsewhere and have ended, such as those of printed commands."""
    for setting, seed, run in study.missing(settings):
        if has_ended(study.run_folder(run)):
            _write(study, run, result_of(study, setting, seed, run))


class InterruptedStudyError(ConfigError):
    """A signal ended a run of a study. The next call continues it."""


def _draw_scenes(study: Study, say: Say) -> None:
    with FileLock(study.folder / f"{_SCENES}.lock"):
        if not (study.dataset / "annotations" / "instances_val.json").is_file():
            say(f"drawing {sum(_COUNTS.values()):,} scenes in {study.dataset}")
            write_scenes(study.dataset, counts=_COUNTS, config=EASY_SCENES)


def _trained(study: Study, setting: Setting, seed: int, run: str, say: Say) -> dict[str, Any]:
    """Train a run, or continue it, and return its result."""
    folder = study.run_folder(run)
    if find_checkpoint(folder / "last") is not None:
        trained = resume(folder, device=study.device, say=say)
    else:
        trained = train(
            study.dataset,
            model=study.model(setting),
            weights=study.scale.weights,
            out=folder,
            changes=[*study.settings(setting), _length(study, setting)],
            image_size=study.scale.image_size,
            seed=seed,
            device=study.device,
            say=say,
        )
    if trained.result.interrupted:
        raise InterruptedStudyError(f"{run}: interrupted after {trained.result.step} steps; call again to continue")
    return result_of(study, setting, seed, run)


def _length(study: Study, setting: Setting) -> dict[str, Any]:
    """The length of a run as a setting of the recipe; empty for the epochs of its recipe."""
    images = study.num_images(setting)
    if images is None:
        return {}
    return {"recipe": {"max_steps": max(1, images // study.scale.changes["recipe"]["batch_size"])}}


def _write(study: Study, run: str, result: Mapping[str, Any]) -> None:
    path = study.result_file(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(json_value(result)) + "\n")


def result_of(study: Study, setting: Setting, seed: int, run: str) -> dict[str, Any]:
    """The result of a run that has ended, from its metrics and its last weights."""
    folder = study.run_folder(run)
    curve = list(_evaluations(folder))
    if not curve:
        raise DataError(f"{folder}: has no evaluations; train it again")
    detector = load(folder / "last" / _MODEL, device=study.device)
    data = detector.open_split(study.dataset, None, masks="none")
    collected = collect(detector, data)
    recipe = detector.preset.recipe
    size = input_size(detector.preset, *_typical_shape(data.images))
    result: dict[str, Any] = {
        "run": run,
        "setting": setting.name,
        "seed": seed,
        "model": study.model(setting),
        "data": study.dataset.resolve().name,
        "images": curve[-1]["step"] * recipe.batch_size,
        "seconds": _seconds(folder),
        "parameters": count_parameters(detector.model)[0],
        "operations": sum(count_operations(detector.model, size).values()),
        "size": size,
        "seconds_per_image": collected.seconds_per_image,
        "last": {name: curve[-1][name] for name in METRICS},
        "median": {name: _median([row[name] for row in curve[-LAST:]]) for name in METRICS},
        "curve": curve,
    }
    return result | _with_and_without_nms(detector, collected, data)


def _with_and_without_nms(detector: Predictor, collected: Any, data: Any) -> dict[str, Any]:
    """AP of the last weights with and without NMS; for DETR after each decoder layer."""
    if detector.model.has_nms:
        with_nms = detector.metrics(data)["AP"]
        detector.model.set_nms(1.0)
        return {"nms": with_nms, "no_nms": detector.metrics(data)["AP"]}
    layers = analyse_layers(collected)
    return {"nms": layers.ap_nms[-1], "no_nms": layers.ap[-1], "layers": layers.ap, "layers_nms": layers.ap_nms}


def _evaluations(folder: Path) -> Iterator[dict[str, Any]]:
    """The step and the metrics of each evaluation."""
    for row in read_metrics(folder):
        if row["kind"] == "evaluation":
            yield {"step": row["step"], **{name: _rounded(row["metrics"].get(name)) for name in METRICS}}


def _seconds(folder: Path) -> float:
    """Seconds of training steps; a long run has a row only for some of them."""
    steps = [row for row in read_metrics(folder) if row["kind"] == "step"]
    return round(statistics.mean(row["seconds"] for row in steps) * steps[-1]["step"], 1) if steps else 0.0


def _typical_shape(images: Sequence[Any]) -> tuple[int, int]:
    """The median height and width of images."""
    heights, widths = zip(*((image.height, image.width) for image in images), strict=True)
    return statistics.median_low(heights), statistics.median_low(widths)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 5) if known else None


# ------------------------------------------------------------------------------------------------------------ commands


def study_commands(study: Study, settings: Sequence[Setting]) -> list[str]:
    """The command that trains each run that has no result and no run folder, for several machines with GPUs.

    Every machine executes the same command; HOST is the name of one of them.
    """
    scale = study.scale
    launcher = f"torchrun --nnodes {scale.nodes} --nproc-per-node {scale.processes} --rdzv-id opendetr"
    launcher += " --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m opendetr"
    lines = []
    for setting, seed, run in study.missing(settings):
        folder = study.run_folder(run)
        if find_checkpoint(folder / "last") is not None:
            lines.append(f"{launcher} train --resume {shlex.quote(str(folder))}")
            continue
        values = dict(_assignments([*study.settings(setting), _length(study, setting)]))
        words = ["train", str(study.dataset), "--model", study.model(setting), "--weights", scale.weights]
        words += ["--out", str(folder), "--seed", str(seed)]
        words += [word for name, value in values.items() for word in ("--set", f"{name}={json.dumps(value)}")]
        lines.append(f"{launcher} {shlex.join(words)}")
    return lines


def _assignments(changes: Sequence[Mapping[str, Any]], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names and values of nested settings, in order."""
    for change in changes:
        for name, value in change.items():
            if isinstance(value, Mapping):
                yield from _assignments([value], f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value
