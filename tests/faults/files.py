"""Real files, made small, and damaged in every way."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faults.case import Made
from numpy.typing import NDArray
from PIL import Image

Arrays = dict[str, NDArray[Any]]
Files = Callable[[Path, Made], object]

N = {"train": 36, "val": 12, "test": 18}
CLASSES = ["cat", "dog", "owl"]
EMBEDDINGS = ("data=embeddings", "data.path=features.npz", "fusion.dim=24", "probe=[zero_shot]", "logger=none")
"""A job on :func:`arrays`: half a second."""


def arrays(n: dict[str, int] | None = None) -> Arrays:
    """Return three classes under CLIP (8 dimensions, images and texts) and DINOv2 (10, images)."""
    rng = np.random.default_rng(0)
    clip, dino = rng.normal(size=(3, 8)), rng.normal(size=(3, 10))
    made: Arrays = {"classes": np.array(CLASSES), "prompts/text/clip": clip.astype(np.float32)}
    for split, size in (n or N).items():
        labels = np.arange(size) % 3
        made[f"{split}/labels"] = labels
        for key, means in (("image/clip", clip), ("text/clip", clip), ("image/dinov2", dino)):
            made[f"{split}/{key}"] = (means[labels] + rng.normal(size=(size, means.shape[1]))).astype(np.float32)
    return made


def embeddings(
    change: Callable[[Arrays], object] | None = None, *, path: str = "features.npz", n: dict[str, int] | None = None
) -> Files:
    """Return what writes :func:`arrays`, changed, as npz or (by the path's ending) safetensors."""

    def write(folder: Path, made: Made) -> None:
        contents = arrays(n)
        if change is not None:
            change(contents)
        write_arrays(folder / path, contents)

    return write


def write_arrays(path: Path, contents: Arrays, **header: str) -> None:
    """Write npz or safetensors."""
    if path.suffix == ".npz":
        np.savez(path, **contents)  # type: ignore[arg-type]
        return
    from safetensors.numpy import save_file

    names = contents.pop("classes", None)
    save_file(contents, path, {**({} if names is None else {"classes": json.dumps(names.tolist())}), **header})


def setting(key: str, row: Any, value: Any) -> Callable[[Arrays], object]:
    """Return what sets some entries of one array."""

    def change(contents: Arrays) -> None:
        contents[key][row] = value

    return change


def replacing(**values: Any) -> Callable[[Arrays], object]:
    """Return what replaces arrays (``__`` stands for ``/``); None removes one."""

    def change(contents: Arrays) -> None:
        for key, value in values.items():
            name = key.replace("__", "/")
            if value is None:
                del contents[name]
            else:
                contents[name] = value(contents[name]) if callable(value) else value

    return change


def damaged(damage: Callable[[bytes], bytes], *, path: str = "features.npz") -> Files:
    """Return what writes embeddings and then changes the file's bytes."""

    def write(folder: Path, made: Made) -> None:
        embeddings(path=path)(folder, made)
        (folder / path).write_bytes(damage((folder / path).read_bytes()))

    return write


def pickled(folder: Path, made: Made) -> None:
    """Write an npz one of whose members is a pickle that would leave a file behind if it were opened."""

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "opened"),)

    stream = io.BytesIO()
    np.save(stream, np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(folder / "features.npz", **{k: v for k, v in arrays().items() if k != "classes"})  # type: ignore[arg-type]
    with zipfile.ZipFile(folder / "features.npz", "a") as archive:
        archive.writestr("classes.npy", stream.getvalue())


def safetensors_header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Return what changes the header of a safetensors file and leaves its bytes."""

    def damage(data: bytes) -> bytes:
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        change(header)
        encoded = json.dumps(header).encode()
        return struct.pack("<Q", len(encoded)) + encoded + data[8 + size :]

    return damage


# --- images ------------------------------------------------------------------------------------------------------

SHAPES = ("red", "green", "blue")
IMAGES = (
    "data=image_folder", "data.root=images", "fusion=cross_modal", "probe=[zero_shot]", "logger=none",
    "data.num_workers=1", "extraction.progress=false", "trainer=cpu", "paths.store=store",
)  # fmt: skip
"""A job on :func:`images`: three seconds."""


def picture(color: str, number: int) -> Image.Image:
    """Return an image of one colour with a pattern of its own."""
    image = Image.new("RGB", (32, 32), color)
    for bit in range(8):
        if number >> bit & 1:
            image.paste("white", (4 * bit, 0, 4 * bit + 3, 32))
    return image


def images(
    folders: Sequence[str] = SHAPES,
    *,
    each: int = 8,
    root: str = "images",
    change: Callable[[Path], object] | None = None,
) -> Files:
    """Return what writes a folder of images, ``each`` of a class, and then changes it."""

    def write(folder: Path, made: Made) -> None:
        for place, name in enumerate(folders):
            (folder / root / name).mkdir(parents=True)
            for number in range(each):
                color = SHAPES[place % 3]
                picture(color, number + 16 * place).save(folder / root / name / f"{number}.png")
        if change is not None:
            change(folder / root)

    return write


# --- texts -------------------------------------------------------------------------------------------------------

TEXTS = (
    "data=text_files", "data.root=.", "data.files={all: all.txt}", "pair=openmoji_text", "fusion=cross_modal",
    "probe=[text_probe]", "probe.text_probe.n_folds=2", "logger=none", "extraction.progress=false", "trainer=cpu",
    "paths.store=store",
)  # fmt: skip


def texts(lines: Sequence[str] | None = None, *, path: str = "all.txt", encoding: str = "utf-8") -> Files:
    """Return what writes ``label text`` lines."""
    lines = good_lines() if lines is None else lines

    def write(folder: Path, made: Made) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes("\n".join([*lines, ""]).encode(encoding))

    return write


def good_lines(n: int = 40) -> list[str]:
    """Return labelled sentences of two classes."""
    return [f"{i % 2} {'a fine and moving film' if i % 2 else 'a dull and empty story'} number {i}" for i in range(n)]


# --- what jobs leave ---------------------------------------------------------------------------------------------


def run_folder(change: Callable[[Path], object] | None = None, *, to: str = "run") -> Files:
    """Return what copies the run folder of a real job, and then changes it."""

    def write(folder: Path, made: Made) -> None:
        def make() -> list[str]:
            embeddings()(Path.cwd(), made)
            return [*EMBEDDINGS, "save_fusion=true", "hydra.run.dir=run"]

        made("run", make, folder / ".made")
        (folder / ".made" / "run").rename(folder / to)
        if change is not None:
            change(folder / to)

    return write


def sweep_folder(change: Callable[[Path], object] | None = None) -> Files:
    """Return what copies the folder of a real sweep over three seeds, and then changes it."""

    def write(folder: Path, made: Made) -> None:
        def make() -> list[str]:
            embeddings()(Path.cwd(), made)
            return ["-m", *EMBEDDINGS, "seed=0,1,2", "hydra.sweep.dir=sweep"]

        made("sweep", make, folder / ".made")
        (folder / ".made" / "sweep").rename(folder / "sweep")
        if change is not None:
            change(folder / "sweep")

    return write


def store(change: Callable[[Path], object] | None = None) -> Files:
    """Return what copies the images and the store of a real extraction, and then changes the store."""

    def write(folder: Path, made: Made) -> None:
        def make() -> list[str]:
            images()(Path.cwd(), made)
            return list(IMAGES)

        made("store", make, folder)
        if change is not None:
            change(folder / "store")

    return write


def entries(store: Path) -> list[Path]:
    """Return the folders of a store's entries."""
    return sorted(path.parent for path in store.rglob("entry.json"))


def editing(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Return what changes a JSON file below a folder, wherever it has the name."""

    def edit(folder: Path) -> None:
        for path in folder.rglob(name):
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

    return edit
