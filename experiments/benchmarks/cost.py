"""Time a batch and peak memory of encoders and fusion, the paper's table 10: ``python -m experiments.benchmarks.cost``.

Encoders of a pair see one prepared batch of made images; their features go through RP-KrossFuse and through the product
without sketch. Each row is the median of some rounds after one that is not counted:

* an encoder: its forward pass, without decoding and preparing;
* an overhead: fusing the features of the batch, which are at hand;
* a pipeline: the encoders one after the other, and then the fusion. The paper's RP pipeline runs its encoders side by
  side; the sum of ours and the slower one are both given.

Peak memory: on a CUDA device what PyTorch allocated at most, weights included; on a CPU the process's anonymous memory.
The paper's figures (``experiments/reference/table10_cost.csv``) are CLIP ViT-B/32 with DINOv2 ViT-B/14 on a GPU that it
does not share with this machine: they stand beside, and no difference is computed.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.benchmarks.common import Peak, timed, write_json
from krossfuse.core.parts import CROSS_MODAL
from krossfuse.encoders.pair import Pair
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.methods import ExactKrossFuse, RPKrossFuse
from krossfuse.report.reference import folder

PAPER = {
    "cross_modal": "CLIP",
    "expert": "DINOv2",
    "product pipeline": "KrossFuse pipeline",
    "product overhead": "KrossFuse overhead",
    "sketch pipeline, encoders side by side": "RP-KrossFuse pipeline, encoders in parallel",
    "sketch overhead": "RP-KrossFuse overhead, l=5000",
}
"""By row, the paper's."""


def pair_named(name: str) -> Pair:
    """Return a pair as ``pair=NAME`` makes it."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from krossfuse.app.build import job_config, make
    from krossfuse.app.paths import CONFIG_DIR

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        pair: Pair = make(job_config(hydra.compose("config", overrides=[f"pair={name}"]))["pair"], "pair", Pair)
    return pair


def paper_rows() -> dict[str, dict[str, str]]:
    """Return the paper's table 10 by method."""
    place = folder()
    if place is None:
        return {}
    with (place / "table10_cost.csv").open(encoding="utf-8") as stream:
        return {row["method"]: row for row in csv.DictReader(stream)}


def measured(run: Callable[[], Any], device: torch.device, rounds: int) -> dict[str, float]:
    """Return median milliseconds and peak bytes of some rounds."""

    def whole() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    whole()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        seconds, _ = timed(whole, rounds)
        return {"ms": 1e3 * seconds, "peak_bytes": torch.cuda.max_memory_allocated(device)}
    with Peak() as peak:
        seconds, _ = timed(whole, rounds)
    return {"ms": 1e3 * seconds, "peak_bytes": peak.bytes}


def measure(pair: Pair, *, batch: int, dim: int, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Return by row what it costs."""
    assert pair.cross_modal is not None
    ((name, expert),) = pair.image_experts.items()
    modules = {role: e.load().eval().to(device) for role, e in ((CROSS_MODAL, pair.cross_modal), (name, expert))}
    pixels = np.random.default_rng(0).integers(0, 255, (batch, 256, 256, 3), dtype=np.uint8)
    inputs = {
        role: torch.stack([module.prepare_image(Image.fromarray(one)) for one in pixels]).to(device)
        for role, module in modules.items()
    }
    spec = InputSpec(cross_modal=modules[CROSS_MODAL].dim, image_experts={name: modules[name].dim})
    sketch = RPKrossFuse(inputs=spec, dim=dim).to(device).eval()
    product = ExactKrossFuse(inputs=spec, max_dim=spec.cross_modal * (1 + modules[name].dim)).to(device).eval()  # type: ignore[operator]

    def encode(roles: Mapping[str, Any]) -> dict[str, Tensor]:
        return {role: modules[role].encode_image(inputs[role]) for role in roles}

    with torch.inference_mode():
        features = encode(modules)
        rows = {
            "cross_modal": measured(lambda: encode([CROSS_MODAL]), device, rounds),  # type: ignore[arg-type]
            "expert": measured(lambda: encode([name]), device, rounds),  # type: ignore[arg-type]
        }
        for what, method in (("product", product), ("sketch", sketch)):
            rows[f"{what} overhead"] = measured(lambda m=method: m.encode("image", features), device, rounds)
            rows[f"{what} pipeline"] = measured(lambda m=method: m.encode("image", encode(modules)), device, rounds)
    slower = max(rows["cross_modal"]["ms"], rows["expert"]["ms"])
    side = {"ms": slower + rows["sketch overhead"]["ms"], "peak_bytes": rows["sketch pipeline"]["peak_bytes"]}
    return {**rows, "sketch pipeline, encoders side by side": side}


def show(result: Mapping[str, Any]) -> None:
    """Print ours with the paper's beside."""
    table = Table(
        title=f"{result['pair']}, batches of {result['batch']}, {result['dim']} dimensions, {result['device']}"
    )
    for column in ("", "ms a batch", "peak GB", "paper: ms a batch", "peak GB"):
        table.add_column(column, justify="left" if not column else "right")
    for row, cost in result["rows"].items():
        paper = result["paper"].get(PAPER.get(row, ""), {})
        ours = (f"{cost['ms']:.2f}", f"{cost['peak_bytes'] / 1e9:.3f}")
        table.add_row(row, *ours, paper.get("time_per_batch", "–"), paper.get("peak_memory", "–"))
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="clip_b32+dinov2_b14", help="one cross-modal encoder and one of images")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dim", type=int, default=5000, help="of the sketch")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    pair = pair_named(options.pair)
    rows = measure(pair, batch=options.batch, dim=options.dim, rounds=options.rounds, device=device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    result = {
        "pair": options.pair,
        "batch": options.batch,
        "dim": options.dim,
        "device": name,
        "rows": rows,
        "paper": paper_rows(),
    }
    show(result)
    write_json(result, options.out)


if __name__ == "__main__":
    main()
