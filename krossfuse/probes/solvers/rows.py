"""Rows read in blocks, and the two products with them that a pass needs."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.probes.rows import normalised

_BLOCK_VALUES = 1 << 24  # in one block of rows: 64 MB of float32
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_FEW_COLUMNS = 16


@functools.cache
def _by_mkls_maker() -> bool:
    """Whether the processor is Intel's."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return "Intel" in platform.processor()


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return (m, k) @ (n, k)ᵀ of float32 or float64 matrices.

    On CPU in float32 by oneDNN where torch has it: on processors that MKL does not favour it is twice as fast. On those
    of its own maker MKL needs half to all of oneDNN's time, unless there are few columns.
    """
    if (
        _ONEDNN is not None
        and a.device.type == "cpu"
        and a.dtype == torch.float32
        and (len(b) <= _FEW_COLUMNS or not _by_mkls_maker())
    ):
        product: Tensor = _ONEDNN(a.contiguous(), b, None, "none", [], "")
        return product
    return a @ b.T


def resident(
    parts: Sequence[Tensor], device: torch.device | str | None, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Return tensors on a device, if all of them take at most half of what is free there; else as they are.

    Args:
        parts: on one device all.
        device: None is where they are.
        dtype: there; None is their own.
    """
    home = None if device is None else torch.device(device)
    if home is None or not parts or parts[0].device.type == home.type:
        return list(parts)
    if home.type == "cuda":
        size = sum(part.numel() * (part.element_size() if dtype is None else dtype.itemsize) for part in parts)
        if 2 * size > torch.cuda.mem_get_info(home)[0]:
            return list(parts)
    return [part.to(home, dtype) for part in parts]


class Rows:
    """The rows of a batch of problems, tensors (batch, n_i, d) below one another, in blocks where they are computed on.

    On a GPU they are kept there if they take at most half of the free memory.
    """

    def __init__(
        self,
        parts: Sequence[Tensor],
        device: torch.device | str | None = None,
        block_rows: int | None = None,
        normalise: bool = False,
    ) -> None:
        first = parts[0]
        self.device = torch.device(first.device if device is None else device)
        self.dtype = first.dtype if first.dtype in (torch.float32, torch.float64) else torch.float32
        self.batch, _, self.d = first.shape
        self.n = sum(part.shape[1] for part in parts)
        self.normalise = normalise
        self.block_rows = block_rows or max(1, _BLOCK_VALUES // (self.batch * self.d))
        self.parts = resident(parts, self.device, self.dtype)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        offset = 0
        for part in self.parts:
            for b in blocks(part.shape[1], self.block_rows):
                yield slice(offset + b.start, offset + b.stop), self._read(part[:, b])
            offset += part.shape[1]

    def _read(self, block: Tensor) -> Tensor:
        block = block.to(self.device, self.dtype)
        return normalised(block) if self.normalise else block

    def sample(self, count: int) -> Tensor:
        """Return (batch, count, d) rows at even distances."""
        picked, out, offset = torch.arange(count) * self.n // count, [], 0
        for part in self.parts:
            inside = picked[(picked >= offset) & (picked < offset + part.shape[1])] - offset
            out.append(self._read(part[:, inside.to(part.device)]))
            offset += part.shape[1]
        return torch.cat(out, 1)

    def mean(self, weight: Tensor) -> Tensor:
        """Return the (batch, d) mean of the rows under (batch, n) weights."""
        total = torch.zeros(self.batch, self.d, dtype=torch.float64, device=self.device)
        for part, block in self:
            total += (weight[:, None, part].to(self.dtype) @ block)[:, 0]
        return (total / weight.sum(1, keepdim=True).clamp_min(1e-300)).to(self.dtype)

    @staticmethod
    def scores(block: Tensor, weights: Tensor) -> Tensor:
        """Return (batch, m, columns) of a block (batch, m, d) and weights (batch, columns, d)."""
        if block.shape[0] == 1:
            return product(block[0], weights[0])[None]
        return torch.bmm(block, weights.transpose(1, 2))

    @staticmethod
    def gather(residual: Tensor, block: Tensor) -> Tensor:
        """Return (batch, columns, d): the sum over rows of residual (batch, m, columns) times row."""
        if block.shape[0] == 1:
            return product(residual[0].T, block[0].T)[None]
        return torch.bmm(residual.transpose(1, 2), block)
