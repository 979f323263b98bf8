"""Models: exported, loaded, used; indexes and searches; what is in a folder that others made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.case import FAILED, Case, Made, Outcome
from faults.files import IMAGES, Files, images, run_folder, sweep_folder
from PIL import Image

MODEL = "model"


def model(change: Callable[[Path], object] | None = None) -> Files:
    """Return what writes the folder ``fused`` of a real run on images, those images and their index, and changes it."""

    def write(folder: Path, made: Made) -> None:
        def make_run() -> list[str]:
            images()(Path.cwd(), made)
            return [*IMAGES, "hydra.run.dir=run"]

        def make_model() -> list[str]:
            made("model-run", make_run, Path.cwd())
            return ["export", "run", "fused"]

        def make_index() -> list[str]:
            made("model", make_model, Path.cwd())
            return ["index", "fused", "images", "-o", "index.safetensors", "--quiet"]

        made("model-index", make_index, folder)
        if change is not None:
            change(folder)

    return write


def of(name: str, *words: str | tuple[str, ...], run: tuple[str, ...], **more: Any) -> Case:
    """Return a case of a command beside such a folder."""
    more.setdefault("files", model())
    return Case(id=name, room=MODEL, run=run, words=words, **more)


def python(name: str, call: Callable[[Any], object], *words: str) -> Case:
    """Return a case of what a user does with the loaded model."""

    def load_and_call(folder: Path) -> object:
        import krossfuse

        return call(krossfuse.FusedEncoder.from_pretrained(folder / "fused"))

    return Case(id=f"python-{name}", room=MODEL, call=load_and_call, words=words, files=model())


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "fused" / "config.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def other_encoder(config: dict[str, Any]) -> None:
    config["encoders"]["cross_modal"]["weights"] = "/gone/clip.safetensors"


def foreign(config: dict[str, Any]) -> None:
    config["encoders"]["cross_modal"] = {"_target_": "os.system", "command": "touch opened"}


def altered(folder: Path) -> None:
    path = folder / "fused" / "golden.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 64
    path.write_bytes(data)


def another_index(folder: Path) -> None:
    import torch

    from krossfuse.model.search import Index, save_index

    save_index(Index(torch.ones(2, 256), ["a", "b"], "0" * 64, {"folder": "fused"}), folder / "index.safetensors")


def file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).parent.mkdir(exist_ok=True) or (folder / name).write_bytes(content)


def none_written(folder: Path, outcome: Outcome) -> None:
    assert not list(folder.glob("out.*")), "a file was written"


def not_opened(folder: Path, outcome: Outcome) -> None:
    assert not (folder / "opened").exists(), "a command of the file was run"


ENCODE = ("encode", "fused", "images", "-o", "out.npz", "--quiet")

FOLDERS = [
    of("a-newer-folder", "format 2", "up to 1", "install a newer krossfuse", run=ENCODE, status=FAILED, short=True,
       files=model(config(lambda c: c.update(format=2))), after=none_written),
    of("a-missing-encoder", "cross_modal", "/gone/clip.safetensors", "no such file", "--weights", run=ENCODE,
       files=model(config(other_encoder)), short=True),
    of("altered-tensors", "golden.safetensors", "not the file that was saved", run=ENCODE, status=FAILED,
       files=model(altered)),
    of("a-foreign-class", "os.system", "neither a class of krossfuse.encoders", run=ENCODE, files=model(config(foreign)),
       after=not_opened),
    of("a-changed-weight", "cross_modal", "weights was", "is", run=ENCODE, status=FAILED,
       files=model(config(lambda c: c["fingerprints"]["cross_modal"]["image"].update(weights="0" * 64)))),
    of("a-changed-preprocessing", "cross_modal", "preprocessing was crop", run=ENCODE, status=FAILED,
       files=model(config(lambda c: c["fingerprints"]["cross_modal"]["image"].update(preprocessing="crop")))),
    of("another-version", "was 0.0.1", "golden embeddings are the same", run=ENCODE, status=0, process=True,
       files=model(config(lambda c: c["versions"].update(torch="0.0.1")))),
    of("no-model-there", "holds no config.json", "krossfuse export", run=("encode", "images", *ENCODE[2:]), status=FAILED),
    of("neither-a-folder-nor-the-hub", "'nobody/nothing'", "neither a folder here nor a model", "hub",
       run=("encode", "nobody/nothing", *ENCODE[2:]), status=FAILED),
]  # fmt: skip

EXPORT = [
    of("export-a-sweep", "holds 3 runs", "0, 1, 2", run=("export", "sweep", "fused"), files=sweep_folder()),
    of("export-a-run-on-features", "features of a file", "save_pretrained", run=("export", "run", "fused"),
       files=run_folder()),
    of("export-to-a-file", "is a file", run=("export", "run", "images/red/0.png")),
    of("export-a-fold-of-none", "has no folds", "--fold", run=("export", "run", "other", "--fold", "2")),
    of("export-nothing", "no such folder", run=("export", "gone", "fused")),
    of("export-without-a-configuration", "config.yaml", run=("export", "run", "other"), status=FAILED,
       files=model(lambda folder: (folder / "run/config.yaml").unlink())),
]  # fmt: skip

SOURCES = [
    of("encode-nothing", "no file or folder 'gone'", run=("encode", "fused", "gone", *ENCODE[3:])),
    of("encode-an-empty-folder", "no images below", run=("encode", "fused", "none", *ENCODE[3:]),
       files=model(lambda folder: (folder / "none").mkdir())),
    of("encode-an-empty-text", "lines.txt", "is empty", run=("encode", "fused", "lines.txt", *ENCODE[3:]),
       files=model(file("lines.txt", b""))),
    of("encode-latin-1", "lines.txt", "UTF-8", run=("encode", "fused", "lines.txt", *ENCODE[3:]),
       files=model(file("lines.txt", b"caf\xe9\n"))),
    of("encode-a-broken-image", "red/0.png", "cannot read image", run=ENCODE, after=none_written,
       files=model(file("images/red/0.png", b"no image"))),
    of("encode-an-unknown-kind", "table.csv", ".parquet", run=("encode", "fused", "table.csv", *ENCODE[3:]),
       files=model(file("table.csv", b"a,b\n"))),
    of("encode-into-another-kind", ".safetensors", ".npz", run=(*ENCODE[:3], "-o", "out.csv")),
    of("encode-two-sources", "one path", run=("encode", "fused", "images", "run", "-o", "out.npz")),
    of("encode-features", "holds features already",
       run=("encode", "fused", "data=embeddings", "data.path=x.npz", "-o", "out.npz")),
    of("encode-a-mistyped-dataset", "openmoji", run=("encode", "fused", "data=openmojy", "-o", "out.npz")),
    of("encode-with-an-option-of-a-job", "fusion.dim=3", "data=NAME",
       run=("encode", "fused", "data=openmoji", "fusion.dim=3", "-o", "out.npz")),
    of("encode-on-no-device", "--device=warp", run=(*ENCODE, "--device", "warp")),
    of("encode-a-column-of-images", "--column=a", "parquet", run=(*ENCODE, "--column", "a")),
]  # fmt: skip

SEARCH = [
    of("search-for-nothing", "give a text, or --image", run=("search",)),
    of("search-for-an-empty-text", "empty", "variable", run=("search", " ", "--index", "index.safetensors")),
    of("search-in-an-index-of-another-model", "made with another model", "make the index again", short=True,
       run=("search", "a cat", "--index", "index.safetensors"), files=model(another_index)),
    of("search-in-no-index", "there is no index", "krossfuse index", run=("search", "a", "--index", "gone"), status=FAILED),
    of("search-in-what-is-no-index", "is no index", run=("search", "a", "--index", "fused/golden.safetensors"),
       status=FAILED),
    of("search-for-no-results", "-k 0", run=("search", "a", "--index", "index.safetensors", "-k", "0")),
    of("search-into-another-kind", ".png", ".html",
       run=("search", "a", "--index", "index.safetensors", "--grid", "grid.pdf")),
    of("search-for-a-broken-image", "cannot read image",
       run=("search", "--image", "fused/config.json", "--index", "index.safetensors")),
    of("search-with-a-model-of-no-index", "--index", run=("search", "a", "--model", "fused")),
    of("index-texts", "holds texts", run=("index", "fused", "lines.txt", "-o", "i.safetensors"),
       files=model(file("lines.txt", b"a\n"))),
    of("index-into-another-kind", ".safetensors", run=("index", "fused", "images", "-o", "i.npz")),
    of("a-picture-that-moved", "red/0.png", status=0,
       run=("search", "--image", "images/red/1.png", "--index", "index.safetensors", "--grid", "grid.png", "-k", "24"),
       files=model(lambda folder: (folder / "images/blue/3.png").unlink())),
]  # fmt: skip

PYTHON = [
    python("no-images", lambda m: m.encode_image([]), "no images were given"),
    python("no-texts", lambda m: m.encode_text([]), "no texts were given"),
    python("a-mode-without-a-range", lambda m: m.encode_image([Image.new("I;16", (9, 9))]), "image 0", "I;16", "range"),
    python("half-a-surrogate", lambda m: m.encode_text(["a", "\ud800"]), "text 1", "UTF-8"),
    python("preprocessed", lambda m: m.encode_image(__import__("torch").randn(3, 9, 9)), "0 to 1", "open_clip"),
    python("another-form", lambda m: m.encode_text("a", convert_to="jax"), "convert_to='jax'", "numpy"),
]

CASES = [*FOLDERS, *EXPORT, *SOURCES, *SEARCH, *PYTHON]
