"""What a W&B offline run holds, read back from its files."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

FILE = "wandb/offline-run-*/*.wandb"


def wandb_records(folder: Path) -> list[Any]:
    """Read a W&B offline run back, once W&B's service has written its end (it does so after ``finish`` returns)."""
    for _ in range(100):
        found = scan(folder) if any(folder.glob(FILE)) else []
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"the W&B run in {folder} was not closed")


def scan(folder: Path) -> list[Any]:
    """Read a W&B offline run back: a LevelDB log (blocks of 32 KiB, records in fragments) of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob(FILE)
    content, block, at = path.read_bytes(), 32768, 7
    assert content.startswith(b":W&B")
    found, fragments = [], b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        fragments += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last fragment of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(fragments)
            found.append(record)
            fragments = b""
    return found


def wandb_tables(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return every table that was logged under a name."""
    files = folder.glob(f"wandb/offline-run-*/files/media/table/{name}_*.table.json")
    return [json.loads(file.read_text()) for file in sorted(files)]
