"""Extraction: the parts of a dataset through the encoders of a pair, into the feature store.

Every input is decoded once for all encoders of the pair. What is stored already is neither decoded nor encoded, and
no encoder is loaded for it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from krossfuse.core import errors
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, KrossFuseError, check_choice, check_positive
from krossfuse.core.heap import kept_heap
from krossfuse.core.installed import version
from krossfuse.core.lightning import pl
from krossfuse.core.parts import Modality, Part
from krossfuse.core.processes import EndWithParent, end_with_parent
from krossfuse.core.stopping import check_told
from krossfuse.core.trainers import TrainerFactory, quiet
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.base import Encoder, EncoderModule
from krossfuse.encoders.pair import Pair
from krossfuse.features.encoding import ExtractionModule, Prepare
from krossfuse.features.entry import DTYPES, DamagedEntryError
from krossfuse.features.keys import FeatureKey
from krossfuse.features.plan import Together
from krossfuse.features.stores.base import FeatureStore, Writer

log = logging.getLogger(__name__)

Keys = dict[Part, dict[str, FeatureKey]]


def extract(
    data: BaseDataModule,
    pair: Pair,
    store: FeatureStore,
    *,
    trainers: TrainerFactory | None = None,
    trainer: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    dtype: str = "float32",
    progress: bool = True,
    keep_heap: bool = True,
    wait: bool = True,
    loaded: dict[int, EncoderModule] | None = None,
    computed: list[FeatureKey] | None = None,
) -> FeatureBundle:
    """Return the features of all parts of ``data`` under all encoders of ``pair``; compute what the store lacks.

    A job that was killed is taken up at the batch it was in. Several jobs that want the same features share the work:
    one computes, the others wait. A damaged entry is computed anew, with a warning. Features are not normalised, and on
    a CPU their bits depend on neither the batch size nor the number of devices, workers and threads.

    Args:
        data: the dataset.
        pair: the encoders, by role.
        store: where features are kept.
        trainers: makes the Trainer; None = by the options ``trainer``.
        trainer: keyword arguments of ``pytorch_lightning.Trainer``: accelerator, devices, precision, ... On several
            devices each process writes its own rows.
        batch_size: items a batch; None = the dataset's own.
        dtype: of the stored features, ``float32``, ``float16`` or ``bfloat16``.
        progress: whether to show a progress bar.
        keep_heap: keep freed memory for the next batch (:func:`krossfuse.core.heap.kept_heap`).
        wait: for another job that computes some of the same features; False raises BusyError then.
        loaded: by identity, encoders that are loaded already; those that are loaded now join them.
        computed: takes the keys that this call computed.

    Returns:
        The features, memory-mapped.

    Raises:
        ConfigError: a bad value, or a strategy that starts the whole program once a device.
        DataError: an unreadable item, or a feature that is NaN or infinite. What was computed before stays stored.
        StoreError: the store cannot be written.
    """
    check_choice("dtype", dtype, DTYPES)
    size = data.batch_size if batch_size is None else batch_size
    check_positive("batch_size", size, integer=True)
    make_trainer = trainers if trainers is not None else TrainerFactory(trainer)
    keys, together = keys_for(data, pair, make_trainer, size, dtype)
    features, lacking = _read(store, keys)
    if lacking:
        wanted = [key for roles in lacking.values() for key in roles.values()]
        with store.lock(wanted) if wait else store.lock(wanted, wait=False):
            # Another job may have computed them while this one waited.
            _, lacking = _read(store, lacking)
            if lacking:
                if computed is not None:
                    computed += [key for roles in lacking.values() for key in roles.values()]
                with kept_heap(keep_heap):
                    _compute(data, pair, store, lacking, make_trainer, together, dtype, progress, loaded)
        features, lacking = _read(store, keys)
    encoders = {
        role: {"name": encoder.name, "fingerprint": {m: dict(encoder.fingerprint(m)) for m in encoder.modalities}}
        for role, encoder in {**pair.encoders("image"), **pair.encoders("text")}.items()
    }
    return FeatureBundle(info=data.info, pair=pair.name, features=features, encoders=encoders)


def keys_for(
    data: BaseDataModule, pair: Pair, trainers: TrainerFactory, batch_size: int, dtype: str
) -> tuple[Keys, Together]:
    """Return the keys of the features that :func:`extract` returns under the same options, and its blocks."""
    together = Together(trainers.device.type != "cpu", batch_size)
    precision = str(trainers.options.get("precision") or "32-true")  # float32_matmul_precision is set: see device
    return feature_keys(data, pair, dtype=dtype, precision=precision, together=together), together


def feature_keys(
    data: BaseDataModule,
    pair: Pair,
    *,
    dtype: str = "float32",
    precision: str = "32-true",
    together: Together | None = None,
) -> Keys:
    """Return the store's key of each part and role; nothing is loaded but the list of items."""
    precision = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)
    libraries = {"torch": version("torch")}
    by_modality = {"image": {**libraries, "pillow": version("pillow")}, "text": libraries}
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
                    **({} if together is None else together.ingredient),
                },
                {"dataset": data.info.name, "part": data.part_name(part), "encoder": encoder.name},
            )
            for role, encoder in pair.encoders(part.modality).items()
        }
        if roles:
            keys[part] = roles
    return keys


def _read(store: FeatureStore, keys: Keys) -> tuple[dict[Part, dict[str, Tensor]], Keys]:
    """Return what the store has, and the keys that it lacks (or holds damaged)."""
    features: dict[Part, dict[str, Tensor]] = {}
    lacking: Keys = {}
    seen: set[str] = set()
    for part, roles in keys.items():
        for role, key in roles.items():
            try:
                if key in store:
                    features.setdefault(part, {})[role] = store.read(key)
                    continue
            except DamagedEntryError as error:
                log.warning("%s; computing it anew", error)
            if key.digest not in seen:  # two roles may be one encoder
                seen.add(key.digest)
                lacking.setdefault(part, {})[role] = key
    return features, lacking


@dataclass(frozen=True)
class _Work:
    """One part to encode: the writers of the roles that lack it, and the rows of each batch."""

    part: Part
    writers: Mapping[str, Writer]
    batches: Sequence[tuple[int, ...]]


def _compute(
    data: BaseDataModule,
    pair: Pair,
    store: FeatureStore,
    lacking: Keys,
    trainers: TrainerFactory,
    together: Together,
    dtype: str,
    progress: bool,
    loaded: dict[int, EncoderModule] | None = None,
) -> None:
    loaded = {} if loaded is None else loaded

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
            done = (writer.done() for writer in writers.values())
            works.append(_Work(part, writers, together.batches(done, n, part.modality)))
        try:
            _predict(data, [work for work in works if work.batches], modules, trainers, together, progress)
        finally:
            # Also after an error: parts that are whole are kept as such.
            for work in works:
                for writer in work.writers.values():
                    if not writer.missing()[0]:
                        writer.finish()
        unfinished = [str(work.part) for work in works if not all(w.finished for w in work.writers.values())]
        if unfinished:
            raise DataError(f"dataset {data.info.name!r}: the loader gave too few items for {unfinished}")


def _predict(
    data: BaseDataModule,
    works: Sequence[_Work],
    modules: Mapping[Modality, Mapping[str, EncoderModule]],
    trainers: TrainerFactory,
    together: Together,
    progress: bool,
) -> None:
    if not works:
        return
    for work in works:
        rows = sum(map(len, work.batches))
        log.info("encoding %d rows of %s of %s by %s", rows, work.part, data.info.name, list(work.writers))
    module = ExtractionModule(
        modules,
        [work.part.modality for work in works],
        [list(work.writers) for work in works],
        shard=together.shard,
        loaders=partial(_loaders, data, works, modules, together),
    )
    with quiet(), _tokenising_alone():
        trainer = _trainer(trainers, [_StoreWriter(works), *([_Progress(works)] if progress else [])])
        try:
            trainer.predict(module, return_predictions=False)
            check_told()
        except SystemExit:
            if trainer.interrupted:  # Lightning makes an exit of Ctrl-C; the run is to know what it was
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            raise _plain_error(error) from None
        finally:
            module.on_predict_end()


def _loaders(
    data: BaseDataModule,
    works: Sequence[_Work],
    modules: Mapping[Modality, Mapping[str, EncoderModule]],
    together: Together,
    rank: int,
    world: int,
) -> list[Any]:
    """Return the dataloaders of one process: every ``world``-th batch of each part."""
    loaders = []
    for work in works:
        modality = work.part.modality
        prepare = Prepare({role: modules[modality][role] for role in work.writers}, modality, together.block(modality))
        loaders.append(data.loader(work.part, prepare.item, prepare.batch, work.batches[rank::world]))
    return loaders


def _plain_error(error: Exception) -> Exception:
    """Return what went wrong in a process of ours, without the traceback that comes as text around it."""
    if named := re.search(r"\bkrossfuse\.core\.errors\.(\w+): (.*)\Z", str(error), flags=re.DOTALL):
        kind = getattr(errors, named[1], None)
        if isinstance(kind, type) and issubclass(kind, KrossFuseError):
            return kind(named[2].strip())
    if isinstance(error, KrossFuseError):
        return type(error)(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip())
    if killed := re.search(r"DataLoader worker .*(?:killed by signal|exited unexpectedly)[^\n]*", str(error)):
        return DataError(
            f"a process that decodes items ended ({killed[0].strip()}); was there enough memory? What was encoded is "
            "kept: run again, with data.num_workers=0 or fewer workers if it happens again"
        )
    if type(error).__name__ == "ProcessExitedException":
        return DataError(
            f"a process that encodes ended ({error}); was there enough memory? What was encoded is kept: run again, on "
            "fewer devices if it happens again"
        )
    return error


class _StoreWriter(pl.Callback):
    """Writes each batch at its rows, whichever process has it; such a process ends with the one that started it."""

    def __init__(self, works: Sequence[_Work]) -> None:
        self.guard = EndWithParent()
        self.silence = ExitStack()
        self.works = works
        self.process = os.getpid()
        self.pending: tuple[int, Sequence[int], Callable[[], dict[str, Tensor]]] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ask the kernel (again: PyTorch asks for another signal while it starts a process), and be quiet there too."""
        if os.getpid() != self.process:
            end_with_parent()
            self.silence.enter_context(quiet())

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Store the features of the batch before, while those of this one are computed."""
        check_told()
        wait = outputs["features"]
        if pl_module.device.type != "cpu":
            wait = arrival(wait())
        self._flush()
        self.pending = dataloader_idx, batch[0], wait

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store what is still on its way."""
        self._flush()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Store what was encoded before it; what failed itself is left to the next run."""
        with suppress(Exception):
            self._flush()

    def _flush(self) -> None:
        if self.pending is not None:
            loader, rows, wait = self.pending
            self.pending = None
            for role, features in wait().items():
                self.works[loader].writers[role].write(rows, features)


def arrival(outputs: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Begin to copy features from a GPU to this machine's memory, and return what waits until they are there."""
    if not all(features.is_cuda for features in outputs.values()):
        here = {role: features.cpu() for role, features in outputs.items()}
        return lambda: here
    arriving = {
        role: torch.empty(features.shape, dtype=features.dtype, pin_memory=True) for role, features in outputs.items()
    }
    for role, features in outputs.items():
        arriving[role].copy_(features, non_blocking=True)
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def arrived() -> dict[str, Tensor]:
        event.synchronize()
        return arriving

    return arrived


class _Progress(pl.callbacks.TQDMProgressBar):
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


def _trainer(trainers: TrainerFactory, callbacks: list[pl.Callback]) -> pl.Trainer:
    from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher

    def build(**more: Any) -> pl.Trainer:
        fixed = {"use_distributed_sampler": False, "enable_progress_bar": len(callbacks) > 1, **more}
        return trainers(callbacks=callbacks, one_device=False, **fixed)

    trainer = build()
    strategy = trainers.options.get("strategy", "auto")
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
def _tokenising_alone() -> Iterator[None]:
    """Loader processes, which are forked after tokenizers has started threads, tokenise nothing."""
    unset = "TOKENIZERS_PARALLELISM" not in os.environ
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        yield
    finally:
        if unset:
            del os.environ["TOKENIZERS_PARALLELISM"]
