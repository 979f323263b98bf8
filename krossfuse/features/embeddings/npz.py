"""Arrays in NumPy's .npz, memory-mapped where they are not compressed; nothing is unpickled."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.errors import DataError


def read_npz(path: Path, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Map the members that are stored plainly (``np.savez``) and read those that are compressed."""
    arrays: dict[str, Tensor] = {}
    texts: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for member in archive.infolist():
            key = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(stream)
                skipped = stream.tell()
            if dtype.hasobject:
                raise DataError(f"{where}: {key!r} holds Python objects; save texts as np.array([...], dtype=str)")
            if dtype.kind == "U" or member.compress_type != zipfile.ZIP_STORED or 0 in shape:
                with archive.open(member) as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
            else:
                raw.seek(member.header_offset + 26)
                offset = member.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4))) + skipped
                array = np.memmap(path, dtype, "c", offset, shape, "F" if fortran else "C")
            if dtype.kind == "U":
                texts[key] = str(array) if array.ndim == 0 else array.tolist()
            elif dtype.kind in "iu":
                arrays[key] = torch.from_numpy(array.astype(np.int64))
            elif dtype.kind == "b" or dtype.name in ("float16", "float32", "float64"):
                arrays[key] = torch.from_numpy(array if dtype.isnative else array.astype(dtype.newbyteorder("=")))
            else:
                raise DataError(f"{where}: {key!r} has dtype {dtype}; use float16, float32, float64, integers or texts")
    return arrays, texts
