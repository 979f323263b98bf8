"""Any PyTorch module at many clients at once, by ``torch.func``; the paper's convolutional network."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from krossfuse.core.errors import ConfigError
from krossfuse.core.seeds import derive_seed
from krossfuse.federated.models.base import FlatModel


class ModuleModel(FlatModel):
    """A module without buffers that change (no batch norm) as a flat model; gradients by ``vmap`` of ``grad``.

    Args:
        module: gives (n, classes) scores; its parameters' values are not used.
        classes: number of classes.
        multilabel: see :class:`FlatModel`.

    Raises:
        ConfigError: the module has buffers, which would be no part of an update.
    """

    def __init__(self, module: nn.Module, classes: int, *, multilabel: bool = False) -> None:
        if buffers := [name for name, _ in module.named_buffers()]:
            raise ConfigError(
                f"{type(module).__name__} has buffers {buffers}, which no update carries; use a layer without"
            )
        self.module, self.classes, self.multilabel = module.to("meta"), classes, multilabel
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self.d = sum(shape.numel() for shape in self._shapes.values())
        self._gradients = vmap(grad(self._loss))

    def _loss(self, parameters: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.scores(parameters, x), y)

    def initial(self, seed: int) -> Tensor:
        """Return what the module's own layers start from, under ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "model"))
            module = self.module.to_empty(device="cpu")
            for layer in module.modules():
                reset = getattr(layer, "reset_parameters", None)
                if callable(reset):
                    reset()
            flat = torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])
            self.module = module.to("meta")
        return flat

    def scores(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return the (n, classes) scores."""
        named, at = {}, 0
        for name, shape in self._shapes.items():
            named[name] = parameters[at : at + shape.numel()].view(shape)
            at += shape.numel()
        return cast(Tensor, functional_call(self.module, named, (x,)))

    def accumulate(self, parameters: Tensor, velocity: Tensor, x: Tensor, y: Tensor, momentum: float) -> None:
        """See :meth:`FlatModel.accumulate`."""
        gradients = self._gradients(parameters, x, y)
        if momentum:
            velocity.mul_(momentum).add_(gradients)
        else:
            velocity.copy_(gradients)


class SmallCNN(nn.Module):
    """The paper's network for 28×28 images: two 5×5 convolutions of 6 channels, 50 hidden units; d = 6,422.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 6, 5)
        self.fc1, self.fc2 = nn.Linear(96, 50), nn.Linear(50, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the (n, classes) scores of (n, 784) or (n, 1, 28, 28) pixels."""
        x = nn.functional.max_pool2d(self.conv1(x.reshape(-1, 1, 28, 28)).relu(), 2)
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)
        return cast(Tensor, self.fc2(self.fc1(x.flatten(1)).relu()))
