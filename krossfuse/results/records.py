"""One flat record a figure, written as a line of JSON.

A run folder holds::

    config.yaml      the resolved configuration
    results.jsonl    one Record a line
    per_item.npz     test items' own scores, by ``Record.figure_id`` (for paired comparisons)
    kernels.npz      arrays behind the pictures (kernel matrices, similarities), see ``results.figures``
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """One figure and everything that is needed to trace it.

    Attributes:
        data, pair, fusion: names from the configuration.
        dim: dimension of the fused embedding.
        alignment, sketch, kernel, C: of the fusion, or "" / None where it has none.
        probe, metric, modality, label_set: what was measured.
        seed: the run's seed.
        value: in the metric's unit (fractions, not percent).
        protocol: everything particular to the measurement (grid, selected value, prompts, shots, n of test items).
        fusion_config: the fusion's whole description.
        config_digest: digest of the resolved configuration without seed, paths and logger, so runs that differ in
            seed alone share it.
        versions: of krossfuse, torch and the other libraries that matter.
        seconds: wall time of the probe that measured it.
        deterministic: True when the seed cannot change the figure.
        figure_id: unique within its run folder.
    """

    data: str
    pair: str
    fusion: str
    dim: int
    probe: str
    metric: str
    modality: str
    seed: int
    value: float
    label_set: str = ""
    alignment: str = ""
    sketch: str = ""
    kernel: str = ""
    C: float | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    fusion_config: dict[str, Any] = field(default_factory=dict)
    config_digest: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    deterministic: bool = False
    figure_id: str = ""
