"""Bad values and odd data: refused before anything is allocated, named with part and row, or made to work."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from krossfuse.core import memory
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import TEST, TRAIN, Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.fusion import (
    CCA,
    Attention,
    Comm,
    Concatenation,
    ExactKrossFuse,
    FusionMethod,
    Gate,
    GaussianKernel,
    InputSpec,
    LinearKernel,
    NystromSketch,
    PCAConcatenation,
    PolynomialKernel,
    PostProcess,
    ReleasedCode,
    RFFConcatenation,
    RPKrossFuse,
    SpectralSketch,
    SRHTSketch,
    TensorSketch,
    UnimodalKrossFuse,
)
from krossfuse.fusion.fit import check_fit, fit_method
from krossfuse.fusion.module import FusionModule
from krossfuse.fusion.plain import fuse_rows

INPUTS = InputSpec(cross_modal=12, image_experts={"dino": 16})
HUGE = 1_000_000_000


@pytest.mark.parametrize(
    "make",
    [
        partial(RPKrossFuse, dim=HUGE),
        partial(RPKrossFuse, dim=HUGE, sketch=SRHTSketch, alignment="offset"),
        partial(RPKrossFuse, dim=HUGE, sketch=TensorSketch, alignment="exact"),
        partial(RPKrossFuse, dim=20_000_000, kernel=partial(GaussianKernel, features=HUGE)),
        partial(UnimodalKrossFuse, dim=HUGE),
        partial(RFFConcatenation, dim=HUGE),
        partial(ReleasedCode, dim=HUGE),
        partial(Gate, dim=HUGE),
        partial(Attention, dim=HUGE),
        partial(Comm, dim=HUGE),
        partial(PostProcess, method=partial(RPKrossFuse, dim=HUGE)),
        partial(RPKrossFuse, dim=40, sketch=partial(NystromSketch, landmarks=HUGE), alignment="exact"),
    ],
)
def test_what_cannot_fit_into_memory_is_refused_first(make: partial[FusionMethod]) -> None:
    with pytest.raises(ConfigError, match=r"GB of memory, and there are .* GB; lower") as error:
        make(inputs=INPUTS)
    needed = float(str(error.value).split("needs ")[1].split(" GB")[0].replace(",", ""))
    assert needed * 1e9 > memory.total_memory()


def test_wide_parents_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda: 10_000_000)
    RPKrossFuse(inputs=InputSpec(cross_modal=100, image_experts={"dino": 100}), dim=3000)
    with pytest.raises(ConfigError, match=r"uniform sketch of \[1000, 2000\] dimensions into 3000 needs 0.0 GB"):
        RPKrossFuse(inputs=InputSpec(cross_modal=1000, image_experts={"dino": 1000}), dim=3000)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (partial(RPKrossFuse, dim=40, C=1e40), "C=1e"),
        (partial(RPKrossFuse, dim=40, C=1e-40), "C=1e"),
        (partial(ExactKrossFuse, C=1e40), "C=1e"),
        (partial(RPKrossFuse, inputs=InputSpec(12, {"a": 3}, {"b": 3}), dim=40, C_text=1e40), "C_text=1e"),
        (partial(RPKrossFuse, dim=40, alignment="exact", expert_weight=1e40), "expert_weight=1e"),
        (partial(Concatenation, weights={"dino": 1e40}), r"weights\[dino\]=1e"),
        (partial(RFFConcatenation, dim=10, bandwidth=1e40), "bandwidth=1e"),
        (partial(RPKrossFuse, dim=40, kernel=partial(PolynomialKernel, gamma=1e40)), "gamma=1e"),
        (partial(RPKrossFuse, dim=40, kernel=partial(PolynomialKernel, coef0=1e40)), "coef0=1e"),
    ],
)
def test_numbers_that_float32_cannot_hold(make: partial[FusionMethod], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*float32"):
        make(**{"inputs": INPUTS} if "inputs" not in make.keywords else {})


def test_the_largest_constants_still_work(toy_bundle: FeatureBundle) -> None:
    x = dict(toy_bundle[Part(TEST, "image")])
    for C in (1e-9, 1e9):
        fused = RPKrossFuse(inputs=INPUTS, dim=60, C=C, alignment="exact").encode("image", x)
        gram = fused @ fused.T
        assert torch.isfinite(gram.square()).all()
        assert (gram.diagonal() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        partial(Gate, dim=8, epochs=1),
        partial(Attention, dim=8, epochs=1),
        partial(Comm, epochs=1, missing="zeros"),
        partial(CCA, dim=4),
        partial(PCAConcatenation, dim=4),
        partial(RFFConcatenation, dim=8),
        partial(RPKrossFuse, dim=40, alignment="exact", sketch=SpectralSketch),
    ],
)
def test_features_of_any_precision(make: partial[FusionMethod], dtype: torch.dtype, toy_bundle: FeatureBundle) -> None:
    features = {part: {r: x.to(dtype) for r, x in roles.items()} for part, roles in toy_bundle.features.items()}
    bundle = FeatureBundle(toy_bundle.info, "toy", features)
    module = FusionModule(make(inputs=INPUTS)).fit(bundle, label_set="animal")
    same = FusionModule(make(inputs=INPUTS)).fit(toy_bundle, label_set="animal").fuse(toy_bundle)
    for part, fused in module.fuse(bundle).items():
        assert fused.dtype == torch.float32
        if dtype == torch.float64:
            assert torch.allclose(fused, same[part], atol=1e-6)


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-42])
def test_directions_of_features_of_any_size(scale: float, toy_bundle: FeatureBundle) -> None:
    method = RPKrossFuse(inputs=INPUTS, dim=60, alignment="exact")
    x = dict(toy_bundle[Part(TEST, "image")])
    scaled = {role: value * scale for role, value in x.items()}
    exact = {role: value.double() for role, value in scaled.items()}  # what float32 has left of them
    fused = method.encode("image", scaled)
    assert torch.allclose(fused, method.encode("image", {r: v / v.abs().max() for r, v in exact.items()}), atol=1e-5)
    mixed = {role: torch.cat([x[role][:3], scaled[role][:3]]) for role in x}
    assert torch.equal(method.encode("image", mixed)[:3], method.encode("image", {r: v[:3] for r, v in x.items()}))


def test_the_true_reason_is_said(toy_bundle: FeatureBundle) -> None:
    method = RPKrossFuse(inputs=INPUTS, dim=60)
    x = dict(toy_bundle[Part(TEST, "image")])
    with pytest.raises(DataError, match=r"'dino': NaN or infinite features \(in float32, whose range they leave\)"):
        fuse_rows(method, "image", {**x, "dino": x["dino"].double() * 1e200})
    with pytest.raises(DataError, match=r"'dino': zero vectors, which have no direction, \(in float32, whose range"):
        fuse_rows(method, "image", {**x, "dino": x["dino"].double() * 1e-200})
    with pytest.raises(DataError, match=r"range of torch.float32: they are as large as .*e\+3\d; .*normalize=true"):
        GaussianKernel(12).fit(x["cross_modal"] * 1e30)
    with pytest.raises(DataError, match=r"too small for torch.float32.*scale them"):
        GaussianKernel(12).fit(x["cross_modal"] * 1e-30)
    with pytest.raises(DataError, match="most rows are equal"):
        GaussianKernel(12).fit(torch.ones(20, 12))
    linear = RPKrossFuse(inputs=INPUTS, dim=60, kernel=LinearKernel)
    with pytest.raises(DataError, match=r"image features: the embeddings of \d+ of 64 rows leave the range of torch"):
        fuse_rows(linear, "image", {role: value * 1e30 for role, value in x.items()})


def broken(bundle: FeatureBundle, part: Part, rows: list[int], value: float) -> FeatureBundle:
    features = {p: {r: x.clone() for r, x in roles.items()} for p, roles in bundle.features.items()}
    features[part]["cross_modal"][rows] = value
    return FeatureBundle(bundle.info, "toy", features)


@pytest.mark.parametrize("block_rows", [7, 4096])
@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "NaN or infinite features"), (0.0, "zero vectors")])
def test_rows_are_those_of_the_whole_part(
    toy_bundle: FeatureBundle, block_rows: int, value: float, reason: str
) -> None:
    module = FusionModule(RPKrossFuse(inputs=INPUTS, dim=60), block_rows=block_rows)
    bundle = broken(toy_bundle, Part(TRAIN, "text"), [40, 150], value)
    message = f"dataset 'toy', train:text: features of 'cross_modal': {reason}.* in 2 of 160 rows, the first at row 40$"
    with pytest.raises(DataError, match=message):
        module.fuse(bundle)
    fitted = RPKrossFuse(inputs=INPUTS, dim=60, kernel=partial(GaussianKernel, features=16, normalize=True))
    with pytest.raises(DataError, match=message):
        fit_method(fitted, bundle)
    with pytest.raises(DataError, match="train:image: features of 'cross_modal': .* the first at row 31$"):
        fit_method(PCAConcatenation(inputs=INPUTS, dim=4), broken(toy_bundle, Part(TRAIN, "image"), [31], value))
    with pytest.raises(DataError, match="test:image: .*in 1 of 64 rows, the first at row 3$"):
        list(module.fuse(broken(toy_bundle, Part(TEST, "image"), [3], value)))


@pytest.mark.parametrize(
    ("make", "rows", "message"),
    [
        (
            partial(RPKrossFuse, dim=40, alignment="exact", sketch=NystromSketch),
            27,
            "27 fit samples are fewer than .*28",
        ),
        (partial(UnimodalKrossFuse, dim=30, sketch=NystromSketch), 29, "29 fit samples are fewer than the 30"),
        (partial(RPKrossFuse, dim=52, alignment="exact", sketch=SpectralSketch), 6, r"6 × 6 = 36 product directions"),
        (partial(RPKrossFuse, dim=40, kernel=GaussianKernel), 0, "'cross_modal': the median heuristic needs two rows"),
        (partial(RPKrossFuse, dim=40, C="auto"), 9, "C=auto needs 10 training samples"),
        (partial(PCAConcatenation, dim=20), 20, "20 principal components need 21 fit samples"),
        (partial(RFFConcatenation, dim=20), 1, "two rows of features"),
        (partial(CCA, dim=8), 4, "4 canonical variates need more than 4 fit samples"),
        (partial(PostProcess, method=partial(RPKrossFuse, dim=40), pca_dim=9), 4, "9 principal components need 9"),
        (
            partial(PostProcess, method=partial(RPKrossFuse, dim=40, alignment="exact", sketch=NystromSketch)),
            27,
            "fewer than the 28 landmarks",
        ),
    ],
)
def test_too_few_rows_are_known_before_the_first_job(make: partial[FusionMethod], rows: int, message: str) -> None:
    method = make(inputs=INPUTS)
    sizes = {Part(TRAIN, "image"): rows, Part(TRAIN, "text"): rows, Part(TEST, "image"): 10_000}
    with pytest.raises(DataError, match=message):
        check_fit(method, sizes)
    enough = dict.fromkeys(sizes, 1000)
    check_fit(method, enough)
    with pytest.raises(DataError, match="."):
        check_fit(method, enough, max_rows=max(rows, 1))
    generator = torch.Generator().manual_seed(0)
    x: dict[str, Tensor] = {
        r: torch.randn(rows, d, generator=generator) for r, d in (("cross_modal", 12), ("dino", 16))
    }
    with pytest.raises(DataError, match="."):  # the fit itself says no as well
        method.fit(image=x, text={"cross_modal": x["cross_modal"]})


def test_the_normalised_kernel_is_that_of_the_unit_embedding(toy_bundle: FeatureBundle) -> None:
    method = PostProcess(inputs=INPUTS, method=partial(ExactKrossFuse, kernel=LinearKernel), normalise=True).double()
    parts = [Part(TEST, "image"), Part(TEST, "text")]
    x = {p: {r: v.double() for r, v in toy_bundle[p].items()} for p in parts}
    fused = {p: method.encode(p.modality, x[p]) for p in parts}
    assert method.has_kernel
    for a in parts:
        for b in parts:
            kernel = method.kernel(a.modality, x[a], b.modality, x[b])
            assert kernel is not None
            assert torch.allclose(fused[a] @ fused[b].T, kernel, atol=1e-10)
    reduced = PostProcess(inputs=INPUTS, method=partial(RPKrossFuse, dim=40), pca_dim=5)
    assert not reduced.has_kernel
    assert not PostProcess(inputs=INPUTS, method=partial(Gate, dim=4)).has_kernel


TITLES = {
    "cross_modal": "Cross-modal alone",
    "image_expert": "Image expert alone",
    "text_expert": "Text expert alone",
    "concatenation": "Concatenation",
    "pca_concatenation": "PCA of concatenation",
    "rff_concatenation": "RFF of concatenation",
    "average_kernel": "Average of kernels",
    "cca": "CCA",
    "exact_krossfuse": "KrossFuse, no sketch",
    "rp_krossfuse": "RP-KrossFuse",
    "spectral_krossfuse": "RP-KrossFuse",
    "released_code": "RP-KrossFuse, released code",
    "unimodal_krossfuse": "KrossFuse of experts",
    "postprocessed": "RP-KrossFuse, post-processed",
    "gate": "GATE",
    "attn": "ATTN",
    "comm": "COMM",
}


def test_every_preset_has_its_title(repository: Path) -> None:
    presets = sorted(file.stem for file in (repository / "conf" / "fusion").glob("*.yaml"))
    assert set(presets) == set(TITLES)
    with initialize_config_dir(str(repository / "conf"), version_base=None):
        for preset in presets:
            experts: dict[str, Any] = {"text_experts" if preset == "text_expert" else "image_experts": {"dino": 400}}
            node = compose("config", overrides=[f"fusion={preset}"]).fusion
            method = instantiate(node, _convert_="all")(inputs=InputSpec(cross_modal=130, **experts))
            described = method.describe()
            assert described["title"] == method.title == TITLES[preset]
            assert described["dim"] == method.out_dim


@pytest.mark.parametrize("kind", [Gate, partial(PostProcess, method=partial(Gate, dim=8, epochs=3, val_fraction=0.0))])
def test_trained_methods_train_through_the_runs_trainers(kind: Any, toy_bundle: FeatureBundle, tmp_path: Path) -> None:
    method = (
        kind(inputs=INPUTS) if isinstance(kind, partial) else kind(inputs=INPUTS, dim=8, epochs=3, val_fraction=0.0)
    )
    trainers = TrainerFactory(
        {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
        logger=lambda: CSVLogger(tmp_path, name="run", version=""),
    )
    FusionModule(method, trainers=trainers).fit(toy_bundle, label_set="animal")
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "gate/loss" in lines[0]
    assert len(lines) == 1 + 3  # 160 rows in one batch an epoch
    quiet = kind(inputs=INPUTS) if isinstance(kind, partial) else kind(inputs=INPUTS, dim=8, epochs=3, val_fraction=0.0)
    fit_method(quiet, toy_bundle, label_set="animal")
    assert all(torch.equal(a, b) for a, b in zip(quiet.parameters(), method.parameters(), strict=True))
