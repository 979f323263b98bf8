"""A tracker that writes TensorBoard's event files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from krossfuse.core.errors import ConfigError, require
from krossfuse.results.records import Record
from krossfuse.results.trackers.base import Tracker
from krossfuse.results.trackers.contents import best_of, metric_key, records_table

if TYPE_CHECKING:
    import pandas as pd
    from pytorch_lightning.loggers import Logger


class TensorBoardTracker(Tracker):
    """Writes event files into the run folder's ``tensorboard/``: measurements as scalars, tables and texts, pictures.

    Raises:
        ConfigError: ``tensorboard`` is not installed.
    """

    def __init__(self) -> None:
        require("tensorboard", "logger=tensorboard", extra="tensorboard", instead="logger=csv")
        self._folder: Path | None = None
        self._writer: Any = None
        self._records: list[Record] = []

    def start(self, folder: Path, *, name: str, group: str = "", job_type: str = "", tags: Sequence[str] = ()) -> None:
        """Open an event file in ``folder/tensorboard``."""
        from torch.utils.tensorboard import SummaryWriter

        self._records = []
        self._folder = folder / "tensorboard"
        self._writer = SummaryWriter(log_dir=str(self._folder))
        about = {"name": name, "group": group, "job_type": job_type, "tags": " ".join(tags)}
        self._writer.add_text("run", "\n".join(f"* {key}: {value}" for key, value in about.items() if value))

    def _open(self) -> Any:
        if self._writer is None:
            raise ConfigError(
                "the TensorBoard tracker has no open run; use `with tracker.run(folder, config, name=...)`"
            )
        return self._writer

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration as a text of JSON."""
        text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
        self._open().add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))

    def log_records(self, records: Iterable[Record]) -> None:
        """Write measurements as scalars; the table ``records`` holds all of the run when it is finished."""
        records = list(records)
        for record in records:
            self._open().add_scalar(metric_key(record), record.value)
        self._records += records

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a data frame as a text: a table in Markdown."""
        rows = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
        cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
        self._open().add_text(f"table/{name}", "\n".join(f"| {' | '.join(row)} |" for row in cells))

    def log_pictures(self, paths: Iterable[str | Path]) -> None:
        """Write pictures (PNG; other formats are left to the run folder)."""
        from PIL import Image

        for path in map(Path, paths):
            if path.suffix == ".png":
                with Image.open(path) as image:
                    self._open().add_image(path.stem, np.asarray(image.convert("RGB")), dataformats="HWC")

    def finish(self, exit_code: int = 0) -> None:
        """Write the best values, all measurements as one table and the exit code, and close the file."""
        if self._writer is None:
            return
        try:
            for name, value in best_of(self._records).items():
                self._writer.add_scalar(name, value)
            if self._records:
                self.log_table("records", records_table(self._records))
            self._writer.add_scalar("exit_code", exit_code)
        finally:
            writer, self._writer = self._writer, None
            writer.close()

    def lightning_logger(self) -> Logger | Literal[False]:
        """Return Lightning's TensorBoardLogger, writing into ``tensorboard/lightning``."""
        from pytorch_lightning.loggers import TensorBoardLogger

        self._open()
        assert self._folder is not None
        return TensorBoardLogger(save_dir=str(self._folder), name="lightning", version="")
