"""Small problems of one size, trained side by side by one Trainer; apart, because importing Lightning takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from krossfuse.core.lightning import pl
from krossfuse.core.seeds import derived_generator
from krossfuse.core.trainers import TrainerFactory, quiet

_Module = TypeVar("_Module", bound=pl.LightningModule)


def batches(seeds: Sequence[int], name: str, n: int, *, epochs: int, size: int) -> list[Tensor]:
    """Return the (P, b) rows of every step: each problem goes through its n samples in an order of its own seed."""
    generators = [derived_generator(seed, name, n) for seed in seeds]
    steps: list[Tensor] = []
    for _ in range(epochs):
        orders = torch.stack([torch.randperm(n, generator=generator) for generator in generators])
        steps += torch.split(orders, size, dim=1)
    return steps


def train(make: Callable[[int], _Module], steps: list[Tensor], trainers: TrainerFactory) -> _Module:
    """Return the module that ``make(number of steps)`` makes, trained; the global random state stays as it was.

    Raises:
        ConfigError: the Trainer's options are impossible.
    """
    trainer = trainers(max_epochs=1, num_sanity_val_steps=0)
    target = trainer.strategy.root_device
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []), torch.enable_grad(), quiet():
        module = make(len(steps))
        trainer.fit(module, DataLoader(steps, batch_size=None))  # type: ignore[arg-type]
    return module
