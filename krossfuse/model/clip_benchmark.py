"""A fused encoder in CLIP_benchmark: its zero-shot classification and retrieval, on its data sets.

    python -m krossfuse.model.clip_benchmark eval --model FOLDER --dataset wds/... --dataset_root ... --no_amp

is CLIP_benchmark's own command with one more type of model; every option is CLIP_benchmark's. From Python,

    from krossfuse.model.clip_benchmark import load
    model, transform, tokenizer = load("FOLDER")

gives what its ``metrics.*.evaluate`` take.

CLIP_benchmark compares by cosine and averages a class's normalised texts, as the probe ``zero_shot`` does with
``similarity=cosine`` and ``average=embeddings``. Its ``--amp``, on by default, computes in half precision.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from krossfuse.core.errors import require
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.open_clip import OpenCLIPForm, Preprocess, Tokenizer

TYPE = "krossfuse"


def load(
    model_name: str, pretrained: str = "", cache_dir: str | None = None, device: str | torch.device = "cpu"
) -> tuple[OpenCLIPForm, Preprocess | None, Tokenizer | None]:
    """Return ``(model, transform, tokenizer)`` of a saved model, as CLIP_benchmark's loaders do.

    Args:
        model_name: a folder that ``krossfuse export`` wrote, or ``owner/name`` on the hub.
        pretrained: there for CLIP_benchmark's sake; the folder says all.
        cache_dir: of downloads from the hub.
        device: where the model runs.

    Raises:
        StoreError: see :meth:`~krossfuse.model.encoder.FusedEncoder.from_pretrained`.
    """
    hub = {} if cache_dir is None else {"cache_dir": cache_dir}
    return FusedEncoder.from_pretrained(model_name, device=device, **hub).open_clip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run CLIP_benchmark's command with ``--model_type krossfuse``.

    Raises:
        ConfigError: clip-benchmark is not installed.
    """
    require("clip_benchmark", "krossfuse.model.clip_benchmark", extra="clip-benchmark")
    from clip_benchmark import cli, models

    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["eval"]:
        for option in ("--model_type", "--pretrained"):
            given += [] if option in given else [option, TYPE]
    models.TYPE2FUNC.setdefault(TYPE, load)
    if TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(TYPE)
    before, sys.argv = sys.argv, ["clip_benchmark", *given]  # its parser reads no other arguments
    try:
        cli.main()
    finally:
        sys.argv = before


if __name__ == "__main__":
    main()
