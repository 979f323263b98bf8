"""Sketches that are fitted on unlabelled features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import NotFittedError
from krossfuse.fusion.sketches.base import Sketch


class FittedSketch(Sketch):
    """A sketch that is fitted on unlabelled factors; its buffers are empty before, and take any shape when loaded."""

    needs_fit = True

    def _declare(self, *names: str) -> None:
        for name in names:
            self.register_buffer(name, torch.empty(0))
        self._fitted_names = names

    def _store(self, **values: Tensor) -> None:
        like = self.get_buffer(self._fitted_names[0])
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        for name, value in values.items():
            kind = dtype if value.is_floating_point() else value.dtype
            setattr(self, name, value.to(device=like.device, dtype=kind).contiguous())

    def _require_fit(self) -> None:
        if self.get_buffer(self._fitted_names[0]).numel() == 0:
            raise NotFittedError(f"the {self.name} sketch needs a fit on unlabelled features first: call fit")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._fitted_names:
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.get_buffer(name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)
