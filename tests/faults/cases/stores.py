"""The feature store: where it is, what it holds, damage, other formats; ``krossfuse store``; jobs that are stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.case import FAILED, Case, Outcome, measured, warned
from faults.files import IMAGES, editing, entries, images, store

FEATURES = "features"
AT = ("--store", "store")


def command(
    name: str, *words: str | tuple[str, ...], run: tuple[str, ...], change: Callable[[Path], object] | None = None,
    **more: Any,
) -> Case:  # fmt: skip
    """Return a case of ``krossfuse store`` on a store of a real extraction, changed."""
    more.setdefault("files", store(change))
    return Case(id=f"store-{name}", room=FEATURES, run=["store", *run], words=words, **more)


def job(
    name: str, *words: str | tuple[str, ...], run: tuple[str, ...] = (), change: Callable[[Path], object] | None = None,
    **more: Any,
) -> Case:  # fmt: skip
    """Return a case of a job that finds such a store."""
    more.setdefault("files", store(change))
    return Case(id=f"job-{name}", room=FEATURES, run=[*IMAGES, *run], words=words, **more)


def all_there(folder: Path, outcome: Outcome) -> None:
    """Check that nothing was deleted."""
    assert len(entries(folder / "store")) >= 3, "entries are gone"


def none_there(folder: Path, outcome: Outcome) -> None:
    assert not entries(folder / "store")


def first(store: Path) -> Path:
    return entries(store)[0]


def of_images(store: Path) -> Path:
    """Return an entry of training images under the cross-modal encoder."""
    for entry in entries(store):
        about = json.loads((entry / "entry.json").read_text())["about"]
        if about["part"] == "train:image":
            return entry
    raise AssertionError


def flip(store: Path) -> None:
    """Change one byte of every entry's features."""
    for entry in entries(store):
        path = entry / "features.npy"
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)


def same_beginning(store: Path) -> None:
    """Give two entries keys that begin alike."""
    one, other, *_ = entries(store)
    for number, entry in enumerate((one, other)):
        entry.rename(entry.with_name(f"feed000{number}" + entry.name[8:]))


def with_format(value: object) -> Callable[[Path], object]:
    return editing("entry.json", lambda record: record.update(format=value))


def cut_features(store: Path) -> None:
    for entry in entries(store):
        os.truncate(entry / "features.npy", 300)


COMMANDS = [
    command("delete-of-an-unset-variable", "empty", "variable", run=("delete", "", *AT), after=all_there, short=True),
    command("delete-of-a-blank", "empty", "variable", run=("delete", " ", "--yes", *AT), after=all_there),
    command("delete-of-nothing", "--all", "KEY", run=("delete", *AT), after=all_there),
    command("delete-of-an-empty-dataset", "--dataset", ("empty", "say what"), run=("delete", "--dataset", "", "--yes", *AT), after=all_there),
    command("delete-of-an-unknown-key", "zzz", "store list", run=("delete", "zzz", "--yes", *AT), after=all_there),
    command("delete-of-one-unknown-key-among-known", "zzz", "store list", after=all_there,
            run=("delete", "feed0000", "zzz", "--yes", *AT), change=same_beginning),
    command("delete-of-a-beginning-of-two", "'feed'", "2 entries", "more of it", run=("delete", "feed", "--yes", *AT),
            change=same_beginning, after=all_there),
    command("delete-without-a-terminal", "--yes", run=("delete", "--all", *AT), after=all_there),
    command("delete-answered-no", "--yes", run=("delete", "--all", *AT), process=True, stdin="n\n", after=all_there),
    command("delete-all", "deleted", run=("delete", "--all", "--yes", *AT), status=0, after=none_there),
    command("delete-dry-run", "would be deleted", run=("delete", "--all", "--dry-run", *AT), status=0, after=all_there),
    command("delete-from-nowhere", "nowhere", run=("delete", "--all", "--yes", "--store", "nowhere")),
    command("delete-unknown-dataset", "'image_foldr'", "did you mean 'image_folder'", after=all_there,
            run=("delete", "--dataset", "image_foldr", "--yes", *AT)),
    command("delete-outside-the-store", "images", run=("delete", "../images", "--yes", *AT),
            after=lambda folder, outcome: is_there(folder / "images")),
    command("list-nowhere", "nowhere", ("no such folder", "no store"), run=("list", "--store", "nowhere")),
    command("list-of-a-file", "images/red/0.png", run=("list", "--store", "images/red/0.png")),
    command("list-at-an-unset-variable", "--store", run=("list", "--store", "")),
    command("list-at-an-unknown-protocol", "nope://x", run=("list", "--store", "nope://x")),
    command("list-at-a-protocol-without-its-package", "s3://bucket/x", "s3fs", run=("list", "--store", "s3://bucket/x")),
    command("list-with-a-damaged-record", "damaged", "entry.json", run=("list", *AT), status=0,
            change=lambda root: (first(root) / "entry.json").write_text("{")),
    command("list-of-a-name-with-markup", "[red]x[/nope]", run=("list", *AT), status=0,
            change=editing("entry.json", lambda record: record["about"].update(dataset="[red]x[/nope]"))),
    command("show-unknown-key", "zzz", "store list", run=("show", "zzz", *AT)),
    command("show-unknown-encoder", "'openmoji'", "did you mean", run=("show", "--encoder", "openmoji", *AT)),
    command("verify-damage", "damaged", "SHA-256", "store delete", run=("verify", *AT), change=flip, status=FAILED,
    ),
    command("verify-cut-short", "damaged", "bytes", "store delete", run=("verify", *AT), change=cut_features, status=FAILED),
    command("verify-a-damaged-record", "damaged", "entry.json", run=("verify", *AT), status=FAILED,
            change=lambda root: (first(root) / "entry.json").write_text("[]")),
    command("verify-features-gone", "damaged", "features.npy", run=("verify", *AT), status=FAILED,
            change=lambda root: (first(root) / "features.npy").unlink()),
    command("verify-another-format", "format 99", "format 1", run=("verify", *AT), status=FAILED, change=with_format(99)),
    command("delete-another-format", "deleted", run=("delete", "--all", "--yes", *AT), status=0, change=with_format(99),
            after=none_there),
    command("delete-damaged", "deleted", run=("delete", "--all", "--yes", *AT), status=0, after=none_there,
            change=lambda root: (first(root) / "entry.json").write_text("{")),
]  # fmt: skip


def is_there(path: Path) -> None:
    assert path.exists(), path


JOBS = [
    job("finds-damaged-features", change=flip, status=0, after=warned("damaged", "SHA-256", "computing it anew")),
    job("finds-features-cut-short", change=cut_features, status=0, after=warned("damaged", "bytes", "computing it anew")),
    job("finds-a-damaged-record", status=0, after=warned("damaged", "entry.json", "computing it anew"),
        change=lambda root: [(entry / "entry.json").write_text("{") for entry in entries(root)]),
    job("finds-format-0", "format 0", "format 1", "store delete", change=with_format(0), status=FAILED),
    job("finds-format-99", "format 99", "format 1", "store delete", change=with_format(99), status=FAILED),
    job("finds-a-format-that-is-text", "format '1'", "format 1", change=with_format("1"), status=FAILED),
    job("finds-another-key-under-its-name", status=0, after=warned("damaged", "another key", "computing it anew"),
        change=editing("entry.json", lambda record: record["key"].update(part="other"))),
    job("finds-another-shape", status=0, after=warned("damaged", "computing it anew"),
        change=editing("entry.json", lambda record: record.update(dim=record["dim"] + 1))),
    job("finds-no-place-to-write", "paths.store", "store", status=FAILED, files=images(),
        run=("paths.store=images/red/0.png",)),
    job("finds-a-place-that-cannot-be-written", "paths.store", "/proc/store", status=FAILED, files=images(),
        run=("paths.store=/proc/store",)),
    job("with-an-url-as-folder", "s3://bucket/x", "store=fsspec", "store.url=", files=images(),
        run=("paths.store=s3://bucket/x",), after=lambda folder, outcome: is_not_there(folder / "s3:"), short=True),
    job("with-a-protocol-without-its-package", "store.url='s3://bucket/x'", "s3fs", files=images(),
        run=("store=fsspec", "store.url=s3://bucket/x")),
    job("with-an-unknown-protocol", "store.url='nope://x'", files=images(), run=("store=fsspec", "store.url=nope://x")),
    job("with-a-remote-store-without-url", "store.url", ("s3://", "URL"), files=images(), run=("store=fsspec",)),
    job("with-a-folder-as-url", "store.url='store'", "store=local", files=images(), run=("store=fsspec", "store.url=store")),
    job("with-an-unknown-store", "no option 'locl'", "did you mean 'local'", files=images(), run=("store=locl",)),
    job("with-an-empty-store", "paths.store", files=images(), run=("paths.store=''",)),
    job("with-a-damaged-remote-store", status=0, after=warned("damaged", "computing it anew"),
        run=("store=fsspec", "store.url=file://{here}/remote", "store.cache=cache"),
        files=lambda folder, made: (store()(folder, made), shutil.move(folder / "store", folder / "remote"),
                                    flip(folder / "remote"))),
    job("that-cannot-use-its-workers", "num_workers", files=images(), run=("data.num_workers=1.5",)),
    job("without-any-place-to-keep-features", status=0, after=measured, files=images(), run=("store=none",)),
    job("on-more-devices-than-there-are", "trainer", "gpu", files=images(),
        run=("trainer.accelerator=gpu", "trainer.devices=64")),
    job("with-an-unknown-strategy", "trainer", "'ddpp'", files=images(), run=("+trainer.strategy=ddpp",)),
    job("on-several-nodes", "trainer", ("node", "num_nodes"), files=images(), run=("+trainer.num_nodes=2",)),
]  # fmt: skip


def is_not_there(path: Path) -> None:
    assert not path.exists(), path


CASES = [*COMMANDS, *JOBS]
