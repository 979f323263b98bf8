"""Run folders with known measurements, written by the real writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from krossfuse.results.digest import config_digest, method_digest
from krossfuse.results.records import LINE_FIELDS, Record
from krossfuse.results.versions import versions
from krossfuse.results.writer import RunWriter

N_ITEMS = 240


@dataclass
class Sweep:
    """Writes one run folder a call below ``folder``."""

    folder: Path
    count: int = 0
    written: list[Path] = field(default_factory=list)

    def run(
        self,
        fusion: str,
        accuracies: dict[str, float],
        *,
        seed: int = 0,
        dim: int = 64,
        error: Exception | None = None,
        data: str = "openmoji",
        items: bool = True,
        protocols: Sequence[dict[str, Any]] = ({},),
        **fields: Any,
    ) -> Path:
        """Write one run: ``accuracies`` by label set, each measured under every one of ``protocols``."""
        folder = self.folder / str(self.count)
        self.count += 1
        config = {"seed": seed, "data": {"name": data}, "fusion": {"method": fusion, "dim": dim}}
        options = {name: fields.pop(name) for name in (*LINE_FIELDS, "title") if name in fields}
        config["fusion"] |= {"alignment": options.get("alignment", ""), "C": options.get("C")}
        writer = RunWriter(folder)
        writer.write_config(config)
        for probe in ("linear_probe", "zero_shot") if protocols == ({},) else ("few_shot",):
            for label_set, accuracy in accuracies.items():
                for number, protocol in enumerate(protocols):
                    shift = protocol.get("shift", 0.0) - (0.1 if probe == "zero_shot" else 0.0)
                    score = scores(accuracy + shift, seed=seed + 7 * number)
                    writer.append(
                        Record(
                            data=data,
                            pair="openmoji_image",
                            fusion=fusion,
                            dim=dim,
                            probe=probe,
                            metric="accuracy",
                            modality="image",
                            label_set=label_set,
                            seed=seed,
                            value=float(score.mean()),
                            protocol={"split": "test", "n_test": N_ITEMS} | protocol,
                            fusion_config={"method": fusion, "dim": dim, "seed": seed, **options},
                            config_digest=config_digest(config, probe),
                            method_digest=method_digest(config),
                            versions=versions(["krossfuse", "torch"]),
                            seconds=0.25,
                            **fields,
                        ),
                        per_item=score if items else None,
                    )
        writer.finish(error)
        self.written.append(folder)
        return folder


def scores(accuracy: float, seed: int) -> NDArray[np.float64]:
    """Return 0/1 scores with exactly the rounded accuracy, harder items wrong first, and a few swapped by the seed."""
    score = (np.arange(N_ITEMS) < round(accuracy * N_ITEMS)).astype(float)
    generator = np.random.default_rng(seed)
    one, other = generator.permutation(N_ITEMS)[:20], generator.permutation(N_ITEMS)[:20]
    score[one], score[other] = score[other].copy(), score[one].copy()
    return score


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path / "sweep")


@pytest.fixture
def quickstart(sweep: Sweep) -> Path:
    """A folder in the form of the quick-start: parents and baseline once, RP-KrossFuse over dimensions and seeds."""
    sweep.run("cross_modal", {"group": 0.60, "subgroup": 0.40}, dim=256, deterministic=True)
    sweep.run("image_expert", {"group": 0.70, "subgroup": 0.55}, dim=1280, deterministic=True)
    sweep.run("concatenation", {"group": 0.72, "subgroup": 0.56}, dim=1536, deterministic=True)
    for alignment in ("published", "exact"):
        for dim in (768, 1500):
            for seed in (0, 1, 2):
                gain = (0.02 if alignment == "exact" else 0.0) + dim / 1e5 + 0.01 * seed
                sweep.run(
                    "rp_krossfuse",
                    {"group": 0.71 + gain, "subgroup": 0.57 + gain},
                    dim=dim,
                    seed=seed,
                    alignment=alignment,
                    sketch="uniform",
                    kernel="cosine",
                    C=1.0,
                )
    return sweep.folder


WriteRun = Callable[..., Path]
