"""Own memory of fusing a large set: ``python -m experiments.benchmarks.fusion_memory --rows 1000000``.

Writes a memory-mapped input of 512 + 768 dimensions, fuses it into a memory-mapped output of 3000, and reports the peak
of the process's anonymous memory (what is neither a mapped file nor shared) above what it was before.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from experiments.benchmarks.common import Peak, write_json
from krossfuse.core.blocks import blocks
from krossfuse.core.parts import CROSS_MODAL
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.methods import RPKrossFuse
from krossfuse.fusion.named import sketch_named
from krossfuse.fusion.plain import fuse_to_file

DIMS = {CROSS_MODAL: 512, "expert": 768}


def write_input(path: Path, rows: int, dim: int) -> torch.Tensor:
    """Write rows of one random block over and over, and return them memory-mapped."""
    block = torch.randn(4096, dim, generator=torch.Generator().manual_seed(dim)).numpy()
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dim))
    for part in blocks(rows, len(block)):
        mapped[part] = block[: part.stop - part.start]
    mapped.flush()
    del mapped
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def measure(
    rows: int, folder: Path, *, dim: int = 3000, sketch: str = "uniform", alignment: str = "exact"
) -> dict[str, float]:
    """Fuse ``rows`` rows and return seconds, samples per second, and the peak of own memory in bytes."""
    features = {role: write_input(folder / f"{role}.npy", rows, d) for role, d in DIMS.items()}
    inputs = InputSpec(cross_modal=DIMS[CROSS_MODAL], image_experts={"expert": DIMS["expert"]})
    with Peak() as peak:
        start = time.perf_counter()
        method = RPKrossFuse(inputs=inputs, dim=dim, alignment=alignment, sketch=sketch_named(sketch))
        fused = fuse_to_file(method, "image", features, folder / "fused.npy")
        seconds = time.perf_counter() - start
    assert fused.shape == (rows, dim)
    return {
        "rows": rows,
        "seconds": seconds,
        "samples_per_second": rows / seconds,
        "peak_own_bytes": peak.bytes - peak.before,
        "input_bytes": rows * sum(DIMS.values()) * 4,
        "output_bytes": rows * dim * 4,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sketch", default="uniform")
    parser.add_argument("--alignment", default="exact")
    parser.add_argument("--folder", type=Path, help="where the input and the output are written, and removed")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(options.rows, Path(folder), sketch=options.sketch, alignment=options.alignment)
    print(write_json(result, options.out))


if __name__ == "__main__":
    main()
