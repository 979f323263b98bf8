"""The one road of fusion: stored features, or raw items through frozen encoders, into the method, and on into heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, check_choice, check_positive
from krossfuse.core.parts import TEST, TRAIN, Modality, Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.base import EncoderModule
from krossfuse.fusion.base import Features, FusionMethod
from krossfuse.fusion.batches import Batch, PartRows, RawRows, Source, sizes_of
from krossfuse.fusion.fit import FIT_ROWS, fit_method, subset, training_parts
from krossfuse.fusion.heads import Heads, Loss, Optimisers
from krossfuse.fusion.loop import BLOCK_ROWS, FusionLoop
from krossfuse.fusion.sink import MEMORY_LIMIT, RowSink, Sink
from krossfuse.fusion.stream import device_of, part_path
from krossfuse.fusion.streaming import FusedStream


class FusionModule(FusionLoop):
    """A fusion method with its frozen encoders before it and its heads behind it.

    Every way through it is a Lightning loop over the same :meth:`forward`: a :data:`~krossfuse.fusion.batches.Source`
    is a bundle of stored features, or a data module whose raw items the encoders see on the way.

    * :meth:`fuse`: whole parts, in memory or into files (``trainer.predict``).
    * :meth:`stream`: fused batches with their labels, for whoever trains on embeddings that are never all in memory.
    * :meth:`train_heads`, :meth:`measure_heads`: heads on the fused embeddings (``trainer.fit``, ``trainer.test``);
      encoders and method stay frozen.

    Args:
        method: the fusion method; :meth:`fit` fits it, or it comes fitted.
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
        super().__init__(method, encoders=encoders, trainers=trainers, block_rows=block_rows)
        self.heads = Heads()
        self._training: list[str] = []
        self._optimisers: Optimisers | None = None

    def fuse(
        self,
        source: Source,
        *,
        parts: Iterable[Part] | None = None,
        memory_limit: float = MEMORY_LIMIT,
        folder: Path | str | None = None,
        keep_on_device: bool = False,
    ) -> dict[Part, Tensor]:
        """Fuse the parts that the method can encode, on one device, block after block.

        Args:
            source: stored features, or raw items.
            parts: which; None = all of the method's modalities.
            memory_limit: bytes up to which a part stays in memory.
            folder: where larger parts are written, as ``<split>.<modality>.npy``; None = temporary files.
            keep_on_device: leave what stays in memory on the device that fused it.

        Returns:
            By part, (n, out_dim); on the CPU unless ``keep_on_device``.

        Raises:
            DataError: the features do not fit the method, or a part is not there; all parts are checked first. A row
                that cannot be fused is named with its part.
        """
        chosen = [p for p in sizes_of(source) if p.modality in self.method.modalities] if parts is None else list(parts)
        for part in chosen:
            check_choice("modality", part.modality, self.method.modalities)
        named: dict[str, tuple[PartRows, Sink]] = {}
        for part, (name, rows) in zip(chosen, self._named(source, chosen), strict=True):
            path = part_path(folder, part)
            sink = RowSink(len(rows), path=path, memory_limit=memory_limit, keep_on_device=keep_on_device)
            named[name] = (rows, sink)
        return dict(zip(chosen, self.fill(named, self._batch_size(source)), strict=True))

    def fill(self, named: Mapping[str, tuple[PartRows, Sink]], batch_size: int) -> list[Tensor]:
        """Fuse rows into sinks.

        Args:
            named: by name, for errors, the rows of a part and where they go.
            batch_size: rows at a time.

        Returns:
            What each sink holds.

        Raises:
            DataError: a row that cannot be fused; nothing half-written is left.
        """
        sinks = [sink for _, sink in named.values()]
        running = [(name, rows) for name, (rows, _) in named.items()]
        try:
            self._predict(running, batch_size, lambda part, fused: sinks[part].write(fused))
            return [sink.close() for sink in sinks]
        except BaseException:
            for sink in sinks:
                sink.abandon()
            raise

    def encode_part(self, data: BaseDataModule, part: Part, chosen: Tensor | None = None) -> dict[str, Tensor]:
        """Return by role the features (n, dim) of raw items, in memory.

        Args:
            data: the dataset.
            part: of it.
            chosen: rows; None = all.

        Raises:
            DataError: the part is not there, or an item cannot be read.
            ConfigError: an encoder is not loaded.
        """
        ((name, rows),) = self._named(data, [part])
        assert isinstance(rows, RawRows)
        encoded: dict[str, list[Tensor]] = {}

        def write(_: int, features: Features) -> None:
            for role, x in features.items():
                encoded.setdefault(role, []).append(x.cpu())

        self._fusing = False
        try:
            self._predict([(name, rows if chosen is None else rows.take(chosen))], data.batch_size, write)
        finally:
            self._fusing = True
        return {role: torch.cat(of) for role, of in encoded.items()}

    def fit(
        self, source: Source, *, label_set: str | None = None, max_rows: int | None = FIT_ROWS, seed: int = 0
    ) -> Self:
        """Fit the method on the training split; the options are those of :func:`~krossfuse.fusion.fit.fit_method`.

        Raw training items that the fit does not see (``max_rows``) are not encoded.
        """
        if not isinstance(source, FeatureBundle):
            features: dict[Part, Features] = {}
            for parts in training_parts(self.method, sizes_of(source)).values():
                for part in parts:
                    whole = self.method.trained or part.split != TRAIN
                    rows = None if whole else subset(len(source.items(part)), max_rows, seed)
                    features[part] = self.encode_part(source, part, rows)
            source = FeatureBundle(source.info, "", features)
        fit_method(self.method, source, label_set=label_set, max_rows=max_rows, seed=seed)
        return self

    def stream(
        self,
        source: Source,
        part: Part,
        label_sets: Iterable[str] = (),
        *,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> FusedStream:
        """Return the fused batches of a part with their labels; the arguments are those of :meth:`loader`.

        It can be walked again and again (another order each time where it is shuffled), and be the training loader of
        any Trainer: nothing but a batch is in memory.
        """
        batches = self.loader(source, part, label_sets, batch_size=batch_size, seed=seed)
        return FusedStream(batches, self._fused, self._streaming, dim=self.method.out_dim)

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        home = device_of(self.method)
        device = home if self.trainers is None else self.trainers.device
        self.to(device).eval()
        try:
            with self.encoding(device):
                yield
        finally:
            self.to(home)

    def _fused(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        with torch.no_grad():
            moved = self.transfer_batch_to_device(batch, device_of(self.method), 0)
            return self(moved), moved.labels

    # Heads

    def add_head(
        self,
        name: str,
        head: nn.Module,
        *,
        label_set: str | Sequence[str],
        modality: Modality = "image",
        loss: Loss | None = None,
    ) -> None:
        """Add a head, which :meth:`train_heads` trains and :meth:`measure_heads` measures.

        Args:
            name: of the head, without dots.
            head: fused embeddings (batch, out_dim) in, scores (batch, classes) out.
            label_set: the labels that it predicts; several names where one head predicts several (its ``loss`` is
                then given its scores, whatever they are, and the labels by name; it is not measured here).
            modality: of the embeddings that it reads.
            loss: of a training batch; None = cross-entropy over the items that have a label.

        Raises:
            ConfigError: the name is taken or has a dot, the modality cannot be encoded, the head does not take
                ``out_dim`` features, or several label sets come without a loss.
        """
        check_choice("modality", modality, self.method.modalities)
        device = next(head.parameters(), torch.empty(0, device=device_of(self.method))).device
        with torch.no_grad():
            try:
                scores = head(torch.ones(1, self.method.out_dim, device=device))
            except RuntimeError as error:
                raise ConfigError(f"head {name!r} does not take {self.method.out_dim} features: {error}") from error
        self.heads.add(name, head, label_set=label_set, modality=modality, loss=loss, classes=scores.shape[-1])

    def train_heads(
        self,
        source: Source,
        optimisers: Optimisers,
        *,
        heads: Iterable[str] | None = None,
        split: str = TRAIN,
        epochs: int = 1,
        batch_size: int = 256,
        seed: int = 0,
        **trainer_options: Any,
    ) -> None:
        """Train heads on the fused embeddings of a split as they stream by; encoders and method stay frozen.

        Heads of one modality train together, on the same batches, each with its own loss, which is logged to the run's
        tracker as ``<head>/loss``.

        Args:
            source: stored features, or raw items.
            optimisers: makes the optimiser (and schedule) from the parameters of the heads that train.
            heads: their names; None = all.
            split: to train on.
            epochs: passes over it.
            batch_size: items a step.
            seed: of the order of the batches.
            trainer_options: further options of the Trainer.

        Raises:
            ConfigError: an unknown head.
            DataError: the split or a label set is not there.
        """
        check_positive("epochs", epochs, integer=True)
        check_positive("batch_size", batch_size, integer=True)
        chosen = self.heads.names if heads is None else [check_choice("head", n, self.heads.names) for n in heads]
        for modality, names in self.heads.by_modality(chosen).items():
            self._training, self._optimisers, part = names, optimisers, Part(split, modality)
            batches = self.loader(source, part, self.heads.label_sets(names), batch_size=batch_size, seed=seed)
            options = {"max_epochs": epochs, "num_sanity_val_steps": 0, **trainer_options}
            try:
                with self._run(self._named(source, [part]), log=True, **options) as trainer:
                    trainer.fit(self, batches)
            finally:
                self._training, self._optimisers = [], None
                self.eval()

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Return the sum of the losses of the heads that train."""
        with torch.no_grad(), self._naming(batch, 0):
            fused = self(batch)
        losses = {name: self.heads.loss(name, fused, batch.labels) for name in self._training}
        if self.logger is not None:
            self.log_dict({f"{name}/loss": loss for name, loss in losses.items()}, batch_size=len(fused))
        return torch.stack(list(losses.values())).sum()

    def configure_optimizers(self) -> Any:
        """Return what :meth:`train_heads` was given, over the parameters of its heads."""
        assert self._optimisers is not None
        return self._optimisers([p for name in self._training for p in self.heads.head(name).parameters()])

    def measure_heads(self, source: Source, *, split: str = TEST) -> dict[str, float]:
        """Return ``<head>/top1`` and ``<head>/top5`` of every head on a split.

        Raises:
            DataError: the split or a head's label set is not there.
        """
        measured: dict[str, float] = {}
        for modality, names in self.heads.by_modality(self.heads.measured).items():
            part = Part(split, modality)
            batches = self.loader(source, part, self.heads.label_sets(names))
            with self._run(self._named(source, [part]), limit_test_batches=1.0) as trainer:
                for figures in trainer.test(self, batches, verbose=False):
                    measured |= {name: float(value) for name, value in figures.items()}
        return measured

    def test_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Update the accuracies of the heads that read this modality and whose labels the batch carries."""
        with self._naming(batch, dataloader_idx):
            fused = self(batch)
        for metrics in self.heads.measure(batch.modality, fused, batch.labels):
            self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(fused), add_dataloader_idx=False)
