"""The fusion benchmark: its published formula against the folded sketch, and the rows that it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.common import anonymous_bytes
from experiments.benchmarks.fusion import PUBLISHED, Data, PublishedFormula, measure
from experiments.benchmarks.fusion_memory import measure as measure_memory
from krossfuse.fusion.base import InputSpec


def features(n: int, seed: int, **dims: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {role: torch.randn(n, d, generator=generator) for role, d in dims.items()}


@pytest.fixture(scope="module")
def data() -> Data:
    both = {"cross_modal": 8, "dino": 12}
    return Data(
        InputSpec(cross_modal=8, image_experts={"dino": 12}),
        features(40, 0, **both),
        features(30, 1, **both),
        features(20, 2, cross_modal=8),
    )


def test_the_published_formula_is_unbiased(data: Data) -> None:
    unit = {role: torch.nn.functional.normalize(x, dim=1) for role, x in data.image.items()}
    exact = (unit["cross_modal"] @ unit["cross_modal"].T) * (0.5 + unit["dino"] @ unit["dino"].T)
    cross = 0.5 * unit["cross_modal"] @ torch.nn.functional.normalize(data.text["cross_modal"], dim=1).T
    draws = [PublishedFormula(inputs=data.inputs, dim=200, C=0.5, seed=seed) for seed in range(200)]
    images = [draw(data.image, chunk=7) for draw in draws]
    assert torch.equal(images[0], draws[0](data.image)) or torch.allclose(images[0], draws[0](data.image), atol=1e-6)
    for other, expected in ((images, exact), ([draw(data.text) for draw in draws], cross)):
        values = torch.stack([x @ y.T for x, y in zip(images, other, strict=True)])
        error = (values.mean(0) - expected) / (values.std(0) / len(draws) ** 0.5)
        assert float(error.abs().mean()) == pytest.approx((2 / torch.pi) ** 0.5, abs=0.15), (
            "standard normal, if unbiased"
        )


def test_rows(data: Data) -> None:
    said: list[str] = []
    rows = measure(data, dims=[24, 64], spectral_dim=16, seeds=2, repeats=2, rows=50, say=said.append)
    json.dumps(rows)
    promised = {"sketch", "alignment", "dim", "rmse_image_image", "rmse_image_text", "samples_per_second", "bytes"}
    assert all(promised | {"error_ratio", "speed_ratio"} <= set(row) for row in rows)
    assert {row["sketch"] for row in rows} >= {PUBLISHED, "uniform", "srht", "spectral", "kpomrp", "tensor_sketch"}
    by = {(row["sketch"], row["alignment"], row["dim"]): row for row in rows}
    assert by[PUBLISHED, "published", 24]["error_ratio"] == 1
    assert by["spectral", "exact", 16]["rmse_image_text"] < 1e-6
    assert ("uniform", "exact", 16) not in by
    assert any("left out: nystrom" in line for line in said), "40 samples do not make 56 landmarks"


@pytest.mark.slow
@pytest.mark.parametrize(("sketch", "alignment"), [("uniform", "published"), ("complex_to_real_srht", "exact")])
def test_own_memory_does_not_grow_with_the_rows(sketch: str, alignment: str, tmp_path: Path) -> None:
    try:
        anonymous_bytes()
    except (OSError, RuntimeError):
        pytest.skip("needs Linux's /proc")
    small, large = (measure_memory(rows, tmp_path, sketch=sketch, alignment=alignment) for rows in (20_000, 80_000))
    assert large["output_bytes"] > 0.9e9
    assert large["peak_own_bytes"] < 0.5e9
    assert large["peak_own_bytes"] < small["peak_own_bytes"] + 0.1e9
