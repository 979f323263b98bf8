"""``krossfuse index MODEL IMAGES -o FILE``: an index of images that ``krossfuse search`` finds in."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from krossfuse.core.errors import ConfigError
from krossfuse.features.entry import DTYPES
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.precision import dtype_named
from krossfuse.model.search import make_index, save_index
from krossfuse.model.sources import read_items


def main(arguments: Iterable[str] | None = None) -> int:
    """Run ``krossfuse index``; returns the exit status.

    Raises:
        ConfigError: the source holds texts, the file has another ending, or there is no such precision.
        DataError: an image cannot be read; then no file is written.
    """
    parser = argparse.ArgumentParser(
        prog="krossfuse index", description="Make an index of images for krossfuse search."
    )
    parser.add_argument("folder", help="the model: a folder that krossfuse export wrote, or owner/name on the hub")
    parser.add_argument("images", help="a folder of images, or a .parquet file of them")
    parser.add_argument("--column", help="of a parquet file")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="ends in .safetensors")
    parser.add_argument(
        "--precision", default="float32", help=f"{', '.join(DTYPES)}: of encoders, fusion and file (float32)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.out.suffix != ".safetensors":
        raise ConfigError(f"-o {options.out}: an index is a file that ends in .safetensors")
    dtype = dtype_named(options.precision, option="--precision")
    items = read_items(options.images, column=options.column)
    if items.modality != "image":
        raise ConfigError(f"{options.images!r} holds texts, and an index is of images")
    folder = Path(options.folder)
    model = FusedEncoder.from_pretrained(options.folder, dtype=dtype)
    about = {"kind": "files" if items.root else "rows", "root": str(items.root or "")}
    about["folder"] = str(folder.resolve()) if folder.is_dir() else options.folder
    save_index(make_index(model, items.items, items.names, progress=not options.quiet, about=about), options.out)
    print(f'{options.out}: {len(items.items)} images; krossfuse search "WORDS" --index {options.out}')
    return 0
