"""The Lightning loop of fusion: batches of stored features, or raw items through frozen encoders, into the method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, check_positive
from krossfuse.core.lightning import pl
from krossfuse.core.parts import Modality, Part
from krossfuse.core.trainers import TrainerFactory, quiet
from krossfuse.encoders.base import EncoderModule
from krossfuse.features.encoding import Streams
from krossfuse.features.plan import SHARD
from krossfuse.fusion.base import Features, FusionMethod
from krossfuse.fusion.batches import Batch, PartRows, RawRows, Source, StoredRows, loader
from krossfuse.fusion.rows import RowError, holds, located, looked_at_once
from krossfuse.fusion.stream import check_encoders, device_of, roles_of, select_roles
from krossfuse.fusion.streaming import EachBatch

BLOCK_ROWS = 4096
"""Rows of stored features fused at a time: 50 MB of 3000 float32 outputs."""


class FusionLoop(pl.LightningModule):
    """A fusion method with its frozen encoders before it: batches in, fused embeddings out.

    What :class:`~krossfuse.fusion.module.FusionModule` is made of: how the rows of a part become batches
    (:meth:`rows`, :meth:`loader`), what a batch becomes (:meth:`features`, :meth:`forward`), and one Lightning loop
    over named parts, whose errors say where the bad row stands.

    Args:
        method: the fusion method.
        encoders: by role, the loaded encoders, frozen here; needed for raw images and texts only.
        trainers: makes every Trainer, the method's own included; None = on the method's device, without a tracker.
        block_rows: rows of stored features fused at a time.

    Raises:
        ConfigError: an encoder has a role that the method does not read, or another dimension than it expects.
    """

    def __init__(
        self,
        method: FusionMethod,
        *,
        encoders: Mapping[str, EncoderModule] | None = None,
        trainers: TrainerFactory | None = None,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        super().__init__()
        check_positive("block_rows", block_rows, integer=True)
        self.method = method
        self.block_rows = block_rows
        self.trainers = trainers
        if trainers is not None:
            for part in method.modules():  # a wrapped method trains as well
                if isinstance(part, FusionMethod):
                    part.trainers = trainers
        check_encoders(method, {role: encoder.dim for role, encoder in (encoders or {}).items()})
        self._roles = list(encoders or {})
        # A list, because a role may hold characters that a ModuleDict refuses.
        self.encoders = nn.ModuleList((encoders or {}).values()).requires_grad_(False).eval()
        self._running: list[tuple[str, PartRows]] = []  # name and rows of each loader, for errors
        self._streams = Streams(SHARD)
        self._fusing = True

    def _loaded(self) -> dict[str, EncoderModule]:
        """Return the loaded encoders by role."""
        return dict(zip(self._roles, self.encoders, strict=True))  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of what was added; encoders and method stay frozen in ``eval`` mode."""
        super().train(mode)
        self.encoders.eval()
        self.method.eval()
        return self

    # Batches

    def rows(self, source: Source, part: Part, label_sets: Iterable[str] = ()) -> PartRows:
        """Return the rows of a part, checked.

        Raises:
            DataError: the part or a label set is not there, or the features do not fit the method.
            ConfigError: an encoder is not loaded.
        """
        where, labels = f"dataset {source.info.name!r}, {part}", {}
        for name in label_sets:
            if name not in source.info.label_sets:
                have = list(source.info.label_sets)
                raise DataError(f"dataset {source.info.name!r} has no label set {name!r}; it has {have}")
            labels[name] = source.info.labels(name, part)
        if isinstance(source, FeatureBundle):
            return StoredRows(part.modality, select_roles(self.method, part.modality, source[part], where), labels)
        if part not in source.parts():
            raise DataError(f"{where} is not there; there are {[str(p) for p in source.parts()]}")
        encoders = self._encoders_of(part.modality)
        return RawRows(part.modality, source.items(part), encoders, labels, source.num_workers)

    def _encoders_of(self, modality: Modality) -> dict[str, EncoderModule]:
        loaded = self._loaded()
        for role in roles_of(self.method.inputs, modality):
            if role not in loaded:
                raise ConfigError(f"no encoder of role {role!r} is loaded; there are {self._roles}")
        return {role: loaded[role] for role in roles_of(self.method.inputs, modality)}

    def loader(
        self,
        source: Source,
        part: Part,
        label_sets: Iterable[str] = (),
        *,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> DataLoader[Batch]:
        """Return the loader of a part's batches.

        Args:
            source: stored features, or raw items.
            part: of the source.
            label_sets: whose labels the batches carry.
            batch_size: rows a batch; None = ``block_rows`` stored ones, or as many raw items as the data module says.
            seed: of the shuffle, another order each epoch; None = in order.

        Raises:
            DataError: see :meth:`rows`.
        """
        return loader(self.rows(source, part, label_sets), batch_size or self._batch_size(source), seed=seed)

    def _batch_size(self, source: Source) -> int:
        return self.block_rows if isinstance(source, FeatureBundle) else source.batch_size

    # The road

    def features(self, batch: Batch) -> Features:
        """Return the batch's features by role: the stored ones, or the encoders' outputs for its inputs."""
        if not batch.inputs:
            return batch.features
        missing = [role for role in batch.inputs if role not in self._roles]
        if missing:
            raise ConfigError(f"no encoder of role {missing} is loaded; there are {self._roles}")
        modules = {role: self._loaded()[role] for role in batch.inputs}
        streams = self._streams if self.device.type == "cpu" else Streams(None)
        with torch.no_grad():
            return streams(batch.modality, modules, batch.inputs)

    def forward(self, batch: Batch) -> Tensor:
        """Return the fused embeddings of a batch, (batch, out_dim).

        Raises:
            DataError: rows that cannot be fused.
        """
        features = self.features(batch)
        alone = len(next(iter(features.values()))) == 1
        if alone:  # a product with one row alone has other last bits on a CPU
            features = {role: x.repeat(2, 1) for role, x in features.items()}

        def fused() -> Tensor:
            out = self.method.encode(batch.modality, features)[: 1 if alone else None]
            total = out.detach().sum(dtype=torch.promote_types(out.dtype, torch.float32))
            # One cheap pass: a finite sum has finite terms only (a sum that overflows is looked at again).
            if not holds(torch.isfinite(total)) and not bool(torch.isfinite(out).all()):
                bad = ~torch.isfinite(out).all(1)
                raise DataError(
                    f"the embeddings of {int(bad.sum())} of {len(bad)} rows leave the range of {out.dtype}, the first "
                    f"at row {batch.first + int(bad.nonzero()[0])}; scale the features, or use a kernel that normalises"
                )
            return out

        return looked_at_once(fused, device_of(self.method))

    @contextmanager
    def encoding(self, device: torch.device) -> Iterator[None]:
        """Keep the threads on which a CPU encodes raw items, where there are encoders."""
        if len(self.encoders):
            self._streams.start(device)
        try:
            yield
        finally:
            self._streams.stop()

    def predict_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> Tensor | Features:
        """Return the fused embeddings of a batch (or its features, while the encoders alone run)."""
        with self._naming(batch, dataloader_idx):
            return self(batch) if self._fusing else self.features(batch)

    @contextmanager
    def _naming(self, batch: Batch, index: int) -> Iterator[None]:
        """Name part and row of the whole part in errors."""
        try:
            yield
        except DataError as error:
            if index >= len(self._running):
                raise
            where, rows = self._running[index]
            if isinstance(error, RowError) and error.role is not None and isinstance(rows, StoredRows):
                raise located(error, where, rows.features[error.role]) or error from None
            at = "" if isinstance(rows, StoredRows) else f" (the batch begins at row {batch.first})"
            raise DataError(f"{where}: {error}{at}") from None

    @contextmanager
    def _run(
        self, running: Sequence[tuple[str, PartRows]], *, log: bool = False, **options: Any
    ) -> Iterator[pl.Trainer]:
        """Yield the Trainer of one Lightning loop over named parts, and put everything back where it was."""
        device = device_of(self.method)
        trainers = self.trainers or TrainerFactory.on(device)
        trainer = trainers(log=log, inference_mode=False, fast_dev_run=False, **options)
        self._running = list(running)
        try:
            with quiet(), self.encoding(trainer.strategy.root_device):
                yield trainer
        except DataError as error:
            # A loader process's error comes with its traceback as text around it.
            raise DataError(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()) from None
        except SystemExit:
            if trainer.interrupted:  # Lightning makes an exit of Ctrl-C; the caller is to know what it was
                raise KeyboardInterrupt from None
            raise
        finally:
            self._running = []
            self.to(device)  # Lightning leaves a module on the CPU

    def _predict(
        self, running: Sequence[tuple[str, PartRows]], batch_size: int, write: Callable[[int, Any], None]
    ) -> None:
        """Send what each batch becomes to ``write(number of the part, outputs)``, in order."""
        loaders = [loader(rows, batch_size) for _, rows in running]
        with self._run(running, callbacks=[EachBatch(write)], limit_predict_batches=1.0) as trainer:
            trainer.predict(self, loaders, return_predictions=False)

    def _named(self, source: Source, parts: Iterable[Part]) -> list[tuple[str, PartRows]]:
        return [(f"dataset {source.info.name!r}, {part}", self.rows(source, part)) for part in parts]
