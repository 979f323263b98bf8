"""From measurements to records: what was measured, by what, on what, under which protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from krossfuse.probes.base import ProbeResult
from krossfuse.results.digest import config_digest, method_digest
from krossfuse.results.records import Record
from krossfuse.results.versions import versions


def make_records(
    cfg: Mapping[str, Any],
    *,
    data: str,
    pair: str,
    fusion: str,
    dim: int,
    described: Mapping[str, Any],
    deterministic: bool,
    probe: str,
    result: ProbeResult,
    seconds: float,
) -> list[tuple[Record, Tensor | None]]:
    """Return one record a measurement, with the test items' own scores.

    Args:
        cfg: the job's configuration.
        data: name of the dataset.
        pair: name of the pair of encoders.
        fusion: name of the configuration's option.
        dim: of the embedding that was probed.
        described: what describes the method (``FusionMethod.describe``).
        deterministic: whether the seed cannot change the embedding.
        probe: name of the probe.
        result: what it measured.
        seconds: that it took.
    """
    shared: dict[str, Any] = {
        "data": data,
        "pair": pair,
        "fusion": fusion,
        "dim": dim,
        "probe": probe,
        "seed": cfg["seed"],
        "fusion_config": dict(described),
        "config_digest": config_digest(cfg, probe),
        "method_digest": method_digest(cfg),
        "versions": versions(),
        "seconds": seconds,
        "deterministic": deterministic,
    }
    return [
        (
            Record(
                metric=measured.metric,
                modality=measured.modality,
                label_set=measured.label_set,
                value=float(measured.value),
                protocol={**result.protocol, **measured.protocol},
                **shared,
            ),
            measured.per_item,
        )
        for measured in result.measurements
    ]
