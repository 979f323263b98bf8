"""Ten thousand run folders as a sweep leaves them, written by the real writer with made measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krossfuse.results.digest import config_digest, method_digest
from krossfuse.results.records import Record
from krossfuse.results.versions import versions
from krossfuse.results.writer import RunWriter

METHODS = ("RP-KrossFuse", "Concatenation", "CCA", "GATE", "Average of kernels")
SKETCHES = ("uniform", "gaussian", "hadamard")
MEASURES = (("linear_probe", "group"), ("linear_probe", "subgroup"), ("zero_shot", "group"), ("zero_shot", "subgroup"))
DATA = ("openmoji", "typographic")


def write_folders(folder: Path, runs: int = 10_000, items: int = 500) -> None:
    """Write a sweep over data, method, sketch, dimension, C and weight; one seed a run, four measurements with items.

    Args:
        folder: that the sweep is written to.
        runs: how many.
        items: test items of a measurement.
    """
    draw = np.random.default_rng(0)
    hardness = {data: draw.random(items) for data in DATA}
    names = versions(["krossfuse", "torch", "numpy"])
    for number in range(runs):
        data = DATA[number % len(DATA)]
        config = _config(number // len(DATA), data)
        with RunWriter(folder / str(number)) as writer:
            writer.write_config(_text(config))
            for probe, label_set in MEASURES:
                hits = _hits(config, probe, label_set, hardness[data], draw)
                writer.append(_record(config, data, probe, label_set, hits, names), hits)


def _config(number: int, data: str) -> dict[str, Any]:
    """Return the configuration of a point; the first is the cross-modal encoder alone."""
    method = METHODS[number % len(METHODS)]
    number //= len(METHODS)
    fusion: dict[str, Any] = {"_target_": f"krossfuse.fusion.methods.{method.replace(' ', '').replace('-', '')}"}
    fusion |= {"sketch": SKETCHES[number % 3], "dim": 64 * (1 + number // 3 % 24)}
    fusion |= {"C": round(10 ** (number // 72 % 7 - 3), 4), "expert_weight": round(0.05 * (number // 504), 2)}
    return {
        "name": "sweep",
        "seed": 0,
        "data": {"_target_": "krossfuse.data.OpenMoji", "name": data, "limit": None, "split": "test"},
        "pair": {"name": "openmoji_image", "cross_modal": "bundled", "image_expert": "efficientnet_lite0"},
        "fusion": fusion | {"title": method},
        "probe": {"linear_probe": {"C": 1.0, "max_iter": 1000}, "zero_shot": {"prompts": "default"}},
        "trainer": {"accelerator": "auto", "devices": 1, "precision": "32-true"},
        "logger": {"_target_": "krossfuse.results.NoTracker"},
        "report": {"baselines": None},
    }


def _text(config: dict[str, Any]) -> str:
    import yaml

    return yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def _hits(
    config: dict[str, Any], probe: str, label_set: str, hardness: NDArray[np.float64], draw: np.random.Generator
) -> NDArray[np.uint8]:
    fusion = config["fusion"]
    skill = 0.45 + 0.06 * np.log2(fusion["dim"]) / 4 + 0.03 * METHODS.index(fusion["title"])
    skill -= 0.12 * (probe == "zero_shot") + 0.08 * (label_set == "subgroup") + 0.02 * abs(np.log10(fusion["C"]))
    return (hardness + 0.25 * draw.normal(size=len(hardness)) < skill).astype(np.uint8)


def _record(
    config: dict[str, Any], data: str, probe: str, label_set: str, hits: NDArray[np.uint8], names: dict[str, str]
) -> Record:
    fusion = config["fusion"]
    described = {name: value for name, value in fusion.items() if name != "_target_"}
    return Record(
        data=data,
        pair="openmoji_image",
        fusion=fusion["title"].lower().replace(" ", "_").replace("-", "_"),
        dim=fusion["dim"],
        probe=probe,
        metric="accuracy",
        modality="image",
        seed=config["seed"],
        value=float(hits.mean()),
        label_set=label_set,
        protocol={"split": "test", "n_test": len(hits), "selected_C": fusion["C"], "max_iter": 1000},
        fusion_config=described | {"method": fusion["title"], "seed": config["seed"]},
        config_digest=config_digest(config, probe),
        method_digest=method_digest(config),
        versions=names,
        seconds=0.25,
        deterministic=True,
    )
