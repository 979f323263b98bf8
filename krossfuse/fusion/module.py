"""The fusion LightningModule: frozen encoders or their stored features in, fused embeddings and head metrics out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from krossfuse.core.blocks import blocks
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, check_choice
from krossfuse.core.parts import TEST, Modality, Part
from krossfuse.encoders.base import EncoderModule
from krossfuse.fusion.base import Features, FusionMethod
from krossfuse.fusion.stream import (
    BLOCK_ROWS,
    MEMORY_LIMIT,
    RowSink,
    encodable_parts,
    fit_method,
    fuse_bundle,
    part_path,
    roles_of,
    select_roles,
)


class Batch(NamedTuple):
    """One batch of one modality.

    Attributes:
        modality: of its rows.
        features: by role, (batch, dim); empty where ``inputs`` are given.
        inputs: by role, what the encoder of that role takes (images (batch, c, h, w), or tokenised texts).
        labels: by label set, (batch,) int64 with -1 where there is no label.
    """

    modality: Modality
    features: Features = {}  # noqa: RUF012 - never mutated
    inputs: Mapping[str, Any] = {}
    labels: Mapping[str, Tensor] = {}


class FusionModule(pl.LightningModule):
    """A fusion method with its frozen encoders before it and its probe heads behind it.

    ``trainer.predict`` gives fused embeddings, of :class:`Batch` es of stored features or of prepared raw inputs;
    ``trainer.test`` gives the heads' accuracies; :meth:`fuse` streams a whole bundle, in memory or into files.

    Args:
        method: the fusion method; :meth:`fit` fits it, or it comes fitted.
        encoders: by role, the loaded encoders, frozen here; needed for raw images and texts only.
        block_rows: rows of stored features encoded at a time.

    Raises:
        ConfigError: an encoder has a role that the method does not read, or another dimension than it expects.
    """

    def __init__(
        self,
        method: FusionMethod,
        *,
        encoders: Mapping[str, EncoderModule] | None = None,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        super().__init__()
        self.method = method
        self.block_rows = block_rows
        wanted = {**roles_of(method.inputs, "image"), **roles_of(method.inputs, "text")}
        for role, encoder in (encoders or {}).items():
            if role not in wanted:
                raise ConfigError(f"no parent of the fusion has the role {role!r}; its parents are {list(wanted)}")
            if encoder.dim != wanted[role]:
                raise ConfigError(
                    f"the encoder of role {role!r} has {encoder.dim} dimensions, the fusion expects {wanted[role]}"
                )
        self._roles = list(encoders or {})
        # A list, because a role may hold characters that a ModuleDict refuses.
        self.encoders = nn.ModuleList((encoders or {}).values()).requires_grad_(False).eval()
        self.heads = nn.ModuleDict()
        self.metrics = nn.ModuleDict()
        self._reads: dict[str, tuple[Modality, str]] = {}

    def train(self, mode: bool = True) -> FusionModule:
        """Set the mode of everything but the encoders, which stay frozen in ``eval`` mode."""
        super().train(mode)
        self.encoders.eval()
        return self

    def add_head(self, name: str, head: nn.Module, *, label_set: str, modality: Modality = "image") -> None:
        """Add a probe head, which ``trainer.test`` then measures as ``<name>/top1`` and ``<name>/top5``.

        Args:
            name: of the head, without dots.
            head: fused embeddings (batch, out_dim) in, scores (batch, classes) out.
            label_set: the labels that it predicts.
            modality: of the embeddings that it reads.

        Raises:
            ConfigError: the name is taken or has a dot, the modality cannot be encoded, or the head does not take
                ``out_dim`` features.
        """
        if "." in name or name in self.heads:
            raise ConfigError(f"head {name!r}: the name must be new and without dots; there are {list(self.heads)}")
        check_choice("modality", modality, self.method.modalities)
        with torch.no_grad():
            try:
                probe = head(torch.ones(1, self.method.out_dim, device=self.device))
            except RuntimeError as error:
                raise ConfigError(f"head {name!r} does not take {self.method.out_dim} features: {error}") from error
        classes = probe.shape[-1]
        self.heads[name] = head
        self.metrics[name] = MetricCollection(
            {
                f"{name}/top{k}": MulticlassAccuracy(classes, top_k=k, average="micro", ignore_index=-1)
                for k in (1, 5)
                if k < classes
            }
        )
        self._reads[name] = (modality, label_set)

    def fit(self, bundle: FeatureBundle, **options: Any) -> FusionModule:
        """Fit the method on a bundle's training split; the options are those of :func:`stream.fit_method`."""
        fit_method(self.method, bundle, **options)
        return self

    def features(self, batch: Batch) -> Features:
        """Return the batch's features by role: the stored ones, or the encoders' outputs for its inputs."""
        if not batch.inputs:
            return batch.features
        encoders = dict(zip(self._roles, self.encoders, strict=True))
        missing = [role for role in batch.inputs if role not in encoders]
        if missing:
            raise ConfigError(f"no encoder of role {missing} is loaded; there are {self._roles}")
        encoded = {}
        with torch.no_grad():
            for role, given in batch.inputs.items():
                encoder = encoders[role]
                assert isinstance(encoder, EncoderModule)
                encoded[role] = encoder.encode_image(given) if batch.modality == "image" else encoder.encode_text(given)
        return encoded

    def forward(self, batch: Batch) -> Tensor:
        """Return the fused embeddings of a batch, (batch, out_dim)."""
        return self.method.encode(batch.modality, self.features(batch))

    def predict_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> Tensor:
        """Return the fused embeddings of a batch."""
        fused: Tensor = self(batch)
        return fused

    def test_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Update the accuracies of the heads that read this modality and whose labels the batch carries."""
        fused = self(batch)
        for name, (modality, label_set) in self._reads.items():
            if modality != batch.modality or label_set not in batch.labels:
                continue
            metrics = self.metrics[name]
            assert isinstance(metrics, MetricCollection)
            metrics.update(self.heads[name](fused), batch.labels[label_set])
            self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(fused), add_dataloader_idx=False)

    def prepare(self, modality: Modality, items: Sequence[Image] | Sequence[str]) -> Batch:
        """Turn raw RGB images or texts into a batch of encoder inputs; usable as a loader's ``collate_fn``.

        Raises:
            ConfigError: an encoder of this modality is not loaded.
        """
        encoders = dict(zip(self._roles, self.encoders, strict=True))
        inputs: dict[str, Any] = {}
        for role in roles_of(self.method.inputs, modality):
            if role not in encoders:
                raise ConfigError(f"no encoder of role {role!r} is loaded; there are {self._roles}")
            encoder = encoders[role]
            assert isinstance(encoder, EncoderModule)
            if modality == "image":
                inputs[role] = torch.stack([encoder.prepare_image(item) for item in items])  # type: ignore[arg-type]
            else:
                inputs[role] = encoder.prepare_text([str(item) for item in items])
        return Batch(modality, inputs=inputs)

    @torch.no_grad()
    def embed(self, modality: Modality, items: Sequence[Image] | Sequence[str]) -> Tensor:
        """Return the fused embeddings of raw images or texts, end to end, (len(items), out_dim)."""
        batch = self.transfer_batch_to_device(self.prepare(modality, items), self.device, 0)
        fused: Tensor = self(batch)
        return fused

    def loader(self, bundle: FeatureBundle, part: Part, label_sets: Iterable[str] = ()) -> DataLoader[Batch]:
        """Return the loader over the stored features of one part, block by block, in order.

        Raises:
            DataError: the part is not there, or its features do not fit the method.
        """
        features = select_roles(
            self.method, part.modality, bundle[part], f"dataset {bundle.info.name!r}, {part}"
        )  # fmt: skip
        labels = {name: bundle.info.labels(name, part) for name in label_sets}
        return DataLoader(_Blocks(part.modality, features, labels, self.block_rows), batch_size=None, shuffle=False)

    def test_loaders(self, bundle: FeatureBundle, split: str = TEST) -> list[DataLoader[Batch]]:
        """Return the loaders that ``trainer.test`` needs for the heads, one a modality.

        Raises:
            DataError: a head's label set or part is not in the bundle.
        """
        wanted: dict[Modality, set[str]] = {}
        for name, (modality, label_set) in self._reads.items():
            if label_set not in bundle.info.label_sets:
                have = list(bundle.info.label_sets)
                raise DataError(f"head {name!r} reads label set {label_set!r}; {bundle.info.name!r} has {have}")
            wanted.setdefault(modality, set()).add(label_set)
        return [self.loader(bundle, Part(split, modality), sorted(names)) for modality, names in wanted.items()]

    def fuse(
        self,
        bundle: FeatureBundle,
        *,
        parts: Iterable[Part] | None = None,
        trainer_options: Mapping[str, Any] | None = None,
        memory_limit: float = MEMORY_LIMIT,
        folder: Path | str | None = None,
    ) -> dict[Part, Tensor]:
        """Encode the parts of a bundle that the method can encode.

        Args:
            bundle: stored features.
            parts: which; None = all of the method's modalities.
            trainer_options: keyword arguments of a Trainer whose ``predict`` does the work (accelerator, precision,
                progress bar), on one device, so that blocks stay in order; None = the same blocks in a plain loop
                on the method's device, which starts faster and gives the same bits.
            memory_limit: bytes up to which a part stays in memory.
            folder: where larger parts are written as ``.npy`` files; None = temporary files.

        Returns:
            By part, (n, out_dim) on the CPU.

        Raises:
            DataError: the features do not fit the method.
        """
        if trainer_options is None:
            return fuse_bundle(
                self.method, bundle, parts=parts, block_rows=self.block_rows, memory_limit=memory_limit, folder=folder
            )
        chosen = encodable_parts(self.method, bundle, parts)
        sinks = [
            RowSink(len(next(iter(bundle[part].values()))), path=part_path(folder, part), memory_limit=memory_limit)
            for part in chosen
        ]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = pl.Trainer(**{**quiet, **trainer_options, "devices": 1, "callbacks": [_Writer(sinks)]})
        try:
            trainer.predict(self, [self.loader(bundle, part) for part in chosen], return_predictions=False)
            return {part: sink.close() for part, sink in zip(chosen, sinks, strict=True)}
        except BaseException:
            for sink in sinks:
                sink.abandon()
            raise


class _Writer(pl.Callback):
    """Sends each predicted block to the sink of its loader."""

    def __init__(self, sinks: Sequence[RowSink]) -> None:
        self.sinks = sinks

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.sinks[dataloader_idx].write(outputs)


class _Blocks(Dataset[Batch]):
    """Blocks of rows of stored features, read from their memory map when asked for."""

    def __init__(self, modality: Modality, features: Features, labels: Mapping[str, Tensor], size: int) -> None:
        self.modality, self.features, self.labels = modality, features, labels
        self.rows = list(blocks(len(next(iter(features.values()))), size))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        rows = self.rows[index]
        take = partial(_rows, rows=rows)
        return Batch(self.modality, take(self.features), labels=take(self.labels))

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def _rows(tensors: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in tensors.items()}
