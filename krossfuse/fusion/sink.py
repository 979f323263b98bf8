"""Where fused blocks go: memory, or a file where they are too many."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.errors import DataError
from krossfuse.core.files import replacing

MEMORY_LIMIT = 1 << 30
"""Bytes up to which a fused part stays in memory."""


class Sink(Protocol):
    """Takes fused blocks in order."""

    def write(self, block: Tensor) -> None:
        """Append a block of rows, from any device."""

    def close(self) -> Tensor:
        """Return what was written, as far as it is held."""

    def abandon(self) -> None:
        """Take no more: fusing has failed."""


class RowSink:
    """Takes fused blocks in order and gives one tensor: in memory when it is small, else over a ``.npy`` file.

    Args:
        rows: how many rows will come.
        path: file to write, atomically, if it comes to that; None = a temporary file that vanishes with the tensor.
        memory_limit: bytes up to which the result stays in memory; 0 = always a file.
        keep_on_device: in memory, leave the result on the blocks' device; else it is on the CPU.
    """

    def __init__(
        self,
        rows: int,
        *,
        path: Path | None = None,
        memory_limit: float = MEMORY_LIMIT,
        keep_on_device: bool = False,
    ) -> None:
        self.rows, self.path, self.memory_limit, self.keep_on_device = rows, path, memory_limit, keep_on_device
        self.done = 0
        self._memory: Tensor | None = None
        self._file: IO[bytes] | None = None
        self._replacing: AbstractContextManager[Path] | None = None
        self._shape: tuple[int, int] = (rows, 0)
        self._dtype: np.dtype[Any] | None = None

    def _open(self, block: Tensor) -> None:
        self._shape = (self.rows, block.shape[1])
        if self.rows * block.shape[1] * block.element_size() <= self.memory_limit:
            self._memory = torch.empty(
                self._shape, dtype=block.dtype, device=block.device if self.keep_on_device else None
            )
            return
        if block.dtype == torch.bfloat16:
            raise DataError("bfloat16 has no .npy form; fuse in float16 or float32, or raise the memory limit")
        self._dtype = block[:0].cpu().numpy().dtype
        if self.path is None:
            self._file = tempfile.TemporaryFile(prefix="krossfuse-", suffix=".npy")  # noqa: SIM115 - closed by close()
        else:
            self._replacing = replacing(self.path)
            self._file = self._replacing.__enter__().open("w+b")
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, block: Tensor) -> None:
        """Append a block of rows, from any device."""
        if self._memory is None and self._file is None:
            self._open(block)
        if self._memory is not None:
            self._memory[self.done : self.done + len(block)] = block
        else:
            assert self._file is not None
            self._file.write(np.ascontiguousarray(block.detach().cpu().numpy()).data.cast("B"))
        self.done += len(block)

    def close(self) -> Tensor:
        """Return what was written, as a tensor (copy-on-write over the file where there is one)."""
        if self.done != self.rows:
            raise RuntimeError(f"{self.done} of {self.rows} rows were written")
        if self._memory is not None:
            return self._memory
        assert self._file is not None
        self._file.flush()
        offset = self._file.tell() - int(np.prod(self._shape)) * self._itemsize
        if self.path is not None:
            self._file.close()
            assert self._replacing is not None
            self._replacing.__exit__(None, None, None)
            # Mode "c": torch wants writable memory; a private mapping never reaches the file.
            return torch.from_numpy(np.load(self.path, mmap_mode="c"))
        mapped = np.memmap(self._file, self._dtype, "c", offset, self._shape)  # type: ignore[call-overload]
        self._file.close()
        return torch.from_numpy(mapped)

    @property
    def _itemsize(self) -> int:
        assert self._dtype is not None
        return self._dtype.itemsize

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._memory = None
        if self._file is not None:
            self._file.close()
            if self._replacing is not None:
                given_up = RuntimeError("abandoned")
                self._replacing.__exit__(type(given_up), given_up, None)
