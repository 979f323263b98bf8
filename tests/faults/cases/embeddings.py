"""A user's own embeddings: every damage of the file, every misfit of its arrays, every strange number."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faults.case import Case, Made, Outcome, measured, warned
from faults.files import (
    EMBEDDINGS,
    Arrays,
    Files,
    arrays,
    damaged,
    embeddings,
    pickled,
    replacing,
    safetensors_header,
    setting,
    write_arrays,
)  # fmt: skip

DATA = "data"


def of(
    name: str, *words: str | tuple[str, ...], change: Callable[[Arrays], object] | None = None,
    run: tuple[str, ...] = (), files: Files | None = None, **more: Any,
) -> Case:  # fmt: skip
    """Return a case of changed embeddings."""
    return Case(id=name, room=DATA, run=[*EMBEDDINGS, *run], files=files or embeddings(change), words=words, **more)


def safe(name: str, *words: str | tuple[str, ...], files: Files, **more: Any) -> Case:
    """Return a case of a safetensors file."""
    run = [*EMBEDDINGS, "data.path=features.safetensors"]
    return Case(id=name, room=DATA, run=run, files=files, words=words, **more)


def headed(**header: str) -> Files:
    """Return what writes safetensors with these texts in the header."""

    def write(folder: Path, made: Made) -> None:
        write_arrays(folder / "features.safetensors", arrays(), **header)

    return write


def everywhere(kind: str, change: Callable[[Any], Any]) -> Callable[[Arrays], object]:
    """Return what changes the arrays of one encoder in all splits."""

    def edit(contents: Arrays) -> None:
        for key in contents:
            if key.endswith(kind):
                contents[key] = change(contents[key])

    return edit


def not_opened(folder: Path, outcome: Outcome) -> None:
    assert not (folder / "opened").exists(), "the pickle was run"


def only(*kept: str) -> Callable[[Arrays], object]:
    """Return what keeps the arrays whose keys end so."""

    def edit(contents: Arrays) -> None:
        for key in [key for key in contents if not key.endswith(kept)]:
            del contents[key]

    return edit


FILES = [
    Case(id="no-path", room=DATA, run=["data=embeddings"], words=["data.path is not set", "data.path=PATH"]),
    of("path-not-there", "'nowhere.npz'", "no such file", run=("data.path=nowhere.npz",), short=True),
    of("path-is-a-folder", "'images.npz'", "folder", run=("data.path=images.npz",), never=("no such file",),
       files=lambda folder, made: (folder / "images.npz").mkdir()),
    of("path-of-another-kind", "data.path='features.pt'", ".safetensors", ".npz", run=("data.path=features.pt",)),
    of("path-number", "data.path", run=("data.path=5",)),
    of("path-list", "data.path", run=("data.path=[features.npz]",)),
    of("fifo", "features.npz", ("pipe", "regular file"), never=("no such file",), files=lambda folder, made: os.mkfifo(folder / "features.npz"), process=True,
       timeout=40),
    of("npz-cut-short", "features.npz", "cannot be read", "complete", files=damaged(lambda data: data[:3000])),
    of("npz-empty", "features.npz", "cannot be read", "complete", files=damaged(lambda data: b"")),
    of("npz-that-is-text", "features.npz", "cannot be read",
       files=lambda folder, made: (folder / "features.npz").write_text("not an archive")),
    of("npz-that-is-npy", "features.npz", "cannot be read",
       files=lambda folder, made: np.save((folder / "features.npz").open("wb"), np.zeros(3))),
    of("npz-with-pickles", "'classes'", "Python objects", "dtype=str", files=pickled, after=not_opened, short=True),
    of("npz-of-complex-numbers", "'train/image/clip'", "complex", "float32",
       change=replacing(train__image__clip=lambda x: x.astype(complex))),
    safe("safetensors-cut-short", "features.safetensors", "cannot be read", "complete",
         files=damaged(lambda data: data[:-500], path="features.safetensors")),
    safe("safetensors-of-zeros", "features.safetensors", "cannot be read",
         files=damaged(lambda data: bytes(len(data)), path="features.safetensors")),
    safe("safetensors-that-is-npz", "features.safetensors", "cannot be read",
         files=lambda folder, made: np.savez((folder / "features.safetensors").open("wb"), **arrays())),  # type: ignore[arg-type]
    safe("safetensors-with-a-huge-header", "features.safetensors", "cannot be read",
         files=damaged(lambda data: b"\xff" * 8 + data[8:], path="features.safetensors")),
    safe("safetensors-with-overlapping-arrays", "features.safetensors", "cannot be read", files=damaged(
        safetensors_header(lambda h: h["train/image/clip"].update(data_offsets=h["test/image/clip"]["data_offsets"])),
        path="features.safetensors")),
]  # fmt: skip

KEYS = [
    of("unknown-split", "unknown key 'tset/image/clip'", "did you mean 'test/image/clip'",
       change=lambda a: a.update({"tset/image/clip": a.pop("test/image/clip")}), short=True),
    of("unknown-modality", "unknown key 'train/images/clip'", "did you mean 'train/image/clip'",
       change=lambda a: a.update({"train/images/clip": a.pop("train/image/clip")})),
    of("unknown-array", "unknown key 'train/label'", "did you mean 'train/labels'",
       change=lambda a: a.update({"train/label": a.pop("train/labels")})),
    of("unknown-texts", "'clases'", "did you mean 'classes'",
       change=lambda a: a.update(clases=a.pop("classes"))),
    of("encoder-with-a-slash", "unknown key 'train/image/vit/b32'", "no '/'",
       change=lambda a: a.update({"train/image/vit/b32": a["train/image/clip"]})),
    of("no-features", "no features", "SPLIT/image/ENCODER", change=only("labels", "classes")),
    of("no-test", "['test']", ("no items", "missing", "empty"),
       change=lambda a: [a.pop(key) for key in list(a) if key.startswith("test/")]),
    of("no-train", "['train']", ("no items", "missing", "empty"),
       change=lambda a: [a.pop(key) for key in list(a) if key.startswith("train/")]),
    of("encoder-missing-in-a-split", "'test/image/dinov2' is missing", "same encoders",
       change=replacing(test__image__dinov2=None)),
    of("cross-modal-not-there", "data.cross_modal='clp'", "did you mean 'clip'", run=("data.cross_modal=clp",)),
    of("expert-not-there", "data.image_experts", "'dino'", "did you mean 'dinov2'", run=("data.image_experts=[dino]",)),
    of("experts-no-list", "data.image_experts='dinov2'", "list", run=("data.image_experts=dinov2",)),
    of("expert-twice", "data.image_experts", "different", run=("data.image_experts=[dinov2,dinov2]",)),
    of("expert-is-the-cross-modal", "data.image_experts", "'clip'", run=("data.image_experts=[clip]",)),
    of("two-cross-modal-encoders", "clip", "siglip", "data.cross_modal", change=lambda a: a.update(
        {key.replace("clip", "siglip"): x for key, x in a.items() if key.endswith("/clip")})),
    of("no-expert", "needs an expert", change=lambda a: [a.pop(k) for k in list(a) if k.endswith("dinov2")]),
    of("experts-of-both-sides-alone", "data.image_experts=[]", "data.text_experts=[]", change=lambda a: (
        a.update({f"{s}/text/minilm": a.pop(f"{s}/text/clip") for s in ("train", "val", "test")}),
        a.pop("prompts/text/clip"))),
    of("name-number", status=0, after=measured, run=("data.name=5",)),
    of("val-fraction", "val_fraction=1.5", "below 1", run=("data.val_fraction=1.5",)),
    of("split-seed-of-rows", "split_seed='x'", ("whole number", "integer"), run=("data.split_seed=x",), change=only(
        "train/labels", "test/labels", "classes", "prompts/text/clip", "train/image/clip", "test/image/clip",
        "train/text/clip", "test/text/clip", "train/image/dinov2", "test/image/dinov2")),
]  # fmt: skip

SHAPES = [
    of("other-dimension-in-a-split", "'clip'", "test:image", "7", "8",
       change=replacing(test__image__clip=lambda x: x[:, :7])),
    of("cross-modal-of-two-dimensions", "cross-modal", "7", "8", "one space", change=everywhere("text/clip", lambda x: x[:, :7])),
    of("other-number-of-rows", "train:image", "'dinov2'", "35", "36",
       change=replacing(train__image__dinov2=lambda x: x[:35])),
    of("features-of-three-axes", "'train/image/clip'", "(36, 2, 4)",
       change=replacing(train__image__clip=lambda x: x.reshape(36, 2, 4))),
    of("features-of-one-axis", "'train/image/clip'", "(36,)", change=replacing(train__image__clip=lambda x: x[:, 0])),
    of("features-of-no-rows", "test:image", "'clip'", "0", "18", change=everywhere("test/image/clip", lambda x: x[:0])),
    of("features-of-no-columns", "clip", "0", change=everywhere("/clip", lambda x: x[:, :0])),
    of("features-are-integers", "'train/image/clip'", ("float", "integer"),
       change=replacing(train__image__clip=lambda x: x.astype(int))),
    of("features-are-texts", "'train/image/clip'", "float", never=("unknown array of texts",),
       change=replacing(train__image__clip=lambda x: x.astype(str))),
    of("labels-too-few", "train", "35 labels", "36", change=replacing(train__labels=lambda x: x[:35])),
    of("labels-are-floats", "'train/labels'", "integers", "float64",
       change=replacing(train__labels=lambda x: x.astype(float))),
    of("labels-are-texts", "'train/labels'", ("integers", "whole numbers"), ("classes", "class names"), never=("unknown array of texts",),
       change=replacing(train__labels=lambda x: np.array(["cat", "dog", "owl"])[x])),
    of("labels-out-of-range", "train", "label 7 of row 4", "3 class names", change=setting("train/labels", 4, 7)),
    of("labels-below-minus-one", "train", "label -2 of row 4", "-1 = no label", change=setting("train/labels", 4, -2)),
    of("labels-from-one", "label 3", "0 to 2",
       change=everywhere("/labels", lambda x: x + 1)),
    of("multilabel-with-a-two", "'train/labels'", "0 and 1",
       change=replacing(train__labels=lambda x: np.eye(3, dtype=int)[x] * 2)),
    of("labels-missing-in-train", "train", "label", change=replacing(train__labels=None), run=("probe=[linear_probe]",)),
    of("class-without-training-items", "1 of 4 classes", "'bee'", change=replacing(
        classes=np.array([*"abc", "bee"]), prompts__text__clip=None)),
    of("classes-too-few", "label 2", "2 class names", change=replacing(
        classes=np.array(["cat", "dog"]), prompts__text__clip=None)),
    of("class-named-twice", "'cat'", ("twice", "several classes"),
       change=replacing(classes=np.array(["cat", "cat", "owl"]))),
    of("one-class-of-rows", "class", "'0'", ("one class", "two"), run=("probe=[linear_probe]",), change=lambda a: (
        a.pop("classes"), a.pop("prompts/text/clip"), everywhere("/labels", lambda x: x * 0)(a))),
    of("captions-not-as-many", "train", "36 images", "30 texts", "caption_of",
       change=replacing(train__text__clip=lambda x: x[:30])),
    of("caption-without-an-image", "train", "caption without an image", "36 images",
       change=lambda a: a.update({"train/caption_of": np.arange(36) + 5})),
    of("caption-of-too-short", "train", "caption_of", "30", "36",
       change=lambda a: a.update({"train/caption_of": np.arange(30)})),
    of("captions-are-floats", "'train/caption_of'", "integers",
       change=lambda a: a.update({"train/caption_of": np.arange(36.0)})),
    of("texts-missing", change=lambda a: a.update(
        {"train/text/clip": a["train/text/clip"][:26], "train/caption_of": np.arange(26)}),
       run=("probe=[retrieval]",), status=0, after=measured),
    of("class-texts-too-few", "2 class texts", "3 classes", "owner",
       change=replacing(prompts__text__clip=lambda x: x[:2])),
    of("owner-out-of-range", "owner", "3 classes", change=lambda a: a.update({"prompts/owner": np.array([0, 1, 3])})),
    of("owner-too-short", "3 class texts", "2 owners", change=lambda a: a.update({"prompts/owner": np.array([0, 1])})),
    of("owner-without-texts", "owners", "no features",
       change=lambda a: (a.update({"prompts/owner": np.array([0, 1, 2])}), a.pop("prompts/text/clip"))),
    of("class-without-a-text", status=0, after=measured,
       change=lambda a: a.update({"prompts/owner": np.array([0, 1, 1])})),
    of("all-texts-of-one-class", "texts for 1 of 3 classes", "two classes to tell apart",
       change=lambda a: a.update({"prompts/owner": np.array([1, 1, 1])})),
    of("class-texts-of-an-unknown-label-set", "'species'", "no labels", "'class'",
       change=lambda a: a.update({"prompts/species/default/text/clip": a.pop("prompts/text/clip")})),
]  # fmt: skip

HEADER = [
    safe("header-name-is-plain-text", status=0, after=measured, files=headed(name="my features")),
    safe("header-classes-not-json", "'classes'", "JSON", files=headed(classes="cat, dog, owl")),
    safe("header-classes-a-number", "'classes'", "list", files=headed(classes="3")),
    safe("header-classes-of-another-label-set", "'class'", "species",
         files=headed(classes=json.dumps({"species": ["a", "b", "c"]}))),
    safe("header-splits-a-number", "'splits'", files=headed(splits="3")),
    safe("header-encoders-a-list", "'encoders'", files=headed(encoders="[1]")),
    safe("header-texts-too-few", "'texts'", files=headed(texts=json.dumps({"class/default": ["a cat"]}))),
    safe("header-name-a-list", "'name'", files=headed(name='["a"]')),
]  # fmt: skip

NUMBERS = [
    of("nan", "'train/image/clip'", "NaN", "row 5", change=setting("train/image/clip", 5, np.nan), short=True),
    of("infinite", "'test/text/clip'", "infinit", "row 2", change=setting("test/text/clip", (2, 3), -np.inf)),
    of("nan-among-the-class-texts", "'prompts/class/default/text/clip'", "NaN", "row 1",
       change=setting("prompts/text/clip", (1, 0), np.nan)),
    of("zero-vector", "test", "image", "dinov2", "zero", "row 4", never=("batch",), change=setting("test/image/dinov2", 4, 0)),
    of("zero-vector-in-train", "train", "image", ("clip", "cross_modal"), "zero", "row 30", never=("batch",), change=setting("train/image/clip", 30, 0)),
    of("all-zero", "train", "dinov2", "zero", "36 of 36", never=("batch",), change=everywhere("image/dinov2", lambda x: x * 0)),
    of("huge", never=("NaN", "infinit"), status=0, after=measured,
       change=everywhere("image/dinov2", lambda x: x * np.float32(1e30))),
    of("tiny", never=("zero vector",), status=0, after=measured,
       change=everywhere("image/dinov2", lambda x: x * np.float32(1e-30))),
    of("infinite-in-float16", "'train/image/clip'", "infinit", "row 5", change=lambda a: (
        setting("train/image/clip", (5, 0), np.inf)(a), everywhere("image/clip", lambda x: x.astype(np.float16))(a))),
    of("constant-features", status=0, after=measured, change=everywhere("image/clip", lambda x: x * 0 + 1), run=("probe=[linear_probe]",),
       timeout=60),
    of("identical-rows-in-two-splits", status=0, after=warned("4", "train", "test", ("identical", "same")),
       change=lambda a: [a[f"test/image/{e}"].__setitem__(slice(4), a[f"train/image/{e}"][:4]) for e in ("clip", "dinov2")]),
    *(of(f"float16-with-{method}", status=0, after=measured, run=(f"fusion={method}", *more, "probe=[linear_probe]"),
         change=everywhere("", lambda x: x.astype(np.float16) if x.dtype == np.float32 else x))
      for method, *more in (("gate", "fusion.epochs=1", "fusion.dim=8"), ("attn", "fusion.epochs=1", "fusion.dim=8"),
                            ("comm", "fusion.epochs=1", "fusion.dim=16"), ("spectral_krossfuse",))),
    of("float64", status=0, after=measured, change=everywhere("", lambda x: x.astype(float) if x.dtype == np.float32 else x)),
    of("big-endian", status=0, after=measured, change=everywhere("", lambda x: x.astype(">f4") if x.dtype == np.float32 else x)),
]  # fmt: skip

CASES = [*FILES, *KEYS, *SHAPES, *HEADER, *NUMBERS]
