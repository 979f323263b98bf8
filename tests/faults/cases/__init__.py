"""All faults, room by room."""

from __future__ import annotations

from faults.case import Case
from faults.cases import composing

CASES: list[Case] = [*composing.CASES]
