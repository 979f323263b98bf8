"""Fusion: every option of every method, kernel and sketch; what does not fit the features; ``krossfuse diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from faults.case import FAILED, Case, Outcome, measured
from faults.files import EMBEDDINGS, Arrays, Files, embeddings

FUSION = "fusion"
GAUSSIAN = "fusion/kernel=gaussian"
EXACT = "fusion.alignment=exact"


def of(name: str, *words: str | tuple[str, ...], run: tuple[str, ...], files: Files | None = None, **more: Any) -> Case:
    """Return a case of options on good embeddings."""
    base = [word for word in EMBEDDINGS if "fusion.dim" not in word or not any(r.startswith("fusion=") for r in run)]
    return Case(id=name, room=FUSION, run=[*base, *run], files=files or embeddings(), words=words, **more)


def diagnose(name: str, *words: str | tuple[str, ...], run: tuple[str, ...] = (), **more: Any) -> Case:
    """Return a case of the command ``diagnose``."""
    more.setdefault("files", embeddings())
    return Case(id=f"diagnose-{name}", room=FUSION, run=["diagnose", "features.npz", *run], words=words, **more)


def quick(folder: Path, outcome: Outcome) -> None:
    """Check that it was said before the run folder got results."""
    assert not any(path.stat().st_size for path in folder.rglob("results.jsonl"))


def two_image_experts(contents: Arrays) -> None:
    for split in ("train", "val", "test"):
        contents[f"{split}/image/mae"] = contents[f"{split}/image/dinov2"][:, ::-1].copy()


def a_text_expert(contents: Arrays) -> None:
    for split in ("train", "val", "test"):
        contents[f"{split}/text/e5"] = contents[f"{split}/image/dinov2"][:, :6].copy()
    contents["prompts/text/e5"] = np.eye(3, 6, dtype=np.float32)


def without_labels(contents: Arrays) -> None:
    for key in list(contents):
        if "labels" in key or key.startswith("prompts") or key == "classes":
            del contents[key]


def constant(contents: Arrays) -> None:
    for split in ("train", "val", "test"):
        contents[f"{split}/image/dinov2"][:] = 1
        contents[f"{split}/image/clip"][:] = 1


NUMBERS = [
    of("dim-zero", "dim=0", "positive integer", run=("fusion.dim=0",)),
    of("dim-negative", "dim=-3", "positive integer", run=("fusion.dim=-3",)),
    of("dim-fraction", "dim=2.5", "positive integer", run=("fusion.dim=2.5",)),
    of("dim-word", "dim='many'", "positive integer", run=("fusion.dim=many",), short=True),
    of("dim-null", run=("fusion.dim=null",), status=0, after=measured),
    of("dim-list", "dim=[24]", "positive integer", run=("fusion.dim=[24]",)),
    of("dim-far-too-large", "dim=1000000000", ("lower dim", "memory"), run=("fusion.dim=1000000000",), after=quick),
    of("dim-too-small-for-exact", "dim=4", "9 or more", ("raise dim", "offset"), run=(EXACT, "fusion.dim=4")),
    of("dim-odd", "dim=25", "even", run=("fusion=rff_concatenation", "fusion.dim=25")),
    of("C-zero", "C=0", "positive", run=("fusion.C=0",)),
    of("C-negative", "C=-2.0", "positive", run=("fusion.C=-2.0",)),
    of("C-infinite", "C=inf", "finite", run=("fusion.C=inf",)),
    of("C-nan", "C=nan", ("finite", "positive"), run=("fusion.C=nan",)),
    of("C-word", "C='cvv'", "did you mean 'cv'", run=("fusion.C=cvv",)),
    of("C-list", "C=[1, 2]", "positive", run=("fusion.C=[1,2]",)),
    of("C-far-too-large", "C=1e+40", run=("fusion.C=1e40",)),
    of("C-far-too-small", "C=1e-40", run=("fusion.C=1e-40",)),
    of("C-by-labels-without-labels", "C=cv", "labels", ("C=auto", "number"), run=("fusion.C=cv",),
       files=embeddings(without_labels)),
    of("C-by-labels-of-too-few-rows", "C=cv", "samples", "number", run=("fusion.C=cv",),
       files=embeddings(n={"train": 6, "val": 3, "test": 3})),
    of("C-by-cross-validation-of-a-kernel-of-nothing", "'dinov2'", "one direction", files=embeddings(constant),
       run=("fusion.C=cv", "fusion.alignment=exact", "fusion/kernel@fusion.expert_kernel=centred")),
    of("C-of-a-constant-kernel", "C=auto", "constant", "number", run=("fusion.C=auto",), files=embeddings(constant)),
    of("C-text-without-text-experts", "C_text", "both sides", run=("fusion.C_text=2",)),
    of("C-text-zero", "C_text=0", "positive", run=("fusion.C_text=0",), files=embeddings(a_text_expert)),
    of("expert-weight-negative", "expert_weight=-1", run=(EXACT, "fusion.expert_weight=-1")),
    of("expert-weight-without-exact", "expert_weight", "exact", run=("fusion.expert_weight=2",)),
    of("expert-weight-word", "expert_weight='big'", run=(EXACT, "fusion.expert_weight=big")),
    of("alignment", "alignment='exat'", "did you mean 'exact'", run=("fusion.alignment=exat",)),
    of("alignment-null", "alignment=None", "published", "exact", run=("fusion.alignment=null",)),
    of("method-seed", "seed='x'", "integer", run=("fusion.seed=x",)),
    of("max-dim", "max_dim=0", "positive", run=("fusion=exact_krossfuse", "fusion.max_dim=0")),
    of("pca-dim-larger-than-what-there-is", "dim=300", "18", run=("fusion=pca_concatenation", "fusion.dim=300")),
    of("pca-with-too-few-rows", "12", ("sample", "rows"),
       run=("fusion=pca_concatenation", "fusion.dim=18"), files=embeddings(n={"train": 12, "val": 6, "test": 6})),
    of("cca-dim-odd", "dim=5", "even", run=("fusion=cca", "fusion.dim=5")),
    of("cca-dim-too-large", "dim=100", "variates", run=("fusion=cca", "fusion.dim=100")),
    of("cca-ridge", "ridge=-1", run=("fusion=cca", "fusion.ridge=-1")),
    of("cca-combine", "combine='concta'", "did you mean 'concat'", run=("fusion=cca", "fusion.combine=concta")),
    of("weights-of-an-unknown-role", "weights", "'dino'", "dinov2", run=("fusion=concatenation", "fusion.weights={dino: 2}")),
    of("weights-negative", "weights", "-1", run=("fusion=concatenation", "fusion.weights={dinov2: -1}")),
    of("weights-no-mapping", "weights", run=("fusion=concatenation", "fusion.weights=[1,2]")),
    of("missing", "missing='zeroes'", "did you mean 'zeros'", run=("fusion=concatenation", "fusion.missing=zeroes")),
    of("parent-name", "'dino'", "dinov2", run=("fusion=image_expert", "fusion.name=dino")),
    of("parent", "parent='images'", "did you mean 'image'", run=("fusion=image_expert", "fusion.parent=images")),
]  # fmt: skip

TRAINED = [
    of("epochs", "epochs=0", "positive integer", run=("fusion=gate", "fusion.epochs=0")),
    of("learning-rate", "lr=-0.1", "positive", run=("fusion=gate", "fusion.lr=-0.1")),
    of("learning-rate-too-large", "gate", ("finite", "diverged", "lr"), run=("fusion=gate", "fusion.lr=1e30")),
    of("dropout", "dropout=1", run=("fusion=gate", "fusion.dropout=1")),
    of("batch-size", "batch_size=0", "positive integer", run=("fusion=gate", "fusion.batch_size=0")),
    of("heads", "heads=5", "dim=24", run=("fusion=attn", "fusion.dim=24", "fusion.heads=5")),
    of("label-smoothing", "label_smoothing=2", run=("fusion=gate", "fusion.label_smoothing=2")),
    of("val-fraction-of-the-training", "val_fraction=1.5", run=("fusion=gate", "fusion.val_fraction=1.5")),
    of("trained-without-labels", "gate", "labels", run=("fusion=gate", "probe=[retrieval]"),
       files=embeddings(without_labels)),
    of("trained-far-too-large", "dim=100000000", ("memory", "lower dim"), after=quick,
       run=("fusion=gate", "fusion.dim=100000000")),
    of("zero-shot-of-what-encodes-no-text", "zero_shot", "text", run=("fusion=gate", "fusion.epochs=1")),
]  # fmt: skip

KERNELS = [
    of("bandwidth-zero", "bandwidth=0", "positive", run=(GAUSSIAN, "fusion.kernel.bandwidth=0")),
    of("bandwidth-negative", "bandwidth=-1", "positive", run=(GAUSSIAN, "fusion.kernel.bandwidth=-1")),
    of("bandwidth-word", "bandwidth='mean'", "'median'", run=(GAUSSIAN, "fusion.kernel.bandwidth=mean")),
    of("features-odd", "features=33", "even", run=(GAUSSIAN, "fusion.kernel.features=33")),
    of("features-zero", "features=0", "positive integer", run=(GAUSSIAN, "fusion.kernel.features=0")),
    of("features-far-too-many", "features", ("memory", "lower features"),
       run=(GAUSSIAN, "fusion.kernel.features=1000000000000")),
    of("nu", "nu=2", "1.5", run=("fusion/kernel=matern", "fusion.kernel.nu=2")),
    of("orthogonal-laplace", "orthogonal", "laplace", run=("fusion/kernel=laplace", "+fusion.kernel.orthogonal=true")),
    of("degree", "degree=0", run=("fusion/kernel=polynomial", "fusion.kernel.degree=0")),
    of("gamma", "gamma=-1", run=("fusion/kernel=polynomial", "fusion.kernel.gamma=-1")),
    of("coef0", "coef0=-1", run=("fusion/kernel=polynomial", "fusion.kernel.coef0=-1")),
    of("exact-polynomial-too-large", "degree=9", ("dimensions", "memory"),
       run=("fusion/kernel=polynomial", "fusion.kernel.features=null", "fusion.kernel.degree=9")),
    of("bandwidth-of-constant-features", "median", "zero", "bandwidth", run=(GAUSSIAN,), files=embeddings(constant)),
    of("no-kernel", "kernel", ("cosine", "option"), run=("fusion.kernel=null",), never=("NoneType",)),
    of("expert-kernel", "no option 'gaussan'", "did you mean 'gaussian'",
       run=("fusion/kernel@fusion.expert_kernel=gaussan",)),
]  # fmt: skip

SKETCHES = [
    of("spectral-without-exact", "sketch='spectral'", "exact", run=("fusion/sketch=spectral",)),
    of("nystrom-without-exact", "nystrom", "exact", run=("fusion/sketch=nystrom",)),
    of("nystrom-with-too-few-rows", "36", "40", ("landmarks", "lower dim"), short=True,
       run=("fusion/sketch=nystrom", EXACT, "fusion.dim=48")),
    of("landmarks", "landmarks=0", "positive integer",
       run=("fusion/sketch=nystrom", EXACT, "fusion.sketch.landmarks=0")),
    of("landmarks-fewer-than-components", "landmarks=3", "16", run=("fusion/sketch=nystrom", EXACT, "fusion.sketch.landmarks=3")),
    of("spectral-larger-than-the-product", "dim", "80", run=("fusion/sketch=spectral", EXACT, "fusion.dim=2000")),
    of("kronecker-with-another-dimension", "80", "24", run=("fusion/sketch=kronecker", "fusion.alignment=offset")),
    of("joint-fourier-of-cosine", "joint", ("gaussian", "shift-invariant", "kernel"),
       run=("fusion/sketch=joint_fourier",)),
    of("kpomrp-distribution", "distribution='normal'", "gaussian",
       run=("fusion/sketch=kpomrp", "fusion.sketch.distribution=normal")),
    of("two-experts-published", "published", "['dinov2', 'mae']", "exact", run=(), files=embeddings(two_image_experts)),
    of("concatenation-of-both-sides", "image experts ['dinov2']", "text experts ['e5']", "zeros",
       run=("fusion=concatenation",), files=embeddings(a_text_expert)),
    of("modality", "modality='images'", "did you mean 'image'",
       run=("fusion=unimodal_krossfuse", "fusion.dim=24", "fusion.modality=images")),
    of("modality-without-an-expert", "two text parents", run=("fusion=unimodal_krossfuse", "fusion.dim=24",
       "fusion.modality=text")),
    of("released-code-with-two-experts", "released code", "['dinov2', 'mae']", run=("fusion=released_code",),
       files=embeddings(two_image_experts)),
]  # fmt: skip

POSTPROCESSED = [
    of("pca-dim-of-postprocessed", "pca_dim=500", "24", run=("fusion=postprocessed", "fusion.method.dim=24",
       "fusion.pca_dim=500")),
    of("centre-without-pca", "centre", "pca_dim", run=("fusion=postprocessed", "fusion.method.dim=24",
       "fusion.centre=true")),
    of("dtype", "dtype='half'", "float16", run=("fusion=postprocessed", "fusion.method.dim=24", "fusion.dtype=half")),
    of("postprocessed-clustered", run=("fusion=postprocessed", "fusion.method.dim=24", "probe=[clustering]",
       "probe.clustering.n_seeds=1"), status=0, after=measured),
    of("postprocessed-probed-by-kernel", run=("fusion=postprocessed", "fusion.method.dim=24", "probe=[zero_shot,kernel_probe]"),
       status=0, after=measured),
    of("bfloat16-in-a-file", "bfloat16", "float16", "memory", run=("fusion=postprocessed", "fusion.method.dim=24",
       "fusion.dtype=bfloat16", "fuse.memory_limit=100")),
    of("overflow-in-float16", "float16", ("infinit", "overflow", "range"), run=("fusion=postprocessed",
       "fusion.method.dim=24", "fusion.normalise=false", "fusion.dtype=float16", "fusion.method.C=1e6",
       "fusion/kernel@fusion.method.kernel=linear"),
       files=embeddings(lambda a: [a[key].__imul__(300) for key in a if "/clip" in key or "/dino" in key])),
]  # fmt: skip

SAVED = [
    Case(
        id="own-method-cannot-be-saved", room=FUSION,
        run=[*EMBEDDINGS, "save_fusion=true", "fusion._target_=mine.made", "+fusion.power=1"],
        files=lambda folder, made: (embeddings()(folder, made), (folder / "mine.py").write_text(
            "from krossfuse import RPKrossFuse\n\n\ndef made(*, inputs, power, **options):\n"
            "    class Mine(RPKrossFuse):\n        pass\n\n    return Mine(inputs=inputs, **options)\n")),
        words=["could not be loaded again", "register", "Mine"], after=quick,
    ),
]  # fmt: skip

DIAGNOSE = [
    diagnose("preset", "'spectral_krosfuse'", "spectral_krossfuse", run=("fusion=spectral_krosfuse",)),
    diagnose("both-ways", "--dim", "fusion.dim", run=("fusion=spectral_krossfuse", "--dim", "16")),
    diagnose("not-there", "features.npz", "no such file", files=lambda folder, made: None),
    diagnose("dim", "dim=0", "positive", run=("--dim", "0")),
    diagnose("dim-word", "--dim", "'x'", run=("--dim", "x")),
    diagnose("sketch", "'uniforn'", "did you mean 'uniform'", run=("--sketch", "uniforn"), short=True),
    diagnose("kernel", "'cosin'", "did you mean 'cosine'", run=("--kernel", "cosin")),
    diagnose("alignment", "'exat'", "did you mean 'exact'", run=("--alignment", "exat")),
    diagnose("C", "C='x'", ("cv", "auto"), run=("--C", "x", "--dim", "16")),
    diagnose("target", "target", "-1", run=("--target", "-1", "--dim", "16")),
    diagnose("seeds", "seeds=0", run=("--seeds", "0", "--dim", "16", "--sketch", "uniform")),
    diagnose("rows", ("rows=0", "max_rows=0"), run=("--rows", "0", "--dim", "16")),
    diagnose("out-in-no-folder", "no/such/out.json", run=("--out", "no/such/out.json", "--dim", "16"), status=FAILED,
             never=("paths.runs",)),
    diagnose("dim-too-large", "4992", "80", "lower dim", run=("--dim", "5000")),
    diagnose("expert-weight", "expert_weight=-1", run=("--expert-weight", "-1", "--dim", "16")),
]  # fmt: skip

CASES = [*NUMBERS, *TRAINED, *KERNELS, *SKETCHES, *POSTPROCESSED, *SAVED, *DIAGNOSE]
