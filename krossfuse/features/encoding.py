"""Frozen encoders as a LightningModule: batches of prepared items in, features out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from krossfuse.core.blocks import blocks
from krossfuse.core.lightning import pl
from krossfuse.core.parts import Modality
from krossfuse.encoders.base import EncoderModule

Batch = tuple[Sequence[int], Mapping[str, Any]]
"""Row numbers, and by role the prepared inputs."""


class Prepare:
    """Decoded item → inputs of all encoders (in loader workers), texts → tokens of all encoders.

    Args:
        modules: by role, the loaded encoders.
        modality: what they are given.
        block: number of texts that are padded together.
    """

    def __init__(self, modules: Mapping[str, EncoderModule], modality: Modality, block: int) -> None:
        self.modules, self.modality, self.block = dict(modules), modality, block

    def item(self, item: Any) -> Any:
        """Prepare one item."""
        if self.modality == "text":
            return item
        return {role: module.prepare_image(item) for role, module in self.modules.items()}

    def batch(self, items: list[Any]) -> dict[str, Any]:
        """Return by role (batch, channels, height, width) images, or the tokens of each block of texts."""
        if self.modality == "text":
            texts = [items[block] for block in blocks(len(items), self.block)]
            return {role: [dict(module.prepare_text(of)) for of in texts] for role, module in self.modules.items()}
        # In a loader's worker into the memory that it shares, so that nothing is copied once more.
        return {role: default_collate([item[role] for item in items]) for role in self.modules}


class Streams:
    """Prepared inputs through frozen encoders, a few rows at a time, on a CPU with several cores one thread a core.

    Small networks use two cores far better as two streams than as one stream whose every operation is split, and what
    runs on one thread has the same bits on any number of them. Images are handed over channels-last, which convolutions
    on a CPU and half-precision ones on a GPU are fastest in.

    Args:
        shard: rows of one forward pass; None = all that are prepared together.
    """

    def __init__(self, shard: int | None) -> None:
        self._shard = shard
        self._pool: ThreadPoolExecutor | None = None

    def start(self, device: torch.device) -> None:
        """Start the threads, if the device is a CPU with several cores."""
        threads = torch.get_num_threads()
        if device.type == "cpu" and threads > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def stop(self) -> None:
        """Stop the threads; harmless when there are none."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __call__(
        self, modality: Modality, modules: Mapping[str, EncoderModule], inputs: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Return by role the features (batch, dim) of the inputs that :class:`Prepare` made, of all ``modules``."""
        return self.begin(modality, modules, inputs)()

    def begin(
        self, modality: Modality, modules: Mapping[str, EncoderModule], inputs: Mapping[str, Any]
    ) -> Callable[[], dict[str, Tensor]]:
        """Hand the inputs to the threads, if there are any, and return what waits for the features."""
        encode = {role: _encode(module, modality) for role, module in modules.items()}
        shards = {role: _shards(inputs[role], self._shard) for role in encode}
        if self._pool is None:
            features = {role: torch.cat([run(shard) for shard in shards[role]]) for role, run in encode.items()}
            return lambda: features
        mixed = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        jobs = {role: [self._pool.submit(_in_thread, encode[role], s, mixed) for s in shards[role]] for role in encode}
        return lambda: {role: torch.cat([job.result() for job in jobs[role]]) for role in encode}


class ExtractionModule(pl.LightningModule):
    """Frozen encoders; ``predict_step`` runs on each batch those that lack its part, as :class:`Streams`.

    Args:
        modules: by modality and role, the loaded encoders.
        modalities: modality of each dataloader.
        roles: roles to run for each dataloader.
        shard: rows of one forward pass.
        loaders: makes the dataloaders of a process, from its rank and the number of processes.
    """

    def __init__(
        self,
        modules: Mapping[Modality, Mapping[str, EncoderModule]],
        modalities: Sequence[Modality],
        roles: Sequence[Sequence[str]],
        *,
        shard: int,
        loaders: Callable[[int, int], list[Any]],
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # of a part with few batches
        self._modules_of = {modality: dict(of) for modality, of in modules.items()}
        self._modalities, self._roles = list(modalities), [list(names) for names in roles]
        self._loaders = loaders
        # Registered without names, since a role may be called anything.
        self.encoders = nn.ModuleList({id(m): m for of in modules.values() for m in of.values()}.values())
        self._streams, self._threads = Streams(shard), torch.get_num_threads()

    def predict_dataloader(self) -> list[Any]:
        """Return this process's share of the batches."""
        return self._loaders(self.trainer.global_rank, self.trainer.world_size)

    def on_predict_start(self) -> None:
        """Start the CPU streams; the main thread has nothing to compute."""
        self._threads = torch.get_num_threads()
        self._streams.start(self.device)
        if self.device.type == "cpu":
            torch.set_num_threads(1)

    def on_predict_end(self) -> None:
        """Stop the CPU streams; harmless when there are none."""
        self._streams.stop()
        torch.set_num_threads(self._threads)

    def predict_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Callable[[], dict[str, Tensor]]]:
        """Begin to encode one batch.

        Returns:
            Under ``features``, what waits for them: by role, (batch, dim) float.
        """
        modality = self._modalities[dataloader_idx]
        modules = {role: self._modules_of[modality][role] for role in self._roles[dataloader_idx]}
        return {"features": self._streams.begin(modality, modules, batch[1])}


def _encode(module: EncoderModule, modality: Modality) -> Callable[[Any], Tensor]:
    if modality == "text":
        return module.encode_text
    return lambda images: module.encode_image(images.contiguous(memory_format=torch.channels_last))


def _in_thread(run: Callable[[Any], Tensor], inputs: Any, mixed: torch.dtype | None) -> Tensor:
    # Both are settings of each thread, and the trainer's are those of its own.
    with torch.inference_mode(), torch.autocast("cpu", dtype=mixed, enabled=mixed is not None):
        return run(inputs)


def _shards(inputs: Any, size: int | None) -> list[Any]:
    """Split images (batch, ...), or each block of tokens, into what goes through an encoder at once."""
    if size is None:
        return [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if isinstance(inputs, Tensor):
        return list(torch.split(inputs, size))
    shards = []
    for block in inputs:
        split = {name: torch.split(tensor, size) for name, tensor in block.items()}
        shards += [dict(zip(split, tensors, strict=True)) for tensors in zip(*split.values(), strict=True)]
    return shards
