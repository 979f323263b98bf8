"""Kernels, sketches and fusion methods as pure tensor code, and the LightningModule on top."""

from __future__ import annotations

import importlib
from typing import Any

# Where each public name lives; loaded when first used, so that pure mathematics does not import Lightning.
_HOMES = {
    "alignments": ("Alignment", "ExactAlignment", "OffsetAlignment", "PublishedAlignment", "SharedAlignment"),
    "base": ("FusionMethod", "InputSpec"),
    "kernels": (
        "CauchyKernel",
        "CentredKernel",
        "CosineKernel",
        "GaussianKernel",
        "Kernel",
        "LaplaceKernel",
        "LinearKernel",
        "MaternKernel",
        "PolynomialKernel",
        "ShiftInvariantKernel",
        "paired_kernels",
    ),
    "methods": (
        "Alone",
        "Attention",
        "AverageKernel",
        "CCA",
        "Comm",
        "Concatenation",
        "ExactKrossFuse",
        "Gate",
        "PCAConcatenation",
        "PostProcess",
        "RFFConcatenation",
        "RPKrossFuse",
        "ReleasedCode",
        "TrainedFusion",
        "UnimodalKrossFuse",
        "gram",
    ),
    "sketches": (
        "BlockOrthogonalSketch",
        "ComplexToRealSRHTSketch",
        "ComplexToRealSketch",
        "DenseSketch",
        "FittedSketch",
        "GaussianSketch",
        "JointFourierSketch",
        "KPoMRPSketch",
        "KroneckerSketch",
        "NystromSketch",
        "RademacherSketch",
        "RandomSketch",
        "SRHTSketch",
        "Sketch",
        "SpectralSketch",
        "TensorSketch",
        "UniformSketch",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
