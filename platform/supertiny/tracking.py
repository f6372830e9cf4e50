"""Metrics by step: a JSON object a line always, and whichever other trackers a config names.

TensorBoard reads `tensorboard --logdir <run_root>`; MLflow and Weights & Biases take server and account from their own environment
variables (`MLFLOW_TRACKING_URI`, `WANDB_MODE`, ...).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from supertiny.errors import ConfigError

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
PROJECT = "supertiny"
"""MLflow's experiment and W&B's project."""
MODULES: dict[TrackerName, str] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""What each tracker needs."""


class Tracker(Protocol):
    """Takes a stage's metrics as they come."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step."""

    def close(self) -> None:
        """Nothing more will be logged."""


class JsonlTracker:
    """Appends `{"step": …, metric: value, …}` lines to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        """Every line is on disk already."""


class TensorBoardTracker:
    """Scalars in TensorBoard's event files; what a killed run logged after `first_step` is hidden."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1, flush_secs=10, filename_suffix=f".{first_step}")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


class MlflowTracker:
    """One MLflow run an attempt, named after the stage."""

    def __init__(self, run: str) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=run)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step."""
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class WandbTracker:
    """One W&B run, which a restarted stage goes on with."""

    def __init__(self, run: str) -> None:
        import wandb

        self._run: Any = wandb.init(project=PROJECT, id=run, name=run, resume="allow")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class MemoryTracker:
    """Keeps the records, for tests."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step."""
        self.records.append({"step": step, **metrics})

    def close(self) -> None:
        """The records stay."""


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step, with each."""
        for tracker in self._trackers:
            tracker.log(metrics, step)

    def close(self) -> None:
        """Close each."""
        for tracker in self._trackers:
            tracker.close()


def open_trackers(names: Sequence[TrackerName], folder: Path, first_step: int = 0) -> Tracker:
    """`metrics.jsonl` and, where named, `tensorboard/` in a stage's folder, and runs of the others named after the folder.

    Args:
        first_step: steps that an earlier attempt has done; what it logged after them is to be forgotten.
    """
    run = run_name(folder)
    others: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            others.append(TensorBoardTracker(folder / "tensorboard", first_step))
        else:
            others.append(MlflowTracker(run) if name == "mlflow" else WandbTracker(run))
    return Trackers([JsonlTracker(folder / "metrics.jsonl"), *others])


def run_name(folder: Path) -> str:
    """What a stage's run is called elsewhere: its name and the start of its key."""
    return folder.name.strip(".").removesuffix(".partial")


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Find out before any work that a tracker is missing.

    Raises:
        ConfigError: with the package that it takes.
    """
    missing = [name for name in names if importlib.util.find_spec(MODULES[name]) is None]
    if missing:
        extras = ",".join(missing)
        raise ConfigError(
            f"trackers: {', '.join(missing)} is not installed; pip install 'supertiny[{extras}]', or leave it out of trackers"
        )
