"""``krossfuse encode FOLDER SOURCE -o FILE``: the embeddings of images, texts or a whole dataset, by a saved model.

krossfuse encode FOLDER images/ -o features.safetensors                       all images below a folder
krossfuse encode FOLDER lines.txt -o features.npz                             a text a line
krossfuse encode FOLDER table.parquet --column caption -o f.safetensors       a column of texts, or of images
krossfuse encode FOLDER data=openmoji data.limit=90 -o f.safetensors          a dataset; data=embeddings reads the file
krossfuse encode FOLDER images/ -o f.safetensors --precision float16          half the bytes; the encoders' too
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError
from krossfuse.core.files import replacing
from krossfuse.core.parts import Modality
from krossfuse.core.unit import normalised
from krossfuse.data.module import BaseDataModule
from krossfuse.features.embeddings import SUFFIXES, save_embeddings
from krossfuse.features.embeddings.safetensors_file import write_safetensors
from krossfuse.features.entry import DTYPES
from krossfuse.fusion.sink import RowSink
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.precision import dtype_named, name_of
from krossfuse.model.sources import read_items

FEATURES, NAMES, ROLE = "features", "names", "fused"


def main(arguments: Iterable[str] | None = None) -> int:
    """Run ``krossfuse encode``; returns the exit status.

    Raises:
        ConfigError: an impossible option, or a source that is not there.
        DataError: an item that cannot be encoded; then no file is written.
        StoreError: the model cannot be loaded.
    """
    options = _parser().parse_args(None if arguments is None else list(arguments))
    if options.out.suffix not in SUFFIXES:
        raise ConfigError(f"-o {options.out}: the file must end in one of {list(SUFFIXES)}")
    if options.batch_size < 1 or options.workers < 0:
        raise ConfigError(f"--batch-size={options.batch_size} must be 1 or more, and --workers={options.workers} 0 or "
                          "more")  # fmt: skip
    dtype = dtype_named(options.precision, option="--precision")
    if dtype == torch.bfloat16 and options.out.suffix == ".npz":
        raise ConfigError(f"--precision=bfloat16: NumPy has none, so {options.out} cannot hold it; write a "
                          ".safetensors, or say --precision=float16")  # fmt: skip
    overrides = [word for word in options.source if "=" in word and not Path(word).exists()]
    if (overrides and len(overrides) < len(options.source)) or (not overrides and len(options.source) > 1):
        raise ConfigError(f"give one path, or a dataset as data=NAME data.OPTION=VALUE ..., not {options.source}")
    if overrides and options.column is not None:
        raise ConfigError(f"--column={options.column} is for parquet files, and the source is a dataset")
    data = _dataset(overrides) if overrides else None
    items = None if data is not None else read_items(options.source[0], column=options.column)
    model = FusedEncoder.from_pretrained(options.folder, device=_device(options.device), dtype=dtype)
    if data is not None:
        rows = _write_dataset(model, data, options)
    else:
        assert items is not None
        model.check_modality(items.modality)
        fused = encode_all(model, items.modality, items.items, options)
        about = {"modality": items.modality, "model": model.digest, "normalized": str(options.normalize).lower()}
        about["precision"] = name_of(fused.dtype)
        write_features(options.out, fused, items.names, {**about, "krossfuse": version("krossfuse")})
        rows = len(fused)
    print(f"{options.out}: {rows} embeddings of {model.dim} dimensions, {options.precision}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="krossfuse encode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="the model: a folder that krossfuse export wrote, or owner/name on the hub")
    parser.add_argument("source", nargs="+", help="a folder of images, an image, a .txt or .parquet file; or data=NAME")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help=f"ends in {' or '.join(SUFFIXES)}"
    )
    parser.add_argument("--column", help="of a parquet file")
    parser.add_argument("--normalize", action="store_true", help="scale the embeddings to norm 1")
    parser.add_argument(
        "--precision", default="float32", help=f"{', '.join(DTYPES)}: of encoders, fusion and file (float32)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="items in memory at a time (64)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (0: none but the main one)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device={name}: {str(error).splitlines()[0]}") from None
    return device


def encode_all(model: FusedEncoder, modality: Modality, items: Sequence[Any], options: argparse.Namespace) -> Tensor:
    """Return the embeddings of many items, over a temporary file where they are too many for memory."""
    sink = RowSink(len(items))
    try:
        for block in model.stream(
            modality,
            items,
            batch_size=options.batch_size,
            progress=not options.quiet,
            num_workers=options.workers if modality == "image" else 0,
        ):
            # In half precision the squares of a norm have no room.
            wide = block.to(torch.promote_types(block.dtype, torch.float32))
            sink.write((normalised(wide).to(block) if options.normalize else block).cpu())
        return sink.close()
    except BaseException:
        sink.abandon()
        raise


def write_features(path: Path, fused: Tensor, names: Sequence[str], about: dict[str, str]) -> None:
    """Write embeddings and the names of their rows to one file, whole or not at all.

    Args:
        path: ``.safetensors``: the tensor ``features``, and in the metadata ``names`` as JSON; ``.npz``: the arrays
            ``features`` and ``names``.
        fused: (n, dim).
        names: of the rows.
        about: what else is to be known, as texts.
    """
    with replacing(path) as partial, partial.open("wb") as stream:
        if path.suffix == ".npz":
            texts: dict[str, Any] = {key: np.array(value) for key, value in about.items()}
            np.savez(stream, **{FEATURES: fused.numpy(), NAMES: np.array(names), **texts})
        else:
            write_safetensors(stream, {FEATURES: fused}, {NAMES: json.dumps(list(names)), **about})


def _dataset(overrides: Sequence[str]) -> BaseDataModule:
    """Return the dataset of ``data=NAME data.OPTION=VALUE``, composed as a job composes it."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from krossfuse.app.build import job_config, make
    from krossfuse.app.paths import CONFIG_DIR

    other = [word for word in overrides if not word.startswith(("data=", "data."))]
    if other:
        raise ConfigError(f"{other[0]!r} is no option of a dataset: krossfuse encode takes data=NAME data.OPTION=VALUE")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = job_config(hydra.compose("config", overrides=list(overrides)))
    data = make(cfg["data"], "data")
    if not isinstance(data, BaseDataModule):
        raise ConfigError(f"{overrides[0]} holds features already; krossfuse encode takes images and texts")
    data.check()
    return data


def _write_dataset(model: FusedEncoder, data: BaseDataModule, options: argparse.Namespace) -> int:
    parts = [part for part in data.parts() if part.modality in model.modalities]
    if not parts:
        model.check_modality(data.parts()[0].modality)
    fused = {part: {ROLE: encode_all(model, part.modality, data.items(part), options)} for part in parts}
    precision = name_of(model.dtype)
    fingerprint = {"model": model.digest, **({} if precision == DTYPES[0] else {"precision": precision})}
    record = {ROLE: {"name": f"{model.pair.name}, fused", "fingerprint": fingerprint, "precision": precision}}
    save_embeddings(options.out, FeatureBundle(data.info, model.pair.name, fused, record))
    return sum(len(of[ROLE]) for of in fused.values())
