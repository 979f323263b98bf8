"""``krossfuse search "a red mushroom"``: the images that are nearest to a text or to an image.

krossfuse search "a red mushroom"                                        among the bundled emoji
krossfuse search "a red mushroom" --index mine.safetensors               in an index that krossfuse index made
krossfuse search --image photo.png --grid found.html                     by an image; results as a page (or .png)
krossfuse search "a red mushroom" --json                                 for programs
krossfuse search --serve                                                 a page: CLIP, expert and fused side by side
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from PIL import Image

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.local_server import HOST, LOOPBACK
from krossfuse.data.common import ImageFiles, open_image
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.grid import write_grid
from krossfuse.model.search import Hit, Index, load_index
from krossfuse.model.search_page import MOST_RESULTS, PORT, SearchServer
from krossfuse.model.side_by_side import SideBySide, parents_of


def main(arguments: Iterable[str] | None = None) -> int:
    """Run ``krossfuse search``; returns the exit status.

    Raises:
        ConfigError: no query or two, or an index that another model made.
        StoreError: the index or its model is not there.
        DataError: the image cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="krossfuse search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?", help="what to look for")
    parser.add_argument("--image", type=Path, metavar="FILE", help="look for what resembles an image")
    parser.add_argument("--index", type=Path, metavar="FILE", help="that krossfuse index made (default: all emoji)")
    parser.add_argument("--model", help="the model of the index (default: where the index says)")
    parser.add_argument("-k", type=int, default=10, help="how many results (10)")
    parser.add_argument("--cosine", action="store_true", help="by cosine (default: by the fused kernel)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="write a picture grid, .png or .html")
    parser.add_argument("--serve", action="store_true", help="serve a page for this machine, until Ctrl-C")
    parser.add_argument("--host", help="of --serve, where others may come too (default: this machine alone)")
    parser.add_argument("--port", type=int, help=f"of --serve (default: {PORT}; 0: any that is free)")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.serve:
        return _serve(options)
    if options.host is not None or options.port is not None:
        raise ConfigError("krossfuse search: --host and --port are of the page; say --serve too")
    if (options.text is None) == (options.image is None):
        raise ConfigError("krossfuse search: give a text, or --image FILE")
    if options.text is not None and not options.text.strip():
        raise ConfigError("krossfuse search: the text is empty (a variable that is not set?)")
    if options.k < 1:
        raise ConfigError(f"-k {options.k}: at least one result")
    if options.grid is not None and options.grid.suffix not in (".png", ".html"):
        raise ConfigError(f"--grid={options.grid}: the file must end in .png or .html")
    query = options.text if options.image is None else open_image(options.image)
    model, index = _open(options.index, options.model)
    start = time.perf_counter()
    embedding = model.encode_text(query) if options.image is None else model.encode_image(query)
    hits = index.nearest(embedding, options.k, cosine=options.cosine)
    seconds = time.perf_counter() - start
    name = options.text if options.image is None else str(options.image)
    if options.grid is not None:
        write_grid(options.grid, name, hits, lambda row: _pictures(index)[row])
    if options.json:
        found = {
            "query": name,
            "items": len(index.names),
            "seconds": round(seconds, 4),
            "hits": [asdict(h) for h in hits],
        }
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        _print(name, hits, len(index.names), seconds)
    return 0


def _open(path: Path | None, folder: str | None) -> tuple[FusedEncoder, Index]:
    if path is None:
        if folder is not None:
            raise ConfigError(f"--model={folder} goes with --index FILE; without one, the emoji's own model is used")
        from krossfuse.app.emoji import emoji_search

        return emoji_search()
    index = load_index(path)
    folder = folder or index.about.get("folder")
    if folder is None:
        raise ConfigError(f"index {str(path)!r} does not say where its model is; say --model FOLDER")
    model = FusedEncoder.from_pretrained(folder)
    index.check_model(model)
    return model, index


def _pictures(index: Index) -> Sequence[Image.Image]:
    kind = index.about.get("kind")
    if kind == "emoji":
        from krossfuse.app.emoji import all_emoji

        return all_emoji()
    if kind == "files":
        for name in index.names:  # an index may come from somebody else: it shows nothing beside its folder
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise DataError(f"the index names {name!r}, which is not below its folder; make it again")
        return ImageFiles([Path(index.about["root"]) / name for name in index.names])
    raise DataError(
        f"the index does not say where its {len(index.names)} pictures lie: it was made of a table, not of a folder"
    )


def _serve(options: argparse.Namespace) -> int:
    from krossfuse.app.emoji import emoji_folder

    for name in ("text", "image", "json", "grid"):
        if getattr(options, name) not in (None, False):
            raise ConfigError(f"krossfuse search: with --serve, leave {name} out: queries are made on the page")
    if not 1 <= options.k <= MOST_RESULTS:
        raise ConfigError(f"-k {options.k}: with --serve, from 1 to {MOST_RESULTS} results")
    model, index = _open(options.index, options.model)
    pictures = _pictures(index)
    if options.index is None:
        path = emoji_folder() / "parents.safetensors"
    else:
        path = options.index.with_name(f"{options.index.stem}.parents.safetensors")
    parents = parents_of(model, index, pictures, path, progress=True)
    host = HOST if options.host is None else options.host
    if host not in LOOPBACK:
        print(f"--host={host}: whoever reaches this machine can see the pictures and search them; there is no password "
              "and no encryption", file=sys.stderr)  # fmt: skip
    port = PORT if options.port is None else options.port
    search = SideBySide(model, index, parents, cosine=options.cosine)
    with SearchServer(search, pictures, k=options.k, port=port, host=host) as server:
        server.serve_until_interrupted(f"{server.address} searches {len(index.names)} images; Ctrl-C ends it")
    return 0


def _print(query: str, hits: list[Hit], items: int, seconds: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, title=Text(query), title_justify="left")
    table.add_column("", justify="right")
    table.add_column("item", overflow="fold")
    table.add_column("similarity", justify="right")
    for hit in hits:
        table.add_row(str(hit.rank), Text(hit.name), f"{hit.score:.4f}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"{len(hits)} of {items} items, {seconds * 1000:.0f} ms", highlight=False)
