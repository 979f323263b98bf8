"""One matrix in a plain NumPy file: its header, room for it, and a memory map of it."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

State = tuple[str, int, int, int]
verified: set[State] = set()
"""Files, as they are now, whose bytes this process has compared with their checksum, or written."""


def state_of(path: Path) -> State:
    """Return what changes when a file does: path, inode, size and time of the last change."""
    stat = path.stat()
    return str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns


def array_dtype(dtype: str) -> np.dtype[Any]:
    """Return the dtype of the array that holds features of ``dtype``: bfloat16, which NumPy lacks, lies in int16."""
    return np.dtype("int16" if dtype == "bfloat16" else dtype)


def write_header(file: IO[bytes], shape: tuple[int, int], dtype: str) -> int:
    """Write the header of an ``.npy`` file; return where the data begin."""
    descr = np.lib.format.dtype_to_descr(array_dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.tell()


def check_header(file: IO[Any], shape: tuple[int, int], dtype: str) -> int:
    """Return where the data of an ``.npy`` file begin, after a comparison of its header.

    Raises:
        ValueError: it holds another shape or dtype, or is no such file.
    """
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f".npy version {version} instead of (1, 0)")
    has_shape, fortran, has_dtype = np.lib.format.read_array_header_1_0(file)
    if (has_shape, fortran, has_dtype) != (shape, False, array_dtype(dtype)):
        raise ValueError(f"it holds {has_shape} {has_dtype}, the record says {shape} {dtype}")
    return int(file.tell())


def reserve(file: IO[bytes], size: int) -> None:
    """Give the file its full size, with disk blocks behind it where the system can.

    Raises:
        OSError: there is no space.
    """
    file.flush()
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes at ``offset``; less only at the end of the file.

    One call of ``os.pread`` gives at most 2,147,479,552 bytes on Linux, whatever it was asked for.
    """
    pieces = []
    while size:
        piece = os.pread(descriptor, size, offset)
        if not piece:
            break
        pieces.append(piece)
        size, offset = size - len(piece), offset + len(piece)
    return b"".join(pieces)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``, in as many calls as it takes."""
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def memory_map(path: Path, shape: tuple[int, int], dtype: str, offset: int) -> Tensor:
    """Map a file into a tensor, copy-on-write: PyTorch gets a writable array, the file cannot change."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return _tensor(np.load(path, mmap_mode="c"), dtype)
    # Without MAP_NORESERVE Linux refuses a private map that is larger than the memory.
    flags = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return _tensor(np.frombuffer(mapped, dtype=array_dtype(dtype), offset=offset).reshape(shape), dtype)


def _tensor(array: np.ndarray, dtype: str) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
