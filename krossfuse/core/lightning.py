"""Lightning, imported in the way that costs a second and not five.

Lightning needs one class of torchmetrics, which imports torchvision, transformers, scipy.signal and matplotlib for
metrics that nothing here computes, and their plots; two names of torch._dynamo, which brings torch._inductor and sympy,
for models that are compiled; and triton, whose kernels' operations it could count. They are loaded when one of those is
used.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from krossfuse.core.deferred import deferring


def _disable_later(fn: Callable[..., Any], recursive: bool = True, *, reason: str | None = None) -> Callable[..., Any]:
    """Do what ``torch.compiler.disable`` does to a function, once there is a compiler that it can be kept from."""
    disabled = functools.cache(lambda: _disable(fn, recursive, reason=reason))

    @functools.wraps(fn)
    def call(*args: Any, **options: Any) -> Any:
        return (disabled() if "torch._dynamo" in sys.modules else fn)(*args, **options)

    return call


_disable: Any = torch.compiler.disable
torch.compiler.disable = _disable_later  # type: ignore[assignment]
try:
    with deferring("torchvision", "transformers", "scipy.signal", "matplotlib", "torch._dynamo", "triton"):
        import pytorch_lightning as pl
    from lightning_fabric.utilities import registry
finally:
    torch.compiler.disable = _disable
if hasattr(registry, "entry_points"):
    # Every Trainer asks anew which installed packages bring callbacks, 15 ms a time.
    registry.entry_points = functools.cache(registry.entry_points)

__all__ = ["pl"]
