"""Fused features by shard: a fitted method over the shards of a dataset, one entry of the store each.

Shards are fused in any order, by any number of jobs at once, as they are encoded (:mod:`krossfuse.features.units`): a
finished entry is skipped, one that was begun is taken up at its last block. An entry is known by the bytes of the
fitted method and by the keys of the features that were fused, so that neither is mixed with another. On a CPU the bits
are those of :meth:`FusionModule.fuse <krossfuse.fusion.module.FusionModule.fuse>` on the whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krossfuse.core.errors import DataError, KrossFuseError, check_choice
from krossfuse.core.files import write_whole
from krossfuse.core.installed import version
from krossfuse.core.parts import Part
from krossfuse.core.sharded import below_one_another
from krossfuse.features.entry import DTYPES
from krossfuse.features.keys import FeatureKey
from krossfuse.features.source import Extraction
from krossfuse.features.stores.base import FeatureStore, Writer
from krossfuse.features.units import Unit, chosen_units, share
from krossfuse.fusion.batches import StoredRows
from krossfuse.fusion.module import FusionModule

FORMAT = 1


class FusedShards:
    """The shards of a dataset under a fitted method.

    Args:
        source: of the features; they are encoded where its store lacks them.
        module: with the fitted method.
        fusion: digest of the fitted method's file.
        dtype: of the entries, ``float32``, ``float16`` or ``bfloat16``.
        store: where the entries go.

    Raises:
        ConfigError: an unknown dtype.
    """

    def __init__(
        self, source: Extraction, module: FusionModule, fusion: str, store: FeatureStore, *, dtype: str = "float32"
    ) -> None:
        self.source, self.module, self.fusion, self.store = source, module, fusion, store
        self.dtype = check_choice("dtype", dtype, DTYPES)

    def unit_keys(self) -> list[tuple[Unit, FeatureKey | None]]:
        """Return the key of each unit in order; None where the method does not encode its modality."""
        options = self.source.trainers.options
        how = {
            "fusion": self.fusion,
            "dtype": self.dtype,
            "device": self.source.trainers.device.type,
            "precision": str(options.get("precision") or "32-true"),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "torch": version("torch"),
        }
        found: list[tuple[Unit, FeatureKey | None]] = []
        for unit, roles in self.source.unit_keys():
            key = None
            if unit.part.modality in self.module.method.modalities:
                features = {role: of.digest for role, of in roles.items()}
                about = {"dataset": self.source.name, "part": str(unit), "encoder": f"{self.source.pair.name}, fused"}
                key = FeatureKey({"fused": how, "features": features}, about)
            found.append((unit, key))
        return found

    def fuse(self, chosen: Sequence[int] | None = None, loaded: dict[int, Any] | None = None) -> int:
        """Fuse the units that the store lacks, and leave to other jobs what they are fusing.

        Args:
            chosen: numbers of units; None = all.
            loaded: by identity, encoders that are loaded already; those that are loaded now join them.

        Returns:
            How many units this job has fused; when it returns, all chosen ones are in the store.

        Raises:
            ConfigError: a number of no unit.
            DataError: a unit cannot be encoded or fused. Other units stay fused.
        """
        wanted = [(unit, key) for unit, key in chosen_units(self.unit_keys(), chosen) if key is not None]
        kept: dict[int, Any] = {} if loaded is None else loaded
        return share(wanted, lambda of: self._fuse(*of, kept))

    def _fuse(self, unit: Unit, key: FeatureKey, loaded: dict[int, Any]) -> int:
        if key in self.store:
            return 0
        with self.store.lock([key], wait=False):
            if key in self.store:
                return 0
            features = self.source.of_unit(unit, loaded)
            rows = self.module.rows(features, unit.part)
            assert isinstance(rows, StoredRows)
            writer = self.store.writer(key, rows=len(rows), dim=self.module.method.out_dim, dtype=self.dtype)
            try:
                # From the block on in which a killed job was; blocks begin at the same rows each time.
                _, missing = writer.missing()
                first = max(0, missing) // self.module.block_rows * self.module.block_rows
                left = StoredRows(unit.part.modality, {role: x[first:] for role, x in rows.features.items()}, {})
                name = f"dataset {self.source.name!r}, {unit}" + (f" (from row {first} on)" if first else "")
                self.module.fill({name: (left, _Entry(writer, first))}, self.module.block_rows)
            finally:
                writer.close()
        return 1

    def manifest(self) -> dict[str, Any]:
        """Return what lies where: by part, the shards in order with their rows and the entries' keys.

        Raises:
            DataError: a shard is not fused yet; the message names it.
        """
        parts: dict[str, list[dict[str, Any]]] = {}
        for unit, key in self.unit_keys():
            if key is None:
                continue
            if key not in self.store:
                raise DataError(f"{unit} of {self.source.name!r} is not fused yet; run job=fuse without job.shard")
            shard = {"name": unit.name, "rows": [unit.start, unit.stop], "entry": key.digest}
            parts.setdefault(str(unit.part), []).append(shard)
        return {
            "format": FORMAT,
            "dataset": self.source.name,
            "pair": self.source.pair.name,
            "fusion": self.fusion,
            "dim": self.module.method.out_dim,
            "dtype": self.dtype,
            "store": self.store.where,
            "parts": parts,
        }


class _Entry:
    """Fused blocks go to an entry of the store, as they come."""

    def __init__(self, writer: Writer, first: int) -> None:
        self.writer, self.at = writer, first

    def write(self, block: Tensor) -> None:
        """Store the next rows."""
        self.writer.write(range(self.at, self.at + len(block)), block)
        self.at += len(block)

    def close(self) -> Tensor:
        """Make the entry visible; nothing of it is held."""
        self.writer.finish()
        return torch.empty(0, self.writer.dim)

    def abandon(self) -> None:
        """Leave what is written, to be taken up."""


def write_manifest(path: Path, shards: FusedShards) -> None:
    """Write the manifest of fused shards, whole or not at all.

    Raises:
        DataError: a shard is not fused yet.
    """
    write_whole(path, (json.dumps(shards.manifest(), indent=1, ensure_ascii=False) + "\n").encode())


def read_fused(path: Path | str, store: FeatureStore) -> dict[Part, Tensor]:
    """Return the fused features of a manifest by part, (n, dim) each, over the memory maps of its shards.

    Args:
        path: of the manifest.
        store: that has its entries.

    Raises:
        DataError: it is no manifest of fused shards, its shards do not follow one another, or one has other rows.
        StoreError: the store lacks an entry, or it is damaged.
    """
    try:
        read = json.loads(Path(path).read_text("utf-8"))
        if read["format"] != FORMAT:
            raise DataError(f"{str(path)!r} is of format {read['format']!r}, and this reads {FORMAT}; fuse anew")
        about = {"dataset": str(read["dataset"]), "encoder": f"{read['pair']}, fused"}
        parts = {Part(*name.rsplit(":", 1)): shards for name, shards in read["parts"].items()}
        found = {}
        for part, shards in parts.items():
            pieces, at = [], 0
            for shard in shards:
                start, stop = shard["rows"]
                x = store.read(_Known(shard["entry"], {**about, "part": f"{part} {shard['name']}".strip()}))
                if start != at or len(x) != stop - start:
                    raise DataError(
                        f"{str(path)!r}: shard {shard['name']!r} of {part} has the rows {start} to {stop - 1} after "
                        f"{at} others, and {len(x)} rows in the store"
                    )
                pieces.append(x)
                at = stop
            found[part] = below_one_another(pieces)
        return found
    except KrossFuseError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(path)!r} is no manifest of fused shards: {type(error).__name__}: {error}") from None


class _Known(FeatureKey):
    """The key of an entry whose digest is known, and not what it is the digest of."""

    def __init__(self, digest: str, about: dict[str, str]) -> None:
        super().__init__({}, about)
        object.__setattr__(self, "digest", digest)
