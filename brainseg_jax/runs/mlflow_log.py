"""Logs a run to MLflow: its config, the rows of its metrics log and its test scores."""

import json
import os
import time
from pathlib import Path

from absl import logging

from brainseg_jax.errors import InputError
from brainseg_jax.files import write_whole
from brainseg_jax.runs.run_folder import flatten

EXPERIMENT = "brainseg_jax"  # name in MLflow; the environment variable MLFLOW_EXPERIMENT_NAME overrides it
_STATUS = {None: "FINISHED", "TrainingStopped": "KILLED", "KeyboardInterrupt": "KILLED"}  # by the exception at the end


class MlflowLog:
    """One MLflow run for one run folder.

    `mlflow.json` in the folder stores its identifier, so that a resumed run continues it.
    If the server does not answer, the training goes on. Unwritten rows are sent at the next epoch or the next start.
    """

    def __init__(self, uri: str, workdir: Path, *, config: dict, rows: list[dict]):
        """Resumes the MLflow run of the run folder or creates one, and writes the missing rows.

        Args:
          uri: a folder, or the address of a tracking server.
          workdir: run folder.
          config: parameters of a new MLflow run.
          rows: rows of the metrics log so far.

        Raises:
          InputError: MLflow is not installed, or cannot use `uri`.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise InputError(f"--mlflow={uri} needs MLflow ({error}): pip install 'brainseg_jax[mlflow]'") from error
        self._uri = uri if "://" in uri else Path(uri).expanduser().absolute().as_uri()
        if self._uri.startswith("file:"):  # MLflow requires this variable for a folder; it prefers databases
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._pending: list[dict] = []
        try:
            self._client = MlflowClient(tracking_uri=self._uri)
            self._run = self._resume(workdir) or self._create(workdir, config)
            history = self._client.get_metric_history(self._run, "train_loss")
        except Exception as error:  # from MLflow, its database or the network
            raise InputError(
                f"--mlflow={uri} cannot be used ({_one_line(error)}); give another one, or leave out --mlflow"
            ) from error
        self._written = {point.step for point in history}
        self.add(rows)

    def add(self, rows: list[dict]) -> None:
        """Writes rows of the metrics log. Skips epochs that MLflow already has."""
        self._pending += [row for row in rows if row["epoch"] not in self._written]
        try:
            while self._pending:
                row = self._pending[0]
                self._log_metrics({key: value for key, value in row.items() if key != "epoch"}, step=row["epoch"])
                self._written.add(self._pending.pop(0)["epoch"])
        except Exception as error:
            logging.warning(
                "%s cannot be written to (%s); the training goes on, and %d epochs are sent later",
                self._uri,
                _one_line(error),
                len(self._pending),
            )

    def close(self, error: str | None, scores: dict) -> None:
        """Ends the MLflow run.

        Args:
          error: name of the exception that ended the run, or None.
          scores: scores of the test patients as in `results.json`; only numbers are written.
        """
        try:
            numbers = {f"test_{key}": value for key, value in scores.items() if isinstance(value, (int, float))}
            self._log_metrics(numbers, step=max(self._written, default=0))
            self._client.set_terminated(self._run, _STATUS.get(error, "FAILED"))
        except Exception as failure:
            logging.warning("%s cannot be written to (%s)", self._uri, _one_line(failure))

    def _resume(self, workdir: Path) -> str | None:
        path = workdir / "mlflow.json"
        stored = json.loads(path.read_text()) if path.exists() else {}
        if stored.get("uri") != self._uri:
            return None
        self._client.update_run(stored["run"], status="RUNNING")
        return stored["run"]

    def _create(self, workdir: Path, config: dict) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        identifier = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run = self._client.create_run(identifier, run_name=workdir.name).info.run_id
        settings = [Param(key, str(value)) for key, value in flatten(config).items()]
        for start in range(0, len(settings), 100):  # the maximum of one MLflow request
            self._client.log_batch(run, params=settings[start : start + 100])
        content = json.dumps({"uri": self._uri, "run": run}) + "\n"
        write_whole(workdir / "mlflow.json", lambda part: part.write_text(content))
        return run

    def _log_metrics(self, values: dict, *, step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(key, float(v), now, step) for key, v in values.items()])


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
