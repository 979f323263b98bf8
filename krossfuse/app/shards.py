"""``krossfuse shards FOLDER``: write the manifest of a folder of tar files, which ``data=shards`` reads."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from krossfuse.core.errors import DataError
from krossfuse.core.parts import SPLITS
from krossfuse.data.shards import make_manifest


def main(arguments: Iterable[str] | None = None) -> int:
    """Run ``krossfuse shards``; returns the exit status.

    Raises:
        DataError: what is wrong with which shard; then no manifest is written.
    """
    parser = argparse.ArgumentParser(
        prog="krossfuse shards",
        description="Read every tar file below FOLDER once and write FOLDER/manifest.json: order, counts, checksums.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    for split in SPLITS:
        default = f"{split}/*.tar"
        parser.add_argument(
            f"--{split}", nargs="+", default=[default], metavar="GLOB", help=f"its shards, sorted (default: {default})"
        )
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, a line each, in the labels' order")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if not options.folder.is_dir():
        raise DataError(f"there is no folder {str(options.folder)!r}")
    shards = {
        split: [
            str(p.relative_to(options.folder)) for g in getattr(options, split) for p in sorted(options.folder.glob(g))
        ]
        for split in SPLITS
    }
    shards = {split: of for split, of in shards.items() if of}
    if not shards:
        raise DataError(f"no shards below {str(options.folder)!r}: name them by --train, --val, --test GLOB")
    classes = None
    if options.classes is not None:
        try:
            classes = [
                line.strip() for line in options.classes.read_text(encoding="utf-8").splitlines() if line.strip()
            ]
        except OSError as error:
            raise DataError(f"--classes {str(options.classes)!r} cannot be read: {error}") from None
    manifest = make_manifest(options.folder / "manifest.json", shards, classes=classes)
    for split in manifest.splits:
        of_split = manifest.of(split)
        print(f"{split}: {len(of_split)} shards, {sum(shard.items for shard in of_split)} items")
    print(f"krossfuse data=shards data.manifest={options.folder / 'manifest.json'}")
    return 0
