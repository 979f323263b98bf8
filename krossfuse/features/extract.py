"""Extraction: the parts of a dataset through the encoders of a pair, into the feature store.

Every input is decoded once for all encoders of the pair. What is stored already is neither decoded nor encoded, and
no encoder is loaded for it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter, TQDMProgressBar
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.parts import Modality, Part
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.base import Encoder, EncoderModule
from krossfuse.encoders.pair import Pair
from krossfuse.features.store import DTYPES, DamagedEntryError, FeatureKey, FeatureStore, FeatureWriter

log = logging.getLogger(__name__)

_SHARD = 8
"""Rows that one CPU thread encodes at a time: few, so that activations stay in its cache; a constant, so that what is
encoded together does not depend on the number of cores."""

Keys = dict[Part, dict[str, FeatureKey]]


def extract(
    data: BaseDataModule,
    pair: Pair,
    store: FeatureStore,
    *,
    trainer: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    dtype: str = "float32",
    progress: bool = True,
) -> FeatureBundle:
    """Return the features of all parts of ``data`` under all encoders of ``pair``; compute what the store lacks.

    A job that was killed is taken up at the batch it was in. Several jobs that want the same features share the work:
    one computes, the others wait. A damaged entry is computed anew, with a warning. Features are not normalised.

    Args:
        data: the dataset.
        pair: the encoders, by role.
        store: where features are kept.
        trainer: keyword arguments of ``pytorch_lightning.Trainer``: accelerator, devices, precision, ... On several
            devices each process writes its own rows, so the result does not depend on their number.
        batch_size: items a batch; None = the dataset's own.
        dtype: of the stored features, ``float32`` or ``float16``.
        progress: whether to show a progress bar.

    Returns:
        The features, memory-mapped.

    Raises:
        ConfigError: a bad value, or a strategy that starts the whole program once a device.
        DataError: an unreadable item, or a feature that is NaN or infinite. What was computed before stays stored.
        StoreError: the store cannot be written.
    """
    check_choice("dtype", dtype, DTYPES)
    options = dict(trainer or {})
    if batch_size is not None:
        check_positive("batch_size", batch_size, integer=True)
        data.batch_size = batch_size
    keys = feature_keys(data, pair, dtype=dtype, precision=str(options.get("precision") or "32-true"))
    features, lacking = _read(store, keys)
    if lacking:
        wanted = [key for roles in lacking.values() for key in roles.values()]
        with store.lock(wanted):
            # Another job may have computed them while this one waited.
            _, lacking = _read(store, lacking)
            if lacking:
                _compute(data, pair, store, lacking, options, dtype, progress)
        features, lacking = _read(store, keys)
    encoders = {
        role: {"name": encoder.name, "fingerprint": {m: dict(encoder.fingerprint(m)) for m in encoder.modalities}}
        for role, encoder in {**pair.encoders("image"), **pair.encoders("text")}.items()
    }
    return FeatureBundle(info=data.info, pair=pair.name, features=features, encoders=encoders)


def feature_keys(data: BaseDataModule, pair: Pair, *, dtype: str = "float32", precision: str = "32-true") -> Keys:
    """Return the store's key of each part and role; nothing is loaded but the list of items."""
    precision = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)
    libraries = {"torch": metadata.version("torch")}
    by_modality = {"image": {**libraries, "pillow": metadata.version("pillow")}, "text": libraries}
    keys: Keys = {}
    for part in data.parts():
        items = data.part_fingerprint(part)
        roles = {
            role: FeatureKey(
                {
                    "items": items,
                    "modality": part.modality,
                    "encoder": encoder.fingerprint(part.modality),
                    "dtype": dtype,
                    "normalisation": "none",
                    "precision": precision,
                    "float32_matmul_precision": torch.get_float32_matmul_precision(),
                    "libraries": by_modality[part.modality],
                },
                {"dataset": data.info.name, "part": str(part), "encoder": encoder.name},
            )
            for role, encoder in pair.encoders(part.modality).items()
        }
        if roles:
            keys[part] = roles
    return keys


def _read(store: FeatureStore, keys: Keys) -> tuple[dict[Part, dict[str, Tensor]], Keys]:
    """Return what the store has, and the keys that it lacks (or holds damaged)."""
    found: dict[Part, dict[str, Tensor]] = {}
    lacking: Keys = {}
    seen: set[str] = set()
    for part, roles in keys.items():
        for role, key in roles.items():
            try:
                if key in store:
                    found.setdefault(part, {})[role] = store.read(key)
                    continue
            except DamagedEntryError as error:
                log.warning("%s; computing it anew", error)
            if key.digest not in seen:  # two roles may be one encoder
                seen.add(key.digest)
                lacking.setdefault(part, {})[role] = key
    return found, lacking


@dataclass(frozen=True)
class _Work:
    """One part to encode: the writers of the roles that lack it, from row ``skip`` on."""

    part: Part
    writers: Mapping[str, FeatureWriter]
    skip: int


def _compute(
    data: BaseDataModule,
    pair: Pair,
    store: FeatureStore,
    lacking: Keys,
    options: Mapping[str, Any],
    dtype: str,
    progress: bool,
) -> None:
    loaded: dict[int, EncoderModule] = {}

    def load(encoder: Encoder) -> EncoderModule:
        if id(encoder) not in loaded:
            loaded[id(encoder)] = encoder.load().eval().requires_grad_(False)
        return loaded[id(encoder)]

    modules: dict[Modality, dict[str, EncoderModule]] = {}
    for part, keys in lacking.items():
        encoders = pair.encoders(part.modality)
        modules.setdefault(part.modality, {}).update({role: load(encoders[role]) for role in keys})

    with ExitStack() as stack:
        works = []
        for part, keys in lacking.items():
            n = len(data.items(part))
            if n == 0:
                raise DataError(f"dataset {data.info.name!r}: {part} is empty; there is nothing to encode")
            writers = {}
            for role, key in keys.items():
                writer = store.writer(key, rows=n, dim=modules[part.modality][role].dim, dtype=dtype)
                stack.callback(writer.close)
                writers[role] = writer
            works.append(_Work(part, writers, _resume_at(writers.values(), data.batch_size)))
        try:
            _predict(data, [work for work in works if not _complete(work)], modules, options, progress)
        finally:
            # Also after an error: parts that are whole are kept as such.
            for work in works:
                for writer in work.writers.values():
                    if writer.done().all():
                        writer.finish()
        unfinished = [str(work.part) for work in works if not _complete(work)]
        if unfinished:
            raise DataError(f"dataset {data.info.name!r}: the loader gave too few items for {unfinished}")


def _complete(work: _Work) -> bool:
    return all(writer.finished or bool(writer.done().all()) for writer in work.writers.values())


def _resume_at(writers: Iterable[FeatureWriter], batch_size: int) -> int:
    """Return the first row of the first batch that is not whole, so that the batches are those of a first run."""
    first = min((int(np.argmin(done)) if not done.all() else len(done)) for done in (w.done() for w in writers))
    return first - first % batch_size


def _predict(
    data: BaseDataModule,
    works: Sequence[_Work],
    modules: Mapping[Modality, Mapping[str, EncoderModule]],
    options: Mapping[str, Any],
    progress: bool,
) -> None:
    if not works:
        return
    loaders = []
    for work in works:
        prepare = _Prepare({role: modules[work.part.modality][role] for role in work.writers}, work.part.modality)
        data.select(work.part, prepare.item, prepare.batch, work.skip)
        loaders.append(data.predict_dataloader())
        log.info("encoding %s of %s by %s from row %d", work.part, data.info.name, list(work.writers), work.skip)
    module = ExtractionModule(modules, [work.part.modality for work in works], [list(w.writers) for w in works])
    with _quiet():
        trainer = _trainer(options, [_StoreWriter(works), *([_Progress(works)] if progress else [])])
        try:
            trainer.predict(module, dataloaders=loaders, return_predictions=False)
        except DataError as error:
            # A loader process's error comes with its traceback as text around it.
            told = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
            raise type(error)(told) from None
        except SystemExit:
            if trainer.interrupted:  # Lightning makes an exit of Ctrl-C; the run is to know what it was
                raise KeyboardInterrupt from None
            raise
        finally:
            module.on_predict_end()


class _Prepare:
    """Decoded item → inputs of all encoders (in loader workers), texts → tokens of all encoders."""

    def __init__(self, modules: Mapping[str, EncoderModule], modality: Modality) -> None:
        self.modules, self.modality = dict(modules), modality

    def item(self, item: Any) -> Any:
        if self.modality == "text":
            return item
        return {role: module.prepare_image(item) for role, module in self.modules.items()}

    def batch(self, items: list[Any]) -> dict[str, Any]:
        if self.modality == "text":
            return {role: dict(module.prepare_text(items)) for role, module in self.modules.items()}
        return {role: torch.stack([item[role] for item in items]) for role in self.modules}


class ExtractionModule(pl.LightningModule):
    """Frozen encoders; ``predict_step`` runs on each batch those that lack its part.

    On a CPU with several cores the rows of a batch go to one thread a core: small networks use two cores far better as
    two streams than as one stream whose every operation is split. Images are handed over channels-last, which
    convolutions on a CPU and half-precision ones on a GPU are fastest in.

    Args:
        modules: by modality and role, the loaded encoders.
        modalities: modality of each dataloader.
        roles: roles to run for each dataloader.
    """

    def __init__(
        self,
        modules: Mapping[Modality, Mapping[str, EncoderModule]],
        modalities: Sequence[Modality],
        roles: Sequence[Sequence[str]],
    ) -> None:
        super().__init__()
        self._modules_of = {modality: dict(of) for modality, of in modules.items()}
        self._modalities, self._roles = list(modalities), [list(names) for names in roles]
        # Registered without names, since a role may be called anything.
        self.encoders = nn.ModuleList({id(m): m for of in modules.values() for m in of.values()}.values())
        self._pool: ThreadPoolExecutor | None = None
        self._threads = 1

    def on_predict_start(self) -> None:
        """Start the CPU streams."""
        self._threads = torch.get_num_threads()
        if self.device.type == "cpu" and self._threads > 1 and not torch.is_autocast_enabled("cpu"):
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))

    def on_predict_end(self) -> None:
        """Stop the CPU streams; harmless when there are none."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            torch.set_num_threads(self._threads)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Encode one batch.

        Returns:
            By role, (batch, dim) float.
        """
        modality = self._modalities[dataloader_idx]
        encode = {role: _encode(self._modules_of[modality][role], modality) for role in self._roles[dataloader_idx]}
        if self._pool is None:
            return {role: run(batch[role]) for role, run in encode.items()}
        shards = {role: _shards(batch[role]) for role in encode}
        jobs = {role: [self._pool.submit(_inference, encode[role], s) for s in shards[role]] for role in encode}
        return {role: torch.cat([job.result() for job in jobs[role]]) for role in encode}


def _encode(module: EncoderModule, modality: Modality) -> Callable[[Any], Tensor]:
    if modality == "text":
        return module.encode_text
    return lambda images: module.encode_image(images.contiguous(memory_format=torch.channels_last))


def _inference(run: Callable[[Any], Tensor], inputs: Any) -> Tensor:
    with torch.inference_mode():  # a setting of each thread
        return run(inputs)


def _shards(inputs: Any) -> list[Any]:
    if isinstance(inputs, Tensor):
        return list(torch.split(inputs, _SHARD))
    split = {name: torch.split(tensor, _SHARD) for name, tensor in inputs.items()}
    return [dict(zip(split, tensors, strict=True)) for tensors in zip(*split.values(), strict=True)]


class _StoreWriter(BasePredictionWriter):
    """Writes each batch at its rows, whichever process has it."""

    def __init__(self, works: Sequence[_Work]) -> None:
        super().__init__("batch")
        self.works = works

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Mapping[str, Tensor],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        work = self.works[dataloader_idx]
        assert batch_indices is not None
        rows = np.asarray(batch_indices) + work.skip
        for role, features in prediction.items():
            work.writers[role].write(rows, features)


class _Progress(TQDMProgressBar):
    """One bar, which says which part is being encoded by what."""

    def __init__(self, works: Sequence[_Work]) -> None:
        super().__init__()
        self.works = works

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_predict_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        work = self.works[dataloader_idx]
        self.predict_progress_bar.set_description(f"{work.part} -> {', '.join(work.writers)}")


def _trainer(options: Mapping[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
    def build(**more: Any) -> pl.Trainer:
        fixed = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "callbacks": callbacks}
        try:
            return pl.Trainer(**{**options, **fixed, **more}, enable_progress_bar=len(callbacks) > 1)
        except Exception as error:  # Lightning's own MisconfigurationException is a plain Exception
            raise ConfigError(f"trainer={dict(options)}: {error}") from error

    trainer = build()
    strategy = options.get("strategy", "auto")
    if trainer.world_size > 1 and strategy == "auto" and trainer.num_nodes == 1:
        # Processes that end with the extraction, instead of copies of the whole program.
        trainer = build(strategy="ddp_spawn")
    if trainer.world_size > 1 and not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ConfigError(
            f"trainer.strategy={strategy!r} on {trainer.num_nodes} node(s) runs the whole program once a device; "
            "extraction needs strategy=auto or ddp_spawn on one node"
        )
    return trainer


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's remarks on hardware and loaders, which a user of features can do nothing about."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    # Loader processes, which are forked after tokenizers has started threads, tokenise nothing.
    unset = "TOKENIZERS_PARALLELISM" not in os.environ
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            yield
    finally:
        if unset:
            del os.environ["TOKENIZERS_PARALLELISM"]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
