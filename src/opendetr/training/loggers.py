"""Callbacks that log a run to TensorBoard, Weights & Biases and MLflow, through the packages of these tools."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from opendetr.config import ConfigError, MissingPackageError
from opendetr.evaluation import CLASS_PREFIX
from opendetr.files import write_atomically
from opendetr.training.checkpoint import writing
from opendetr.training.events import Callback, Evaluated, RunEnded, RunStarted, StepTaken
from opendetr.training.settings import CONFIG_FILE

IDS_FILE = "log.json"
_PROJECT = "opendetr"
_MLFLOW_BATCH = 100  # metrics or parameters in a request; a server accepts at most 100 parameters


def loggers(names: Sequence[str]) -> list[Callback]:
    """The callbacks of `recipe.log`.

    Raises:
        MissingPackageError: the package of a tool is not installed.
    """
    for name in names:
        if not importlib.util.find_spec(name):
            raise MissingPackageError(f"log {name}", name)
    return [_LOGGERS[name]() for name in dict.fromkeys(names)]


def _step_values(event: StepTaken) -> dict[str, float]:
    """Losses, learning rate, gradient norm and duration of a step."""
    values = {f"loss/{name}": layers[-1] for name, layers in event.losses.items()}
    values |= {"loss/total": event.loss, "training/learning rate": event.learning_rate}
    return values | {"training/gradient norm": event.gradient_norm, "training/seconds per step": event.seconds}


def _metric_values(event: Evaluated) -> dict[str, float]:
    """The metrics of an evaluation. Those of classes are in a separate group."""
    return {
        f"{'classes' if name.startswith(CLASS_PREFIX) else 'validation'}/{name}": value
        for name, value in event.metrics.items()
        if value is not None
    }


class TensorBoard(Callback):
    """Writes losses, learning rate, speed and metrics for TensorBoard to `tensorboard/` in the run folder."""

    def __init__(self) -> None:
        self._writer: Any = None

    def on_start(self, event: RunStarted) -> None:
        """Open the files. In a resumed run, TensorBoard hides the earlier values after the checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        folder = event.folder / "tensorboard"
        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=event.step + 1 if event.step else None)

    def on_step(self, event: StepTaken) -> None:
        """Write losses, learning rate, gradient norm and duration of a step."""
        for name, value in _step_values(event).items():
            self._writer.add_scalar(name, value, event.step)

    def on_evaluation(self, event: Evaluated) -> None:
        """Write the metrics."""
        for name, value in _metric_values(event).items():
            self._writer.add_scalar(name, value, event.step)
        self._writer.flush()

    def on_end(self, event: RunEnded) -> None:
        """Close the files."""
        if self._writer is not None:  # None if the run failed before `on_start`
            self._writer.close()


class WandB(Callback):
    """Logs losses, learning rate, speed, metrics and settings to Weights & Biases.

    The environment variables of wandb apply, such as WANDB_PROJECT (default: opendetr) and WANDB_MODE=offline. A
    resumed run continues its W&B run. W&B ignores steps that it has received before.
    """

    def __init__(self) -> None:
        self._run: Any = None

    def on_start(self, event: RunStarted) -> None:
        """Start a W&B run, or continue that of a resumed run. Raises ConfigError if W&B refuses it."""
        import wandb

        event.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=os.environ.get("WANDB_NAME", event.folder.resolve().name),
                dir=str(event.folder),
                config=_settings(event.folder),
                id=_stored_id(event, "wandb"),
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            raise ConfigError(f"wandb: {_one_line(error)}; or set WANDB_MODE=offline") from None
        _store_id(event.folder, "wandb", self._run.id)

    def on_step(self, event: StepTaken) -> None:
        """Log losses, learning rate, gradient norm and duration of a step."""
        self._run.log(_step_values(event), step=event.step)

    def on_evaluation(self, event: Evaluated) -> None:
        """Log the metrics."""
        self._run.log(_metric_values(event), step=event.step)

    def on_end(self, event: RunEnded) -> None:
        """Finish the W&B run. It is marked as failed if training ended with an error."""
        if self._run is not None:  # None if the run failed before `on_start`
            self._run.finish(exit_code=1 if event.outcome == "failed" else 0)


class MLflow(Callback):
    """Logs losses, learning rate, speed, metrics and settings to MLflow.

    The environment variables of MLflow apply, such as MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME (default:
    opendetr). A resumed run continues its MLflow run. Metrics are sent in batches. If the server fails during training,
    training continues, and a warning says that values are missing.
    """

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ""
        self._waiting: list[Any] = []
        self._reported = False

    def on_start(self, event: RunStarted) -> None:
        """Start an MLflow run, or continue that of a resumed run. Raises ConfigError if the server refuses it."""
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient()
        try:
            self._id = self._known_run(_stored_id(event, "mlflow")) or self._new_run(event.folder.resolve().name)
            settings = [Param(_mlflow_name(name), str(value)) for name, value in _flat(_settings(event.folder))]
            for first in range(0, len(settings), _MLFLOW_BATCH):
                self._client.log_batch(self._id, params=settings[first : first + _MLFLOW_BATCH])
        except MlflowException as error:
            raise ConfigError(f"mlflow: {_one_line(error)}") from None
        _store_id(event.folder, "mlflow", self._id)

    def _known_run(self, run_id: str | None) -> str | None:
        """The id of the MLflow run that a resumed run continues. None if MLflow does not have it."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException:
            return None
        return run_id

    def _new_run(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self._client.create_experiment(experiment)
        return self._client.create_run(number, run_name=os.environ.get("MLFLOW_RUN_NAME", name)).info.run_id

    def on_step(self, event: StepTaken) -> None:
        """Log losses, learning rate, gradient norm and duration of a step."""
        self._add(_step_values(event), event.step)

    def on_evaluation(self, event: Evaluated) -> None:
        """Log the metrics."""
        self._add(_metric_values(event), event.step)
        self._send()

    def on_end(self, event: RunEnded) -> None:
        """Send the remaining metrics, and end the MLflow run."""
        if not self._id:  # the run failed before `on_start`
            return
        from mlflow.exceptions import MlflowException

        self._send()
        status = {"failed": "FAILED", "interrupted": "KILLED"}.get(event.outcome, "FINISHED")
        try:
            self._client.set_terminated(self._id, status)
        except MlflowException as error:
            self._report(error)

    def _add(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self._waiting += [Metric(_mlflow_name(name), value, now, step) for name, value in values.items()]
        if len(self._waiting) >= _MLFLOW_BATCH:
            self._send()

    def _send(self) -> None:
        from mlflow.exceptions import MlflowException

        metrics, self._waiting = self._waiting, []
        try:
            for first in range(0, len(metrics), _MLFLOW_BATCH):
                self._client.log_batch(self._id, metrics=metrics[first : first + _MLFLOW_BATCH])
        except MlflowException as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        if not self._reported:
            print(f"warning: mlflow: {_one_line(error)}; MLflow does not have all values of this run", file=sys.stderr)
        self._reported = True


_LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def _stored_id(event: RunStarted, tool: str) -> str | None:
    """The id that a resumed run has in the tool. None for a new run."""
    path = event.folder / IDS_FILE
    if not event.step or not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8")).get(tool)


def _store_id(folder: Path, tool: str, run_id: str) -> None:
    path = folder / IDS_FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known | {tool: run_id}))


def _settings(folder: Path) -> dict[str, Any]:
    """The settings in the `config.yaml` of the run folder. Empty without this file."""
    path = folder / CONFIG_FILE
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings as pairs of a name such as "recipe.seed" and a value."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _mlflow_name(name: str) -> str:
    """The name with "_" in place of characters that MLflow refuses, and of parts such as "." or ".."."""
    parts = (re.sub(r"[^\w\-. :]", "_", part) for part in name.split("/"))
    return "/".join(part if part.strip(".") else "_" for part in parts)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
