"""What users write in Python: fusions built, saved, loaded and used; the scikit-learn transformer; diagnosis."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults.case import Case, Made

FUSION = "fusion"


def of(name: str, call: Callable[[Path], object], *words: str | tuple[str, ...], **more: Any) -> Case:
    """Return a case of a call."""
    return Case(id=f"python-{name}", room=more.pop("room", FUSION), call=call, words=words, **more)


def method(**options: Any) -> Any:
    import krossfuse

    inputs = krossfuse.InputSpec(cross_modal=8, image_experts={"dinov2": 10})
    return krossfuse.RPKrossFuse(**{"inputs": inputs, "dim": 24, "alignment": "exact", "seed": 0, **options})


def features(n: int = 4, **change: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    made = {"cross_modal": torch.randn(n, 8, generator=generator), "dinov2": torch.randn(n, 10, generator=generator)}
    return {key: value for key, value in {**made, **change}.items() if value is not None}


def encode(modality: str = "image", **change: Any) -> Callable[[Path], object]:
    return lambda folder: method().encode(modality, features(**change))


def with_row(key: str, row: int, value: float) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        given = features()
        given[key][row] = value
        return method().encode("image", given)

    return call


def saved(folder: Path, made: Made) -> None:
    import krossfuse

    krossfuse.save_fusion(method(), folder / "fused.safetensors")


def metadata(**values: str | None) -> Callable[[Path, Made], object]:
    """Return what writes a saved fusion with other words in its header."""

    def write(folder: Path, made: Made) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        saved(folder, made)
        path = folder / "fused.safetensors"
        with safe_open(path, "pt") as file:
            header = dict(file.metadata())
        header.update({k: v for k, v in values.items() if v is not None})
        for key in (key for key, value in values.items() if value is None):
            del header[key]
        save_file(load_file(path), path, header)

    return write


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Made], object]:
    """Return what writes a saved fusion with another configuration."""

    def write(folder: Path, made: Made) -> None:
        from safetensors import safe_open

        saved(folder, made)
        with safe_open(folder / "fused.safetensors", "pt") as file:
            content = json.loads(file.metadata()["config"])
        change(content)
        metadata(config=json.dumps(content))(folder, made)

    return write


def cut(folder: Path, made: Made) -> None:
    saved(folder, made)
    os.truncate(folder / "fused.safetensors", 200)


def other_tensors(folder: Path, made: Made) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    saved(folder, made)
    with safe_open(folder / "fused.safetensors", "pt") as file:
        header = dict(file.metadata())
    save_file({"nothing": torch.zeros(3)}, folder / "fused.safetensors", header)


def plain_safetensors(folder: Path, made: Made) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3)}, folder / "fused.safetensors")


def load(name: str = "fused.safetensors") -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        import krossfuse

        return krossfuse.load_fusion(folder / name)

    return call


def transformer(rows: Any, *, fit_only: bool = True, **options: Any) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        import krossfuse

        return krossfuse.KrossFuseTransformer(**{"dim": 24, "split": 8, **options}).fit(rows)

    return call


def rows(n: int = 20, columns: int = 18) -> Any:
    return np.random.default_rng(0).normal(size=(n, columns))


def with_value(value: float) -> Any:
    made = rows()
    made[3, 4] = value
    return made


class Local:
    """Something that JSON cannot write."""


def save_what_json_cannot(folder: Path) -> None:
    import krossfuse

    fuse = method()
    fuse.arguments["kernel"] = Local()
    krossfuse.save_fusion(fuse, folder / "fused.safetensors")


def save_below_a_file(folder: Path) -> None:
    import krossfuse

    (folder / "file").write_text("")
    krossfuse.save_fusion(method(), folder / "file" / "fused.safetensors")


def transform_other_columns(folder: Path) -> None:
    import krossfuse

    krossfuse.KrossFuseTransformer(dim=24, split=8).fit(rows()).transform(rows(columns=17))


def transform_missing_of_all_columns(folder: Path) -> None:
    import krossfuse

    krossfuse.KrossFuseTransformer(dim=24, split=8).fit(rows()).transform_missing(rows())


def not_fitted(folder: Path) -> object:
    import krossfuse

    return krossfuse.PCAConcatenation(
        inputs=krossfuse.InputSpec(cross_modal=8, image_experts={"dinov2": 10}), dim=4
    ).encode("image", features())


def diagnose(**options: Any) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        import krossfuse

        given = {"image": features(20), "text": {"cross_modal": features(20)["cross_modal"]}}
        return krossfuse.diagnose(options.pop("given", given), lambda **arguments: method(**arguments), **options)

    return call


def inputs(**options: Any) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        import krossfuse

        return method(inputs=krossfuse.InputSpec(**options))

    return call


def bundle_without(part: str) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        from faults.files import arrays, write_arrays

        from krossfuse import Part
        from krossfuse.features.embeddings import EmbeddingsFile

        write_arrays(folder / "features.npz", arrays())
        return EmbeddingsFile(path=str(folder / "features.npz")).bundle()[Part(part, "image")]

    return call


ENCODE = [
    of("encode-another-modality", encode("audio"), "'audio'", "image", "text", short=True),
    of("encode-without-a-role", encode(dinov2=None), "'dinov2'", "missing", "cross_modal", short=True),
    of("encode-another-dimension", encode(dinov2=torch.zeros(4, 9)), "'dinov2'", "(n, 10)", "(4, 9)"),
    of("encode-one-vector", encode(cross_modal=torch.ones(8)), "'cross_modal'", "(n, 8)", "(8,)"),
    of("encode-another-number-of-rows", encode(dinov2=torch.ones(3, 10)), "'dinov2'", "3", "4"),
    of("encode-integers", encode(dinov2=torch.ones(4, 10, dtype=torch.int64)), "'dinov2'", "int64", "float"),
    of("encode-an-array", encode(dinov2=np.ones((4, 10), dtype=np.float32)), "'dinov2'", ("tensor", "ndarray")),
    of("encode-a-list", encode(dinov2=[[1.0] * 10] * 4), "'dinov2'", ("tensor", "list")),
    of("encode-nan", with_row("dinov2", 2, float("nan")), "'dinov2'", "NaN", "row 2"),
    of("encode-zero", with_row("cross_modal", 1, 0.0), "'cross_modal'", "zero", "row 1"),
    of("encode-before-the-fit", not_fitted, "fit()"),
    of("encode-bandwidth-before-the-fit",
       lambda folder: method(dim=1100, kernel=__import__("krossfuse.fusion.named", fromlist=["x"]).kernel_named("gaussian"))
       .encode("image", features()), "fit", "bandwidth"),
]  # fmt: skip

BUILD = [
    of("dim-fraction", lambda folder: method(dim=24.0), "dim=24.0", "positive integer"),
    of("alignment", lambda folder: method(alignment="exat"), "did you mean 'exact'"),
    of("no-expert", inputs(cross_modal=8), "expert"),
    of("no-cross-modal", inputs(image_experts={"dinov2": 10}), "cross-modal"),
    of("dimension-of-an-input", inputs(cross_modal=0, image_experts={"dinov2": 10}), "0", "positive"),
    of("expert-on-both-sides", inputs(cross_modal=8, image_experts={"a": 10}, text_experts={"a": 10}), "'a'", "both"),
    of("unknown-part", bundle_without("tets"), "tets:image", "did you mean 'test:image'", room="data"),
]  # fmt: skip

LOAD = [
    of("load-not-there", load("nowhere.safetensors"), "nowhere.safetensors", "save_fusion", short=True),
    of("load-cut-short", load(), "damaged", "fused.safetensors", "save it again", files=cut, short=True),
    of("load-text", load(), "damaged", files=lambda folder, made: (folder / "fused.safetensors").write_text("{}")),
    of("load-other-tensors", load(), "fused.safetensors", "does not fit", files=other_tensors),
    of("load-of-no-fusion", load(), "fused.safetensors", "krossfuse-fusion-", files=plain_safetensors),
    of("load-a-newer-format", load(), "'krossfuse-fusion-99'", "krossfuse-fusion-1", files=metadata(format="krossfuse-fusion-99")),
    of("load-a-damaged-configuration", load(), "fused.safetensors", ("damaged", "configuration"), files=metadata(config="{")),
    of("load-without-a-configuration", load(), "fused.safetensors", ("damaged", "configuration"), files=metadata(config=None)),
    of("load-an-unknown-precision", load(), "fused.safetensors", "float31", files=metadata(dtype="float31")),
    of("load-a-class-from-elsewhere", load(), "os.system", "krossfuse.fusion", files=config(lambda c: c.update(_target_="os.system"))),
    of("load-an-unknown-class", load(), "RPKrossFus", files=config(lambda c: c.update(_target_=c["_target_"][:-1]))),
    of("load-with-an-unknown-option", load(), "'dimm'", files=config(lambda c: c.update(dimm=3))),
    of("load-with-another-dimension", load(), "fused.safetensors", ("does not fit", "shape"), files=config(lambda c: c.update(dim=30))),
    of("load-a-kernel-alone", load(), "not a fusion method",
       files=config(lambda c: (c.clear(), c.update(_target_="krossfuse.fusion.InputSpec", cross_modal=3)))),
    of("save-what-json-cannot-hold", save_what_json_cannot, "Local", "fusion file"),
    of("save-below-a-file", save_below_a_file, "fused.safetensors", error=(OSError)),
]  # fmt: skip

TRANSFORMER = [
    of("transformer-split", transformer(rows(), split=18), "split=18", "1 to 17", error=ValueError),
    of("transformer-split-fraction", transformer(rows(), split=0.5), "split=0.5", "integer", error=ValueError),
    of("transformer-dim", transformer(rows(), dim=-1), "dim=-1", "positive integer", error=ValueError),
    of("transformer-dim-fraction", transformer(rows(), dim=24.5), "dim=24.5", "positive integer", error=ValueError),
    of("transformer-sketch", transformer(rows(), sketch="uniforn"), "did you mean 'uniform'", error=ValueError),
    of("transformer-kernel", transformer(rows(), kernel="cosin"), "did you mean 'cosine'", error=ValueError),
    of("transformer-nan", transformer(with_value(np.nan)), "NaN", error=ValueError),
    of("transformer-infinite", transformer(with_value(np.inf)), "infinity", error=ValueError),
    of("transformer-of-texts", transformer([["a", "b"]] * 3), "could not convert", error=ValueError),
    of("transformer-of-one-column", transformer(rows(columns=1)), "1 feature", error=ValueError),
    of("transformer-C-by-labels-without-labels", transformer(rows(), C="cv"), "C=cv", "labels", error=ValueError),
    of("transformer-nystrom-with-too-few-rows", transformer(rows(10), sketch="nystrom"), "10", "16", error=ValueError),
    of("transformer-other-columns", transform_other_columns, "17 features", "18", error=ValueError),
    of("transformer-missing-of-all-columns", transform_missing_of_all_columns, "18 columns", "8", error=ValueError),
]  # fmt: skip

DIAGNOSE = [
    of("diagnose-seeds", diagnose(seeds=0), "seeds=0", "positive integer"),
    of("diagnose-target", diagnose(target=0.0), "target=0.0", "positive"),
    of("diagnose-rows", diagnose(max_rows=1), ("max_rows=1", "two samples")),
    of("diagnose-nothing", diagnose(given={}), "features"),
    of("diagnose-two-spaces", diagnose(given={"image": features(20), "text": {"cross_modal": torch.ones(20, 7)}}), "7", "8"),
]  # fmt: skip

CASES = [*ENCODE, *BUILD, *LOAD, *TRANSFORMER, *DIAGNOSE]
