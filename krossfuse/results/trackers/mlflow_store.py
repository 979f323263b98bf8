"""A tracker that logs to MLflow: its server, or the SQLite file that needs none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from krossfuse.core.errors import ConfigError, require
from krossfuse.results.records import Record
from krossfuse.results.trackers.artifacts import Artifact, check_kinds
from krossfuse.results.trackers.base import Tracker
from krossfuse.results.trackers.contents import best_of, leaves, metric_key, records_table, remembered_id

if TYPE_CHECKING:
    import pandas as pd
    from pytorch_lightning.loggers import Logger

BATCH = 100
"""Parameters that MLflow takes at a time."""
LONGEST = 6000
"""Characters of a parameter's value; MLflow refuses more. The whole configuration is the artifact config.json."""


def mlflow_key(name: str) -> str:
    """Return a name in the letters that MLflow admits.

    >>> mlflow_key("few_shot/accuracy/image/shots=4/form=I+T")
    'few_shot/accuracy/image/shots:4/form:I_T'
    """
    return re.sub(r"[^\w\-. :/]", "_", name.replace("=", ":"))


class MlflowTracker(Tracker):
    """Logs to MLflow, one MLflow run a job; a sweep is its runs' tag ``group``.

    Args:
        tracking_uri: an MLflow server's, or ``sqlite:///<file>``.
        experiment: the experiment's name; it is made where it is missing.
        artifacts: folder or URI of a new experiment's tables and pictures; None is what the server says, and beside
            the SQLite file.
        run_id: of the MLflow run that is gone on with; None is a new one, or the one begun in the run folder before.
        keep: what a run leaves as artifacts: ``fusion``, ``embeddings``, ``model``.

    Raises:
        ConfigError: ``mlflow`` is not installed, or a value is empty.
    """

    def __init__(
        self,
        *,
        tracking_uri: str,
        experiment: str = "krossfuse",
        artifacts: str | None = None,
        run_id: str | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        for name, value in (("tracking_uri", tracking_uri), ("experiment", experiment)):
            if not isinstance(value, str) or not value:
                raise ConfigError(f"logger.{name}={value!r} must be a text that is not empty")
        self.keep = check_kinds(keep)
        require("mlflow", "logger=mlflow", extra="mlflow", instead="logger=csv")
        self.tracking_uri, self.experiment, self.artifacts, self.run_id = tracking_uri, experiment, artifacts, run_id
        self._client: Any = None
        self._run = ""
        self._records: list[Record] = []

    def start(self, folder: Path, *, name: str, group: str = "", job_type: str = "", tags: Sequence[str] = ()) -> None:
        """Open an MLflow run.

        Raises:
            ConfigError: the store cannot be reached, or has no run of that id.
        """
        from mlflow.tracking import MlflowClient

        self._records = []
        if self.tracking_uri.startswith("sqlite:///"):
            Path(self.tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        try:
            client = MlflowClient(tracking_uri=self.tracking_uri)
            experiment = self._experiment(client)
            about = {"group": group, "job_type": job_type} | {f"tag.{mlflow_key(tag)}": "true" for tag in tags}

            def new() -> str:
                made = client.create_run(experiment, tags={k: v for k, v in about.items() if v}, run_name=name)
                return str(made.info.run_id)

            self._run = self.run_id or remembered_id(folder, f"mlflow {self.tracking_uri}", new=new)
            client.update_run(self._run, status="RUNNING", name=name)
        except Exception as error:  # the store's own, a database's or the network's
            raise ConfigError(
                f"MLflow did not start with logger.tracking_uri={self.tracking_uri}: {error}"
                " (logger.tracking_uri=sqlite:///FILE needs no server)"
            ) from error
        self._client = client

    def _experiment(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        for _ in range(2):
            known = client.get_experiment_by_name(self.experiment)
            if known is not None:
                return str(known.experiment_id)
            try:
                return str(client.create_experiment(self.experiment, artifact_location=self._artifacts()))
            except MlflowException as error:  # another job of the sweep was faster
                failure = error
        raise failure

    def _artifacts(self) -> str | None:
        if self.artifacts is not None:
            return self.artifacts if "://" in self.artifacts else Path(self.artifacts).resolve().as_uri()
        if self.tracking_uri.startswith("sqlite:///"):
            file = Path(self.tracking_uri.removeprefix("sqlite:///")).resolve()
            return (file.parent / "mlflow-artifacts").as_uri()
        return None

    def _open(self) -> Any:
        if self._client is None:
            raise ConfigError("the MLflow tracker has no open run; use `with tracker.run(folder, config, name=...)`")
        return self._client

    def _metrics(self, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now, client = get_current_time_millis(), self._open()
        metrics = [Metric(mlflow_key(name), value, now, 0) for name, value in values.items()]
        for start in range(0, len(metrics), BATCH):
            client.log_batch(self._run, metrics=metrics[start : start + BATCH])

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the leaves of the configuration as parameters, and all of it as ``config.json``."""
        from mlflow.entities import Param

        client = self._open()
        # Parameters cannot be changed: a run that is gone on with keeps those that it has.
        known = client.get_run(self._run).data.params
        params = [(mlflow_key(key), str(value)[:LONGEST]) for key, value in leaves(config)]
        new = [Param(key, value) for key, value in params if key not in known]
        for start in range(0, len(new), BATCH):
            client.log_batch(self._run, params=new[start : start + BATCH])
        client.log_dict(self._run, dict(config), "config.json")

    def log_records(self, records: Iterable[Record]) -> None:
        """Log measurements as metrics; the artifact ``records.json`` holds all of the run when it is finished."""
        records = list(records)
        self._metrics({metric_key(record): record.value for record in records})
        self._records += records

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log a data frame as the table artifact ``<name>.json``."""
        # A later table of a name would be appended to the earlier one's rows by MlflowClient.log_table.
        self._open().log_text(self._run, table.to_json(orient="split", index=False), f"{name}.json")

    def log_pictures(self, paths: Iterable[str | Path]) -> None:
        """Log pictures as artifacts."""
        for path in paths:
            self._open().log_artifact(self._run, str(path))

    def log_artifact(self, artifact: Artifact) -> None:
        """Log files below ``<kind>/``, with ``about.json``: how they were made, and from which stored features."""
        client = self._open()
        if artifact.path.is_dir():
            client.log_artifacts(self._run, str(artifact.path), artifact.kind)
        else:
            client.log_artifact(self._run, str(artifact.path), artifact.kind)
        about = {"name": artifact.name, **artifact.about, "features": artifact.features}
        client.log_dict(self._run, about, f"{artifact.kind}/{artifact.name}.json")

    def finish(self, exit_code: int = 0) -> None:
        """Log the best values and all measurements as one table, and end the run: FINISHED or FAILED."""
        if self._client is None:
            return
        try:
            if self._records:
                self._metrics(best_of(self._records))
                self.log_table("records", records_table(self._records))
        finally:
            client, self._client = self._client, None
            client.set_terminated(self._run, status="FAILED" if exit_code else "FINISHED")

    def lightning_logger(self) -> Logger | Literal[False]:
        """Return Lightning's MLFlowLogger over the open run."""
        from pytorch_lightning.loggers import MLFlowLogger

        self._open()
        return MLFlowLogger(experiment_name=self.experiment, tracking_uri=self.tracking_uri, run_id=self._run)
