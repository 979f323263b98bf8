"""``krossfuse store``: list, show, verify and delete what the feature store holds."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from krossfuse.core.errors import ConfigError, did_you_mean
from krossfuse.features.store import DamagedEntryError, Entry, FeatureStore


def main(argv: Sequence[str]) -> int:
    """Run one sub-command.

    Args:
        argv: the arguments after ``krossfuse store``.

    Returns:
        0, or 1 if ``verify`` found damage or ``delete`` left an entry that a job is writing.

    Raises:
        ConfigError: nothing fits the given key, dataset or encoder.
    """
    options = _parser().parse_args(argv)
    store = FeatureStore(options.store or _default_root())
    found: int = options.run(store, options)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="krossfuse store", description="What the feature store holds.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, words in (
        ("list", _list, "one line an entry, oldest first"),
        ("show", _show, "all that an entry's key is made of, as JSON"),
        ("verify", _verify, "read every byte and compare the checksums"),
        ("delete", _delete, "delete entries; they are computed anew when wanted"),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.set_defaults(run=run)
        command.add_argument("keys", nargs="*", metavar="KEY", help="key, or the beginning of one")
        command.add_argument("--dataset", help="entries of this dataset")
        command.add_argument("--encoder", help="entries of this encoder")
        command.add_argument("--partial", action="store_true", help="what killed jobs left half-written")
        command.add_argument(
            "--store", metavar="FOLDER", help="the store (default: KROSSFUSE_STORE, else the user's cache)"
        )
        if name == "delete":
            command.add_argument("--all", action="store_true", help="everything")
            command.add_argument("--dry-run", action="store_true", help="say what would be deleted, delete nothing")
    return parser


def _default_root() -> str:
    from krossfuse.app.paths import cache_dir

    return os.environ.get("KROSSFUSE_STORE") or cache_dir("features")


def _chosen(store: FeatureStore, options: argparse.Namespace) -> list[Entry]:
    """Return the entries that fit all given conditions.

    Raises:
        ConfigError: a key, dataset or encoder fits none; the message names the nearest that the store has.
    """
    entries = store.entries()
    for key in options.keys:
        if not any(entry.name.startswith(key) for entry in entries):
            raise ConfigError(f"store {str(store.root)!r} has no key {key!r}; krossfuse store list shows all")
    for what in ("dataset", "encoder"):
        value = getattr(options, what)
        have = sorted({entry.key.about.get(what, "") for entry in entries})
        if value is not None and value not in have:
            raise ConfigError(
                f"store {str(store.root)!r} has no {what} {value!r}{did_you_mean(value, have)}; it has {have}"
            )
    return [
        entry
        for entry in entries
        if (not options.keys or any(entry.name.startswith(key) for key in options.keys))
        and options.dataset in (None, entry.key.about.get("dataset"))
        and options.encoder in (None, entry.key.about.get("encoder"))
        and (entry.partial or not options.partial)
    ]


def _list(store: FeatureStore, options: argparse.Namespace) -> int:
    _print(store, _chosen(store, options), f"Feature store {store.root}")
    return 0


def _show(store: FeatureStore, options: argparse.Namespace) -> int:
    for entry in _chosen(store, options):
        print((entry.folder / "entry.json").read_text("utf-8"), end="")
    return 0


def _verify(store: FeatureStore, options: argparse.Namespace) -> int:
    entries = [entry for entry in _chosen(store, options) if not entry.partial]
    damaged = 0
    for entry in entries:
        try:
            store.verify(entry, again=True)
        except DamagedEntryError as error:
            damaged += 1
            print(error, file=sys.stderr)
    print(f"{len(entries) - damaged} of {len(entries)} entries are as they were written")
    return 1 if damaged else 0


def _delete(store: FeatureStore, options: argparse.Namespace) -> int:
    if not (options.all or options.keys or options.dataset or options.encoder or options.partial):
        raise ConfigError("krossfuse store delete: say what (KEY, --dataset, --encoder, --partial) or --all")
    entries = _chosen(store, options)
    if options.dry_run:
        _print(store, entries, "Would be deleted")
        return 0
    left = [entry for entry in entries if not store.delete(entry.name, partial=entry.partial)]
    for entry in left:
        print(f"{entry.name} is being written by a job; left alone", file=sys.stderr)
    gone = [entry for entry in entries if entry not in left]
    print(f"deleted {len(gone)} entries, {_bytes(sum(entry.size for entry in gone))}")
    return 1 if left else 0


def _print(store: FeatureStore, entries: Sequence[Entry], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    for name in ("dataset", "part", "encoder"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "dim", "size", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("key", no_wrap=True)
    for entry in entries:
        about = entry.key.about
        table.add_row(
            *(about.get(name, "") for name in ("dataset", "part", "encoder")),
            f"{entry.done}/{entry.rows}, partial" if entry.partial else str(entry.rows),
            f"{entry.dim}" + (" half" if entry.dtype == "float16" else ""),
            _bytes(entry.size),
            _age(time.time() - entry.created),
            entry.name[:12],
        )
    # A pipe or a log has no width of its own; nothing is cut there.
    console = Console(width=None if sys.stdout.isatty() else 160)
    if entries:
        console.print(table)
    total = _bytes(sum(entry.size for entry in entries))
    console.print(f"{len(entries)} entries, {total}, in {store.root}", highlight=False, soft_wrap=True)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
