"""Arrays in the format of safetensors, memory-mapped when read and written in blocks."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from krossfuse.features.regroup import row_blocks

DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
}
"""Names of the dtypes, the widest first, so that every array is aligned in that order."""


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Map the arrays of a file; return them, and its metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def write_safetensors(stream: IO[bytes], arrays: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the format of safetensors in blocks: its own writer copies every tensor into memory first."""
    order = list(DTYPES)
    ordered = sorted(arrays.items(), key=lambda item: order.index(item[1].dtype))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for key, tensor in ordered:
        end = start + tensor.numel() * tensor.element_size()
        dtype = DTYPES[tensor.dtype]
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    stream.write(struct.pack("<Q", len(encoded)) + encoded)
    for _, tensor in ordered:
        for block in row_blocks(tensor):
            raw = block.contiguous().view(torch.int16) if tensor.dtype == torch.bfloat16 else block.contiguous()
            stream.write(raw.cpu().numpy().tobytes())
