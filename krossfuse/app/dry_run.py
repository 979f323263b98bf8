"""What a sweep would do, printed; nothing is computed and nothing written."""

from __future__ import annotations

from collections.abc import Sequence

from krossfuse.app.plan import Plan, Planned

SHOWN = 20
"""Points that are printed one by one; of more, so many of the first."""


def print_plan(plan: Plan, chosen: Sequence[Planned], per_task: int | None) -> None:
    """Print the points that a sweep would compute, and what they cost.

    Args:
        plan: of the sweep.
        chosen: the points that it would compute.
        per_task: points a task; None: all.
    """
    every = [override for override in plan.points[0].overrides if all(override in p.overrides for p in plan.points)]
    print(f"{len(plan.points)} points in {plan.folder}: {plan.counts()}")
    if every:
        print(f"all: {' '.join(every)}")
    for point in chosen[:SHOWN]:
        own = " ".join(override for override in point.overrides if override not in every)
        print(f"  {point.folder}: {own}{'' if point.state == 'missing' else f' ({point.state})'}")
    if len(chosen) > SHOWN:
        own = " ".join(override for override in chosen[-1].overrides if override not in every)
        print(f"  ... and {len(chosen) - SHOWN} more, the last {chosen[-1].folder}: {own}")
    size = per_task or max(len(chosen), 1)
    tasks = -(-len(chosen) // size)
    print(f"to compute: {len(chosen)} points in {tasks} tasks of up to {size}")
    print("to encode first:" if plan.to_encode else "to encode: nothing")
    for line in plan.to_encode:
        print(f"  {line}")
