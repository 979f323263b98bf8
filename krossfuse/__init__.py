"""KrossFuse: fuse embeddings with the Kronecker product, probe them, and trust the numbers.

The rooms of the house, each of which knows only those below it::

    app        jobs, sweeps, commands, messages
    model      the fused encoder: raw images and texts in, one embedding out
    report     boards, tables, pictures, pages
    probes     heads on embeddings: features in, measurements out
    fusion     kernels, sketches, methods, one fusing road
    features   where features come from and where they are kept
    encoders   frozen adapters
    data       DataModules, splits, prompts
    results    records, run folders, aggregation, significance, trackers
    core       the words that everybody uses

What others build on is here, imported when first used, so that ``import krossfuse`` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "krossfuse.core.labels": ("DatasetInfo", "LabelSet", "Prompts"),
    "krossfuse.core.parts": ("Part",),
    "krossfuse.core.bundle": ("FeatureBundle",),
    "krossfuse.fusion.base": ("FusionMethod", "InputSpec"),
    "krossfuse.fusion.diagnose": ("Diagnosis", "diagnose"),
    "krossfuse.fusion.io": ("load_fusion", "save_fusion"),
    "krossfuse.fusion.methods": (
        "CCA",
        "Alone",
        "Attention",
        "AverageKernel",
        "Comm",
        "Concatenation",
        "ExactKrossFuse",
        "Gate",
        "PCAConcatenation",
        "PostProcess",
        "RFFConcatenation",
        "RPKrossFuse",
        "UnimodalKrossFuse",
    ),
    "krossfuse.fusion.fit": ("fit_method",),
    "krossfuse.fusion.module": ("FusionModule",),
    "krossfuse.fusion.plain": ("fuse_bundle", "fuse_rows", "fuse_to_file"),
    "krossfuse.fusion.stream": ("inputs_of",),
    "krossfuse.fusion.transformer": ("KrossFuseTransformer",),
    "krossfuse.model.encoder": ("FusedEncoder",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
