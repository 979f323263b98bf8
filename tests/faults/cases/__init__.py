"""All faults, room by room."""

from __future__ import annotations

from faults.case import Case
from faults.cases import (
    composing,
    datasets,
    embeddings,
    encoders,
    flower,
    fusion,
    model,
    probes,
    python,
    results,
    stores,
    sweeps,
)

CASES: list[Case] = [
    case
    for room in (
        composing,
        datasets,
        embeddings,
        encoders,
        stores,
        fusion,
        flower,
        probes,
        results,
        python,
        model,
        sweeps,
    )
    for case in room.CASES
]
