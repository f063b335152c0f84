"""MLflow, on request: the figures of every epoch, on a server of one's own or in a local database."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from medseg.errors import MissingDependency, UsageError
from medseg.files import write_json

__all__ = ["Tracking"]

EXPERIMENT = "medseg"
_NOT_ALLOWED = re.compile(r"[^\w\-. :/]")
_logger = logging.getLogger("medseg.training")


class Tracking:
    """One run of MLflow for one output folder; a resumed training goes on in the same one.

    A server that stops answering does not stop the training: what it missed follows with the next epoch.

    Parameters
    ----------
    uri
        ``http://host:port`` of a server, or ``sqlite:///path/mlflow.db``.
    folder
        Output folder of the training; keeps the run's id in ``mlflow.json``, and gives the run its name.

    Raises
    ------
    MissingDependency
        Without the extra ``tracking``.
    UsageError
        If there is no answer at ``uri``.
    """

    def __init__(self, uri: str, folder: str | PathLike[str]) -> None:
        # no word to the outside from a hospital's network, and no minutes of waiting for a server that is down
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise MissingDependency("mlflow", "tracking", "tracking with MLflow") from error
        self._file = Path(folder) / "mlflow.json"
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._run = self._known_run() or self._new_run()
            self._logged = int(self._client.get_run(self._run).data.metrics.get("epoch", 0))
        except Exception as error:  # MLflow, SQLAlchemy and requests each have their own
            raise UsageError(
                f"MLflow does not work with {uri!r} ({error}); expected http://host:port of a running server or "
                "sqlite:///path/mlflow.db; correct the setting mlflow, or leave it out"
            ) from error

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Add the epochs that are not there yet; ``rows`` are all rows of ``metrics.csv``."""
        from mlflow.entities import Metric

        for row in (row for row in rows if row["epoch"] > self._logged):
            now, step = int(time.time() * 1000), int(row["epoch"])
            metrics = [Metric(_NOT_ALLOWED.sub("_", name), float(value), now, step) for name, value in row.items()]
            if not self._attempt(self._client.log_batch, self._run, metrics):
                return
            self._logged = step

    def close(self, status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
        """Mark the run as finished, as stopped before its end, or as failed."""
        self._attempt(self._client.set_terminated, self._run, status)

    def _attempt(self, call: Any, *arguments: Any) -> bool:
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001  whatever it is, hours of training are worth more
            _logger.warning("MLflow did not take the figures (%s); the training goes on, metrics.csv has them", error)
            return False
        return True

    def _known_run(self) -> str | None:
        from mlflow import MlflowException

        if not self._file.is_file():
            return None
        run = str(json.loads(self._file.read_text(encoding="utf-8"))["run_id"])
        try:
            self._client.update_run(run, "RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # it was kept somewhere else
        return run

    def _new_run(self) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        run = str(self._client.create_run(number, run_name=self._file.parent.name).info.run_id)
        for name, value in _settings(self._file.with_name("run.json")).items():
            self._client.log_param(run, _NOT_ALLOWED.sub("_", name), value)
        write_json(self._file, {"run_id": run})
        return run


def _settings(record: Path) -> dict[str, Any]:
    """What was set for this run, from its ``run.json``; nothing if MONAI runs the bundle by itself."""
    if not record.is_file():
        return {}
    content = json.loads(record.read_text(encoding="utf-8"))
    given = {name: value for name, value in content["overrides"].items() if name != "mlflow"}
    return {"bundle": content["bundle"]["name"], "bundle version": content["bundle"]["version"], **given}
