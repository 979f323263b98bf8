"""What the benchmarks share: the JSON that they write, a stopwatch, and a sampler of the process's own memory."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_json(result: Any, path: Path | None) -> str:
    """Return a result as JSON, and write it to ``path`` unless that is None."""
    text = json.dumps(result, indent=2)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return text


def anonymous_bytes() -> int:
    """Return the anonymous resident memory of this process, neither a mapped file nor shared (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not report anonymous memory")


def timed(run: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Return the median seconds of some runs and what the last returned."""
    seconds, out = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        out = run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), out


class Peak(threading.Thread):
    """Samples the anonymous memory every 5 ms inside a ``with`` block.

    Attributes:
        before: bytes at its start.
        bytes: the most that were seen.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.bytes = anonymous_bytes()
        self._done = threading.Event()

    def run(self) -> None:
        """Sample."""
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, anonymous_bytes())

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()
