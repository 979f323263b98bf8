from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from krossfuse.core import heap
from krossfuse.core.heap import kept_heap

PROGRAM = """
import resource, threading, torch
from krossfuse.core.heap import kept_heap

def faults():
    def work():
        torch.ones(48 << 20, dtype=torch.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(48 << 20, dtype=torch.uint8)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    counts = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return counts[0]

usual = faults()
with kept_heap() as outer, kept_heap():
    kept = min(faults() for _ in range(4))
print(usual, kept, faults(), outer)
"""


@pytest.mark.skipif(heap._glibc() is None, reason="needs glibc")
def test_a_kept_heap_has_its_pages_already() -> None:
    """The oracle is the kernel's own count of page faults: 12,288 pages of 4 kB a block of 48 MB, or none."""
    out = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=200)
    usual, kept, after, outer = out.stdout.split()
    assert outer == "True"
    assert int(usual) > 10_000
    assert int(kept) < 1000
    assert int(after) > 10_000


def test_nothing_is_done_where_it_is_not_wanted_or_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with kept_heap(False) as kept:
        assert not kept
        assert heap._depth == 0
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with kept_heap() as kept:
        assert not kept
        assert float(torch.ones(3).sum()) == 3
