"""``krossfuse store``: list, show, verify and delete what the feature store holds."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from krossfuse.core.errors import ConfigError, StoreError, did_you_mean
from krossfuse.features.entry import Entry
from krossfuse.features.stores import FeatureStore, default_store_root, open_store

if TYPE_CHECKING:
    from rich.text import Text


def main(argv: Sequence[str]) -> int:
    """Run one sub-command.

    Args:
        argv: the arguments after ``krossfuse store``.

    Returns:
        0, or 1 if ``verify`` found damage or ``delete`` left an entry that a job is writing.

    Raises:
        ConfigError: nothing fits the given key, dataset or encoder; a key that is empty or fits several entries that
            would be deleted; no such store.
    """
    options = _parser().parse_args(argv)
    if options.store == "" or (options.store and "://" not in options.store and not Path(options.store).is_dir()):
        raise ConfigError(
            f"--store={options.store!r}: there is no such folder; without --store: {default_store_root()}"
        )
    status: int = options.run(open_store(options.store or default_store_root()), options)
    return status


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
            "--store", metavar="WHERE", help="folder or URL (default: KROSSFUSE_STORE, else the user's cache)"
        )
        if name == "delete":
            command.add_argument("--all", action="store_true", help="everything")
            command.add_argument("--dry-run", action="store_true", help="say what would be deleted, delete nothing")
            command.add_argument("--yes", action="store_true", help="delete without a question")
    return parser


def _chosen(store: FeatureStore, options: argparse.Namespace, *, one: bool = False) -> list[Entry]:
    """Return the entries that fit all given conditions.

    Args:
        store: the store.
        options: the conditions.
        one: whether each key must fit one entry (or what is left of it) only.

    Raises:
        ConfigError: a condition is empty (a variable that is not set), or fits none (the message names the nearest that
            the store has), or a key fits several though it must not.
    """
    conditions = [("KEY", key) for key in options.keys]
    conditions += [(f"--{what}", getattr(options, what)) for what in ("dataset", "encoder")]
    for what, value in conditions:
        if value is not None and not value.strip():
            raise ConfigError(
                f"krossfuse store: {what} is empty (a variable that is not set?); that would fit everything"
            )
    entries = store.entries()
    for key in options.keys:
        fits = sorted({entry.name for entry in entries if entry.name.startswith(key)})
        if not fits:
            raise ConfigError(f"store {store.where!r} has no key {key!r}; krossfuse store list shows all")
        if one and len(fits) > 1:
            raise ConfigError(f"key {key!r} fits {len(fits)} entries: {fits[:5]}; give more of it, or --all")
    for what in ("dataset", "encoder"):
        value = getattr(options, what)
        have = sorted({entry.key.about.get(what, "") for entry in entries})
        if value is not None and value not in have:
            raise ConfigError(
                f"store {store.where!r} has no {what} {value!r}{did_you_mean(value, have)}; it has {have}"
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
    _print(store, _chosen(store, options), f"Feature store {store.where}")
    return 0


def _show(store: FeatureStore, options: argparse.Namespace) -> int:
    for entry in _chosen(store, options):
        print(store.record(entry), end="")
    return 0


def _verify(store: FeatureStore, options: argparse.Namespace) -> int:
    entries = [entry for entry in _chosen(store, options) if not entry.partial]
    damaged = 0
    for entry in entries:
        try:
            store.verify(entry, again=True)
        except StoreError as error:
            damaged += 1
            print(error, file=sys.stderr)
    print(f"{len(entries) - damaged} of {len(entries)} entries are as they were written")
    return 1 if damaged else 0


def _delete(store: FeatureStore, options: argparse.Namespace) -> int:
    named = options.dataset is not None or options.encoder is not None
    if not (options.all or options.keys or named or options.partial):
        raise ConfigError("krossfuse store delete: say what (KEY, --dataset, --encoder, --partial) or --all")
    entries = _chosen(store, options, one=True)
    _print(store, entries, "Would be deleted" if options.dry_run else "To delete")
    if options.dry_run or not entries:
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError("krossfuse store delete: nobody is there to be asked; say --yes")
        if input(f"Delete these {len(entries)} entries? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return 1
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

    table = Table(box=box.SIMPLE, title=_literal(title), title_justify="left")
    for name in ("dataset", "part", "encoder"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "dim", "size", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("key", no_wrap=True)
    for entry in entries:
        about = entry.key.about
        table.add_row(
            *(_literal(about.get(name, "")) for name in ("dataset", "part", "encoder")),
            f"{entry.done}/{entry.rows}, partial" if entry.partial else str(entry.rows),
            str(entry.dim) if entry.dtype == "float32" else f"{entry.dim} {entry.dtype}",
            _bytes(entry.size),
            _age(time.time() - entry.created),
            entry.name[:12],
        )
    # A pipe or a log has no width of its own; nothing is cut there.
    console = Console(width=None if sys.stdout.isatty() else 160)
    if entries:
        console.print(table)
    total = _bytes(sum(entry.size for entry in entries))
    line = f"{len(entries)} entries, {total}, in {store.where}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _literal(name: object) -> Text:
    """Return a name as it is: no markup, and no control characters."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name)))


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
