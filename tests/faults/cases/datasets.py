"""Datasets of images and texts: folders, files, labels, splits."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from faults.case import Case, Made, Outcome, measured, warned
from faults.files import IMAGES, SHAPES, TEXTS, good_lines, images, picture, texts
from PIL import Image

DATA = "data"


def of_images(
    name: str, *words: str | tuple[str, ...], change: Callable[[Path], object] | None = None,
    run: tuple[str, ...] = (), each: int = 8, folders: tuple[str, ...] = SHAPES, **more: object,
) -> Case:  # fmt: skip
    """Return a case of a folder of images."""
    made = images(folders, each=each, change=change)
    return Case(id=name, room=DATA, run=[*IMAGES, *run], files=made, words=words, **more)  # type: ignore[arg-type]


def of_texts(
    name: str, *words: str | tuple[str, ...], lines: list[str] | None = None, run: tuple[str, ...] = (),
    files: Callable[[Path, Made], object] | None = None, **more: object,
) -> Case:  # fmt: skip
    """Return a case of a file of labelled texts."""
    return Case(
        id=name,
        room=DATA,
        run=[*TEXTS, *run],
        files=files or texts(lines),
        words=words,
        **more,  # type: ignore[arg-type]
    )


def split(root: Path, *, test_from: int = 6) -> None:
    """Turn class folders into train and test folders: the last images of each class are the test's."""
    for name in SHAPES:
        (root / "train" / name).mkdir(parents=True)
        (root / "test" / name).mkdir(parents=True)
        for path in sorted((root / name).iterdir()):
            path.rename(root / ("test" if int(path.stem) >= test_from else "train") / name / path.name)
        (root / name).rmdir()


def same_in_both(root: Path) -> None:
    """Put three training images into test under other names."""
    split(root)
    for number, name in enumerate(SHAPES):
        shutil.copy(root / "train" / name / "0.png", root / "test" / name / f"copy{number}.png")


def claims_to_be_large(path: Path, side: int) -> None:
    """Write a PNG whose header says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def cut_short(root: Path) -> None:
    path = root / "red" / "3.png"
    Image.effect_noise((64, 64), 60).save(path)
    path.write_bytes(path.read_bytes()[:900])


def class_names(content: str) -> Callable[[Path], object]:
    return lambda root: (root.parent / "names.yaml").write_text(content)


def count_images(expected: int) -> Callable[[Path, Outcome], None]:
    """Return a check of how many images were encoded."""

    def check(folder: Path, outcome: Outcome) -> None:
        import json

        rows = [json.loads(path.read_text()) for path in (folder / "store").rglob("entry.json")]
        of_images = [entry for entry in rows if entry.get("about", {}).get("part", "").endswith(":image")]
        by_encoder: Counter[str] = Counter()
        for entry in of_images:
            by_encoder[entry["about"]["encoder"]] += entry["rows"]
        assert by_encoder
        assert set(by_encoder.values()) == {expected}, by_encoder

    return check


ROOTS = [
    Case(
        id="no-root", room=DATA, run=["data=image_folder"], words=["data.root is not set", "data.root=PATH"], short=True
    ),
    of_images("root-not-there", "data.root", "'nowhere'", "no folder", run=("data.root=nowhere",)),
    of_images("root-is-a-file", "data.root", "0.png", run=("data.root=images/red/0.png",)),
    of_images("root-empty", "no images", "'empty'", "CLASS/*.jpg", run=("data.root=empty",),
              change=lambda root: (root.parent / "empty").mkdir()),
    of_images("images-without-class-folders", "no images in class folders", "images/red", "CLASS/*.jpg",
              run=("data.root=images/red",)),
    of_images("files-that-are-no-images", "no images", "extensions", ".png",
              change=lambda root: [path.rename(path.with_suffix(".heic")) for path in root.glob("*/*.png")]),
    of_images("one-class", "class", "'red'", ("one class", "two"), folders=("red",), run=("probe=[linear_probe]",)),
    of_images("empty-class-folder", change=lambda root: (root / "yellow").mkdir(), status=0,
              after=warned("yellow", ("empty", "without an image"))),
    of_images("one-image-a-class", "dataset", ("test", "val"), "empty", each=1),
    of_images("class-in-test-alone", "'yellow'", "no training",
              change=lambda root: (split(root), (root / "test/yellow").mkdir(),
                                   picture("red", 200).save(root / "test/yellow/0.png"))),
    of_images("empty-test-folder", "test", "empty",
              change=lambda root: (split(root), shutil.rmtree(root / "test"), (root / "test").mkdir())),
]  # fmt: skip

DAMAGED_IMAGES = [
    of_images("image-cut-short", "images/red/3.png", "replace or remove", change=cut_short),
    of_images("image-of-no-bytes", "images/red/3.png", "replace or remove",
              change=lambda root: (root / "red/3.png").write_bytes(b"")),
    of_images("text-named-like-an-image", "images/red/3.png", "replace or remove",
              change=lambda root: (root / "red/3.png").write_text("not an image")),
    of_images("image-that-claims-to-be-large", "images/red/3.png", ("pixels", "large"), "replace or remove",
              change=lambda root: claims_to_be_large(root / "red/3.png", 30_000)),
    of_images("fifo-named-like-an-image", "images/red/fifo.png", change=lambda root: os.mkfifo(root / "red/fifo.png"),
              process=True, timeout=40),
    of_images("fifo-digested-by-content", "images/red/fifo.png", run=("data.digest=content",),
              change=lambda root: os.mkfifo(root / "red/fifo.png"), process=True, timeout=40),
    of_images("link-to-nowhere", "images/red/link.png",
              change=lambda root: (root / "red/link.png").symlink_to("nowhere.png")),
    of_images("link-to-itself", "images/red/link.png",
              change=lambda root: (root / "red/link.png").symlink_to("link.png")),
    of_images("folder-that-links-to-its-parent", change=lambda root: (root / "red/again").symlink_to(".."), status=0,
              after=count_images(24)),
    of_images("folder-that-links-to-itself", change=lambda root: (root / "red/again").symlink_to("."), status=0,
              after=count_images(24)),
    of_images("two-folders-that-link-to-each-other", status=0, after=count_images(40),  # each class has the other's
              change=lambda root: ((root / "red/a").symlink_to("../green"), (root / "green/b").symlink_to("../red"))),
    of_images("same-image-in-two-splits", change=same_in_both, status=0,
              after=warned("3", "train", "test", ("identical", "same"))),
    of_images("name-that-is-not-utf-8", status=0, after=measured,
              change=lambda root: os.rename(root / "red/3.png", os.fsencode(root / "red") + b"/caf\xe9.png")),
    of_images("images-of-every-kind", status=0, after=measured, change=lambda root: (
        Image.new("I;16", (20, 30)).save(root / "red/16bit.png"), Image.new("CMYK", (30, 20)).save(root / "red/cmyk.jpg"),
        Image.new("1", (30, 20)).save(root / "green/bits.png"), Image.new("LA", (1, 1)).save(root / "green/one.png"),
        Image.new("P", (30, 20)).save(root / "blue/palette.gif"))),
]  # fmt: skip

CLASS_NAMES = [
    of_images("class-names-not-there", "data.class_names", "names.yaml", run=("data.class_names=names.yaml",)),
    of_images("class-names-not-yaml", "data.class_names", "names.yaml", run=("data.class_names=names.yaml",),
              change=class_names("red: [")),
    of_images("class-names-no-mapping", "data.class_names", "{folder: name}", run=("data.class_names=names.yaml",),
              change=class_names("- red\n- green\n")),
    of_images("class-names-with-a-typo", "data.class_names", "'blue'", "did you mean 'bleu'",
              run=("data.class_names=names.yaml",), change=class_names("{red: a, green: b, bleu: c}")),
    of_images("two-classes-of-one-name", "data.class_names", "'a'", "red", "green", run=("data.class_names=names.yaml",),
              change=class_names("{red: a, green: a, blue: c}")),
    of_images("two-folders-of-one-name", "'dark red'", "dark_red", folders=("dark_red", "dark red", "blue")),
]  # fmt: skip

IMAGE_OPTIONS = [
    of_images("val-fraction-zero", "val_fraction=0", "above 0 and below 1", run=("data.val_fraction=0",)),
    of_images("val-fraction-one", "val_fraction=1.0", "below 1", run=("data.val_fraction=1.0",)),
    of_images("test-fraction-word", "test_fraction='much'", "number", run=("data.test_fraction=much",)),
    of_images("fractions-of-everything", "0.6", "0.5", "nothing for train",
              run=("data.val_fraction=0.6", "data.test_fraction=0.5")),
    of_images("split-seed", "split_seed='x'", ("whole number", "integer"), run=("data.split_seed=x",)),
    of_images("split-seed-negative", "split_seed=-1", ("whole number", "integer"), run=("data.split_seed=-1",)),
    of_images("digest", "data.digest='stats'", "did you mean 'stat'", run=("data.digest=stats",)),
    of_images("num-workers", "num_workers=-1", "0 or more", run=("data.num_workers=-1",)),
    of_images("prompt-without-a-place", "prompts.default", "'a photo'", "{}", run=("data.prompts={default: [a photo]}",)),
    of_images("prompts-empty", "prompts.default", "non-empty list", run=("data.prompts={default: []}",)),
    of_images("prompts-no-list", "prompts.default", "list", run=("data.prompts={default: 'a photo of a {}'}",)),
    of_images("prompts-no-mapping", "data.prompts", "mapping", run=("data.prompts=['a photo of a {}']",)),
    of_images("zero-shot-without-prompts", "zero_shot", "prompts", run=("~data.prompts.default",)),
    Case(id="openmoji-size", room=DATA, run=["data.size=0"], words=["data.size=0", "positive"]),
    Case(id="openmoji-limit", room=DATA, run=["data.limit=0"], words=["data.limit=0", "positive"]),
    Case(id="openmoji-limit-word", room=DATA, run=["data.limit=all"], words=["data.limit='all'", "null"]),
    Case(
        id="typographic-label-set", room=DATA, run=["data=openmoji_typographic", "data.label_set=grup"],
        words=["label_set='grup'", "did you mean 'group'"],
    ),
    Case(id="mnist-without-a-root", room=DATA, run=["data=mnist"], words=["data.root is not set", "data.root=PATH"],
         environment={"KROSSFUSE_TORCHVISION": ""}),
    Case(id="mnist-not-there", room=DATA, run=["data=mnist", "data.root=mnist"],
         words=["MNIST", "'mnist'", "data.download=true"]),
    Case(
        id="mnist-damaged", room=DATA, run=["data=mnist", "data.root=mnist"], words=["MNIST", "'mnist'"],
        files=lambda folder, made: ((folder / "mnist/MNIST/raw").mkdir(parents=True), [
            (folder / "mnist/MNIST/raw" / name).write_bytes(b"\0\0\x08\x03 nothing")
            for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
                         "t10k-labels-idx1-ubyte")]),
    ),
    Case(id="torchvision-dataset", room=DATA, run=["data=mnist", "data.root=.", "data.dataset=MNST"],
         words=["data.dataset='MNST'", "did you mean 'MNIST'"]),
]  # fmt: skip

OF_TEXTS = [
    of_texts("texts-without-a-root", "data.root is not set", "data.root=PATH", run=("data.root=null",)),
    of_texts("texts-not-there", "all2.txt", "data.root", run=("data.files={all: all2.txt}",), short=True),
    Case(id="texts-of-no-split", room=DATA, files=texts(), words=["data.files", "trian", "train", "test"],
         run=["data=text_files", "data.root=.", "data.files={trian: all.txt, test: all.txt}", "pair=openmoji_text"]),
    of_texts("texts-files-not-set", "data.files", "train.txt", run=("data.files=null",)),
    Case(id="texts-files-no-mapping", room=DATA, files=texts(), words=["data.files", "all.txt", ("mapping", "train.txt")],
         run=["data=text_files", "data.root=.", "data.files=all.txt", "pair=openmoji_text"]),
    of_texts("texts-in-a-folder", "cannot read", "all.txt",
             files=lambda folder, made: (folder / "all.txt").mkdir()),
    of_texts("texts-in-a-fifo", "all.txt", files=lambda folder, made: os.mkfifo(folder / "all.txt"), process=True,
             timeout=40),
    of_texts("texts-empty", "all.txt", "no lines", lines=[]),
    of_texts("line-without-a-label", "all.txt", "line 41", "label text", lines=[*good_lines(), "nothing"]),
    of_texts("one-class-of-texts", "class", "'1'", ("one class", "two"), lines=[x for x in good_lines() if x[0] == "1"]),
    of_texts("label-without-a-name", "'1'", "no class name", run=("data.classes={0: bad}",)),
    of_texts("two-labels-of-one-name", "data.classes", "'same'", run=("data.classes={0: same, 1: same}",)),
    of_texts("encoding-unknown", "data.encoding='utf-9'", run=("data.encoding=utf-9",)),
    of_texts("encoding-wrong", "all.txt", "utf-8", "data.encoding=auto", run=("data.encoding=utf-8",),
             files=texts([*good_lines(), "1 café"], encoding="latin-1")),
    of_texts("utf-16", "all.txt", ("utf-16", "encoding"), files=texts(encoding="utf-16")),
    of_texts("same-text-in-two-splits", status=0, after=warned("train", "test", ("identical", "same")),
             lines=[*good_lines(), *["1 the very same words"] * 20]),
    of_texts("images-probed-on-texts", "zero_shot", "image", run=("probe=[text_probe,zero_shot]",
             "~probe.text_probe")),
    of_texts("image-expert-on-texts", "fusion", "image", run=("pair=openmoji_image", "fusion=image_expert")),
    Case(id="senteval-without-a-root", room=DATA, run=["data=senteval", "pair=openmoji_text"],
         words=["data.root is not set", "data.root=PATH"], environment={"KROSSFUSE_SENTEVAL": ""}),
    Case(id="senteval-task", room=DATA, run=["data=senteval", "pair=openmoji_text", "data.root=.", "data.task=SST"],
         words=["data.task='SST'", "did you mean 'SST2'"]),
    Case(id="senteval-without-the-file", room=DATA, run=["data=senteval", "pair=openmoji_text", "data.root=."],
         words=["rt-polarity.all", "data.root"]),
]  # fmt: skip

CASES = [*ROOTS, *DAMAGED_IMAGES, *CLASS_NAMES, *IMAGE_OPTIONS, *OF_TEXTS]
