"""Probes: linear, few-shot, zero-shot, retrieval, k-NN, clustering. Features in, named measurements out."""

from __future__ import annotations

import importlib
from typing import Any

# Where each public name lives; loaded when first used, so that a configuration can name one probe at no cost.
_HOME = {
    "Agreement": "agreement",
    "Clustering": "clustering",
    "EmbeddingSpace": "space",
    "FederatedProbe": "federated_probe",
    "FewShot": "few_shot",
    "FewShotSubset": "subsets",
    "KNN": "knn",
    "KernelProbe": "kernel_probe",
    "LinearHead": "heads",
    "LinearProbe": "linear",
    "Measurement": "base",
    "OutOfDistribution": "ood",
    "Probe": "base",
    "ProbeResult": "base",
    "Propagation": "propagation",
    "Retrieval": "retrieval",
    "RidgeProbe": "ridge",
    "SGDProbe": "sgd",
    "SGDSetting": "streamed",
    "Scope": "scope",
    "Selection": "selection",
    "StreamedHeads": "streamed",
    "TextProbe": "text_probe",
    "TransCLIP": "transclip",
    "ZLaP": "zlap",
    "ZeroShot": "zero_shot",
    "ZeroShotHead": "zero_shot",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
