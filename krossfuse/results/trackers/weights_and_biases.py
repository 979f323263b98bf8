"""A tracker that logs to Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.results.records import Record
from krossfuse.results.trackers.artifacts import Artifact, check_kinds
from krossfuse.results.trackers.base import Tracker
from krossfuse.results.trackers.contents import best_of, metric_key, records_table, remembered_id

if TYPE_CHECKING:
    import pandas as pd
    from pytorch_lightning.loggers import Logger


_STAGED = "wandb.sdk.launch.inputs.internal"
"""Where W&B keeps which inputs ``wandb.sdk.launch`` is to manage."""

_LOOK = "_detect_and_apply_job_inputs"
"""What a W&B run looks there with when it begins."""


def _new_id() -> str:
    return secrets.token_hex(4)


@contextmanager
def _no_look_for_staged_inputs() -> Iterator[None]:
    """Keep a run that begins from looking for staged inputs where nobody can have staged any.

    The look imports all of ``wandb.sdk.launch`` and the public API, which takes as long as importing ``wandb``.
    """
    from wandb.sdk.wandb_run import Run

    look = getattr(Run, _LOOK, None)
    if look is None or _STAGED in sys.modules:
        yield
        return
    setattr(Run, _LOOK, lambda self: None)
    try:
        yield
    finally:
        setattr(Run, _LOOK, look)


class WandbTracker(Tracker):
    """Logs to Weights & Biases, one W&B run a job.

    Args:
        mode: ``offline`` (the run lies in the run folder and can be synced later), ``online`` or ``disabled``.
        project: the project's name.
        entity: the account or team, or None for the default one.
        group: or None for the one that the job gives.
        name: or None for the one that the job gives.
        id: of the W&B run that is gone on with; None is a new one, or the one that was begun in the run folder before.
        tags: of every run, beside those that the job gives.
        keep: what a run leaves as artifacts: ``fusion``, ``embeddings``, ``model``.

    Raises:
        ConfigError: no such mode or kind of artifact, or an empty project.
    """

    def __init__(
        self,
        *,
        mode: str = "offline",
        project: str = "krossfuse",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        id: str | None = None,
        tags: Sequence[str] = (),
        keep: Sequence[str] = (),
    ) -> None:
        self.mode = check_choice("logger.mode", mode, ["offline", "online", "disabled"])
        if not isinstance(project, str) or not project:
            raise ConfigError(f"logger.project={project!r} must be a project's name")
        if id is not None and (not isinstance(id, str) or not id or set(id) & set("/\\#?%:")):
            raise ConfigError(rf"logger.id={id!r} must be a W&B run's id, without any of / \ # ? % :")
        if isinstance(tags, str):
            raise ConfigError(f"logger.tags={tags!r} must be a list, e.g. [{tags}]")
        self.project, self.entity, self.group, self.name, self.tags = project, entity, group, name, list(tags)
        self.id, self.keep = id, check_kinds(keep)
        self._run: Any = None
        self._records: list[Record] = []

    def foresee(self) -> None:
        """Start W&B's service, which all runs of a process share, and which takes a quarter of a second."""
        if self.mode == "disabled":
            return
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        wandb.setup()

    def start(self, folder: Path, *, name: str, group: str = "", job_type: str = "", tags: Sequence[str] = ()) -> None:
        """Open a W&B run whose files lie in ``folder/wandb``.

        Raises:
            ConfigError: W&B refuses, e.g. online without an account.
        """
        import wandb

        self._records = []
        os.environ.setdefault("WANDB_SILENT", "true")
        settings = wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            # The working directory is the user's: its code and repository are none of this run's business.
            disable_git=True,
            disable_code=True,
            # A quarter of a second a job; the versions that matter are in every record.
            x_save_requirements=False,
        )
        options: dict[str, Any] = {
            "mode": self.mode,
            "dir": str(folder.absolute()),  # a service that is shared may stand elsewhere
            "project": self.project,
            "entity": self.entity,
            "group": self.group or group or None,
            "name": self.name or name,
            "job_type": job_type or None,
            "tags": list(dict.fromkeys([*self.tags, *tags])),
            "settings": settings,
            # `wandb agent` has a run for each point of its sweep, and says which.
            "id": self.id or os.environ.get("WANDB_RUN_ID") or remembered_id(folder, "wandb", new=_new_id),
            # Offline files of one id are joined when they are synced.
            "resume": "allow" if self.mode == "online" else None,
            "reinit": "create_new",
        }
        try:
            with _no_look_for_staged_inputs():
                try:
                    self._run = wandb.init(**options)
                except wandb.errors.Error:
                    raise
                except Exception:
                    # All runs of a process share one service, which may have died in an earlier run: start another.
                    with suppress(Exception):
                        wandb.teardown()
                    self._run = wandb.init(**options)
        except (wandb.errors.Error, OSError) as error:
            raise ConfigError(
                f"Weights & Biases did not start with logger.mode={self.mode}: {error}"
                " (logger.mode=offline needs no account; logger=csv and logger=none need no W&B)"
            ) from error

    def _open(self) -> Any:
        if self._run is None:
            raise ConfigError("the W&B tracker has no open run; use `with tracker.run(folder, config, name=...)`")
        return self._run

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the configuration as the run's config."""
        self._open().config.update(dict(config))

    def log_records(self, records: Iterable[Record]) -> None:
        """Log measurements as summary values; the table ``records`` holds all of the run when it is finished."""
        records = list(records)
        self._open().summary.update({metric_key(record): record.value for record in records})
        self._records += records

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log a data frame as a ``wandb.Table``."""
        import wandb

        # W&B types a column by its first value, so a column of mixed types is logged as text.
        plain = table.apply(lambda column: column if column.dtype.kind in "ifb" else column.astype(str))
        kinds = [{"i": int, "f": float, "b": bool}.get(dtype.kind, str) for dtype in plain.dtypes]
        # As from a data frame, which W&B looks up cell by cell.
        rows = plain.astype(object).to_numpy().tolist()
        self._open().log({name: wandb.Table(columns=list(plain.columns), data=rows, dtype=kinds)})

    def log_pictures(self, paths: Iterable[str | Path]) -> None:
        """Log pictures as images (PNG; other formats are left to the run folder)."""
        import wandb

        images = {Path(path).stem: wandb.Image(str(path)) for path in paths if Path(path).suffix == ".png"}
        if images:
            self._open().log(images)

    def log_artifact(self, artifact: Artifact) -> None:
        """Log files as a W&B artifact, whose metadata hold the keys of the features that it was made from.

        Online these features are an artifact too, by its keys alone, which the run is said to have used: so W&B's graph
        joins all that was made from the same features. Offline W&B records no such use.
        """
        import wandb

        made = wandb.Artifact(artifact.name, artifact.kind, metadata={**artifact.about, "features": artifact.features})
        if artifact.path.is_dir():
            made.add_dir(str(artifact.path), policy="immutable")
        else:
            made.add_file(str(artifact.path), policy="immutable")
        run = self._open()
        run.log_artifact(made)
        if self.mode == "online" and artifact.features:
            run.use_artifact(_features(artifact))

    def finish(self, exit_code: int = 0) -> None:
        """Log the best values and all measurements as one table, and close the W&B run with the exit code."""
        if self._run is None:
            return
        try:
            # W&B keeps the last table of a name only, so it is logged once, when all of it is there.
            if self._records:
                self._open().summary.update(best_of(self._records))
                self.log_table("records", records_table(self._records))
        finally:
            run, self._run = self._run, None
            run.finish(exit_code=exit_code)

    def lightning_logger(self) -> Logger | Literal[False]:
        """Return Lightning's WandbLogger over the open run."""
        from pytorch_lightning.loggers import WandbLogger

        return WandbLogger(experiment=self._open())


def _features(artifact: Artifact) -> Any:
    """Return the artifact that stands for stored features: their keys, not their rows."""
    import wandb

    text = json.dumps(artifact.features, sort_keys=True, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    features = wandb.Artifact(f"features-{digest}", "features", metadata={"keys": artifact.features})
    with features.new_file("keys.json") as stream:
        stream.write(text)
    return features
