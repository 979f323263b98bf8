"""What the methods compute: the formulas of section 3, algorithms 1 and 2, written out."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_toys import C_TEXT, CROSS, IMAGE, INPUTS, PAIRS, TEXT, C, constants, features
from torch import Tensor
from torch.nn.functional import normalize

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError
from krossfuse.core.parts import Modality
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.io import load_fusion, save_fusion
from krossfuse.fusion.kernels import GaussianKernel, LaplaceKernel, LinearKernel
from krossfuse.fusion.methods import (
    Alone,
    Concatenation,
    ExactKrossFuse,
    ReleasedCode,
    RPKrossFuse,
    UnimodalKrossFuse,
    gram,
)
from krossfuse.fusion.sketches import (
    ComplexToRealSketch,
    ComplexToRealSRHTSketch,
    JointFourierSketch,
    KPoMRPSketch,
    KroneckerSketch,
    NystromSketch,
    SpectralSketch,
    SRHTSketch,
    TensorSketch,
    UniformSketch,
)

RANDOM = [UniformSketch, SRHTSketch, ComplexToRealSketch, ComplexToRealSRHTSketch, TensorSketch, KPoMRPSketch]


def section_3(case: str, modality: Modality, x: dict[str, Tensor]) -> Tensor:
    """The Kronecker map of section 3, written out: symmetrised experts, in full width."""
    unit = {role: normalize(value, dim=1) for role, value in x.items()}
    parts = [unit["cross_modal"]]
    sides: list[tuple[Modality, str, int, float]] = []
    if case in ("image", "both"):
        sides.append(("image", "dino.v2", IMAGE, C))
    if case in ("text", "both"):
        sides.append(("text", "minilm", TEXT, C_TEXT if case == "both" else C))
    for side, role, d, c in sides:
        if side == modality:
            level = math.sqrt(c / d)
            parts.append(torch.cat([level + unit[role], level - unit[role]], 1) / math.sqrt(2))
        else:
            parts.append(torch.full((len(parts[0]), 2 * d), math.sqrt(c / (2 * d)), dtype=torch.float64))
    return KroneckerSketch([p.shape[1] for p in parts], math.prod(p.shape[1] for p in parts))(parts)


def z_scores(values: Tensor, exact: Tensor) -> Tensor:
    return (values.mean(0) - exact) / (values.std(0) / math.sqrt(len(values))).clamp_min(1e-12)


@pytest.mark.parametrize("case", ["image", "text", "both"])
def test_the_exact_method_is_section_3(case: str) -> None:
    method = ExactKrossFuse(inputs=INPUTS[case], **constants(case)).double()
    x, y = features(), features(4, seed=1)
    for a, b in PAIRS:
        literal = section_3(case, a, x[a]) @ section_3(case, b, y[b]).T
        assert torch.allclose(method.encode(a, x[a]) @ method.encode(b, y[b]).T, literal, atol=1e-12)
        kernel = method.kernel(a, x[a], b, y[b])
        assert kernel is not None
        assert torch.allclose(kernel, literal, atol=1e-12)


def test_the_kernel_of_section_3_in_words() -> None:
    x = features()
    unit = {role: normalize(value, dim=1) for role, value in x["image"].items()}
    text = normalize(x["text"]["cross_modal"], dim=1)
    psi, gamma = unit["cross_modal"], unit["dino.v2"]
    method = ExactKrossFuse(inputs=INPUTS["image"], C=C).double()
    expected = {
        ("image", "image"): (psi @ psi.T) * (C + gamma @ gamma.T),
        ("image", "text"): C * psi @ text.T,
        ("text", "text"): C * text @ text.T,
    }
    for a, b in PAIRS:
        kernel = method.kernel(a, x[a], b, x[b])
        assert kernel is not None
        assert torch.allclose(kernel, expected[a, b], atol=1e-12)


@pytest.mark.parametrize("sketch", RANDOM, ids=lambda s: s.name)
@pytest.mark.parametrize("case", ["image", "both", "several"])
@pytest.mark.parametrize("alignment", ["published", "offset", "exact"])
def test_every_alignment_is_unbiased(sketch: Any, case: str, alignment: str) -> None:
    if case == "several" and alignment == "published":
        with pytest.raises(ConfigError, match="one expert a side"):
            RPKrossFuse(inputs=INPUTS[case], dim=27, alignment=alignment, sketch=sketch)
        return
    x, values, exact = features(3), [], []
    for seed in range(120):
        method = RPKrossFuse(
            inputs=INPUTS[case], dim=27, alignment=alignment, sketch=sketch, seed=seed, **constants(case)
        ).double()
        z = {m: method.encode(m, x[m]) for m in ("image", "text")}
        assert z["image"].shape == (3, 27)
        values.append(torch.stack([z[a] @ z[b].T for a, b in PAIRS]))
    exact = [method.kernel(a, x[a], b, x[b]) for a, b in PAIRS]
    assert z_scores(torch.stack(values), torch.stack(exact)).abs().max() < 4.7  # type: ignore[arg-type]


def test_published_is_algorithm_2_with_one_scale() -> None:
    """The folded form against (1/√l)·(U_1 φ_1) ⊙ (U_2 φ̃) with the full-width matrices, for an expert on each side."""
    x, dim = features(), 40
    method = RPKrossFuse(inputs=INPUTS["both"], dim=dim, C=C, C_text=C_TEXT, seed=3).double()
    seed = method.sketches["shared"].seed
    wide = UniformSketch([CROSS, 2 * IMAGE, 2 * TEXT], dim, seed=seed).double()  # type: ignore[arg-type]
    u1, u2, u3 = (wide.get_buffer(f"matrix_{i}") for i in range(3))
    assert float(u1.abs().max()) * math.sqrt(dim) == pytest.approx(math.sqrt(3), rel=0.05)
    assert float(u2.abs().max()) == pytest.approx(math.sqrt(3), rel=0.05)
    for modality in ("image", "text"):
        unit = {role: normalize(value, dim=1) for role, value in x[modality].items()}
        parts = []
        for side, role, d, c in (("image", "dino.v2", IMAGE, C), ("text", "minilm", TEXT, C_TEXT)):
            if side == modality:
                level = math.sqrt(c / d)
                parts.append(torch.cat([level + unit[role], level - unit[role]], 1) / math.sqrt(2))
            else:
                parts.append(torch.full((5, 2 * d), math.sqrt(c / (2 * d)), dtype=torch.float64))
        literal = (unit["cross_modal"] @ u1) * (parts[0] @ u2) * (parts[1] @ u3)
        assert torch.allclose(method.encode(modality, x[modality]), literal, atol=1e-6)


@pytest.mark.parametrize("sketch", [UniformSketch, ComplexToRealSRHTSketch, SpectralSketch, NystromSketch])
@pytest.mark.parametrize("case", ["image", "text", "both"])
def test_exact_alignment_cannot_change_zero_shot(case: str, sketch: Any) -> None:
    train, x = features(60, seed=2), features(40)
    method = RPKrossFuse(inputs=INPUTS[case], dim=20, alignment="exact", sketch=sketch, **constants(case)).double()
    method.fit(image=train["image"], text=train["text"])
    alone = Alone(inputs=INPUTS[case]).double()
    image, text = (method.encode(m, x[m]) for m in ("image", "text"))
    reference = alone.encode("image", x["image"]) @ alone.encode("text", x["text"]).T
    constant = C * C_TEXT if case == "both" else C
    assert torch.allclose(image @ text.T, constant * reference, atol=1e-12)
    assert torch.equal((image @ text.T).argmax(1), reference.argmax(1))
    if case != "both":
        other: Modality = "text" if case == "image" else "image"
        z, own = method.encode(other, x[other]), alone.encode(other, x[other])
        assert torch.allclose(z @ z.T, C * own @ own.T, atol=1e-12)


@pytest.mark.parametrize("case", ["image", "text", "both", "several"])
def test_expert_weight_adds_the_experts_own_kernel_and_moves_nothing_else(case: str) -> None:
    x, weight = features(30), 1.7
    plain = ExactKrossFuse(inputs=INPUTS[case], **constants(case)).double()
    method = ExactKrossFuse(inputs=INPUTS[case], expert_weight=weight, **constants(case)).double()
    for a, b in PAIRS:
        za, zb = method.encode(a, x[a]), method.encode(b, x[b])
        kernel, before = method.kernel(a, x[a], b, x[b]), plain.kernel(a, x[a], b, x[b])
        assert kernel is not None
        assert before is not None
        assert torch.allclose(za @ zb.T, kernel, atol=1e-12)
        experts = [normalize(x[a][role], dim=1) for role in INPUTS[case].experts(a)] if a == b else []
        own = math.prod(e @ e.T for e in experts) if experts else 0.0
        other = {"image": C_TEXT, "text": C}[a] if case == "both" else 1.0
        assert torch.allclose(kernel - before, other * weight * own * torch.ones_like(kernel), atol=1e-12)


@pytest.mark.parametrize("sketch", RANDOM)
def test_expert_weight_is_unbiased_under_random_sketches(sketch: Any) -> None:
    x, errors = features(20)["image"], []
    for seed in range(60):
        method = RPKrossFuse(
            inputs=INPUTS["image"], dim=46, alignment="exact", sketch=sketch, expert_weight=1.0, C=C, seed=seed
        ).double()
        z, exact = method.encode("image", x), method.kernel("image", x, "image", x)
        assert exact is not None
        errors.append(z @ z.T - exact)
    stack = torch.stack(errors)
    score = stack.mean(0) / (stack.std(0) / len(errors) ** 0.5).clamp_min(1e-12)
    assert float(score.square().mean()) < 2


@pytest.mark.parametrize("sketch", [SpectralSketch, NystromSketch])
def test_expert_weight_is_exact_where_a_fitted_sketch_has_all_directions(sketch: Any) -> None:
    train, x = features(80, seed=2)["image"], features(40)["image"]
    dim = CROSS + (CROSS + 1) * IMAGE
    method = RPKrossFuse(inputs=INPUTS["image"], dim=dim, alignment="exact", sketch=sketch, expert_weight=1.0).double()
    z, exact = method.fit(image=train).encode("image", x), method.kernel("image", x, "image", x)
    assert exact is not None
    assert torch.allclose(z @ z.T, exact, atol=1e-8)


def test_exact_alignment_shares_the_dimensions_that_are_left() -> None:
    both = RPKrossFuse(inputs=INPUTS["both"], dim=CROSS + 9, alignment="exact")
    assert [s.out_dim for s in both.sketches.values()] == [5, 4]
    assert both.out_dim == CROSS + 9
    for case, least in (("image", CROSS + 1), ("both", CROSS + 2)):
        RPKrossFuse(inputs=INPUTS[case], dim=least, alignment="exact")
        with pytest.raises(DimensionError, match=f"dim={least - 1} must be {least} or more"):
            RPKrossFuse(inputs=INPUTS[case], dim=least - 1, alignment="exact")


def test_offset_and_exact_are_nearer_than_published() -> None:
    x = features(30)

    def error(alignment: str, a: Modality, b: Modality) -> float:
        total = 0.0
        for seed in range(20):
            method = RPKrossFuse(inputs=INPUTS["image"], dim=64, alignment=alignment, seed=seed).double()
            exact = method.kernel(a, x[a], b, x[b])
            assert exact is not None
            total += float((method.encode(a, x[a]) @ method.encode(b, x[b]).T - exact).square().mean())
        return total

    assert error("exact", "image", "text") < 1e-20
    assert error("offset", "image", "text") < error("published", "image", "text")
    assert error("exact", "image", "image") < error("published", "image", "image")


def test_released_code_to_the_digit() -> None:
    """The released formula, restated: the global generator, both matrices divided by √l."""
    x, dim = features(dtype=torch.float32)["image"], 50
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        matrices = [(torch.rand(d, dim) * 2 * 3**0.5 - 3**0.5) / dim**0.5 for d in (CROSS, IMAGE)]
    literal = (normalize(x["cross_modal"], dim=1) @ matrices[0]) * (normalize(x["dino.v2"], dim=1) @ matrices[1])
    method = ReleasedCode(inputs=INPUTS["image"], dim=dim)
    assert torch.allclose(method.encode("image", x), literal, rtol=1e-5, atol=1e-8)
    assert method.modalities == ("image",)
    with pytest.raises(ConfigError, match="cannot encode text"):
        method.encode("text", x)
    with pytest.raises(ConfigError, match="one image expert"):
        ReleasedCode(inputs=INPUTS["several"])


def test_released_code_is_l_times_too_small() -> None:
    x = features(6)["image"]
    made = [ReleasedCode(inputs=INPUTS["image"], dim=30, seed=s).double() for s in range(200)]
    values = torch.stack([m.encode("image", x) @ m.encode("image", x).T for m in made])
    psi, gamma = (normalize(x[role], dim=1) for role in ("cross_modal", "dino.v2"))
    exact = (psi @ psi.T) * (gamma @ gamma.T) / 30
    assert z_scores(values, exact).abs().max() < 4.5
    assert torch.allclose(made[0].kernel("image", x, "image", x), exact, atol=1e-12)  # type: ignore[arg-type]


def test_several_experts_multiply() -> None:
    x = features()["image"]
    method = ExactKrossFuse(inputs=INPUTS["several"], C=C).double()
    psi, one, two = (normalize(x[role], dim=1) for role in ("cross_modal", "dino.v2", "unicom"))
    expected = (psi @ psi.T) * (C + (one @ one.T) * (two @ two.T))
    z = method.encode("image", x)
    assert torch.allclose(z @ z.T, expected, atol=1e-12)
    assert torch.allclose(method.kernel("image", x, "image", x), expected, atol=1e-12)  # type: ignore[arg-type]


def test_unimodal_fusion() -> None:
    x = features()
    experts = InputSpec(None, {"dino.v2": IMAGE, "unicom": 4})
    one, two = (normalize(x["image"][role], dim=1) for role in ("dino.v2", "unicom"))
    product = (one @ one.T) * (two @ two.T)
    method = UnimodalKrossFuse(inputs=experts, dim=None, sketch=KroneckerSketch).double()
    z = method.encode("image", x["image"])
    assert z.shape == (5, IMAGE * 4)
    assert torch.allclose(z @ z.T, product, atol=1e-12)
    assert torch.allclose(method.kernel("image", x["image"], "image", x["image"]), product)  # type: ignore[arg-type]
    assert method.deterministic
    # With the cross-modal encoder's features of that modality as one more parent.
    text = UnimodalKrossFuse(inputs=INPUTS["both"], modality="text", dim=12).double()
    assert text.modalities == ("text",)
    assert text.encode("text", x["text"]).shape == (5, 12)
    with pytest.raises(ConfigError, match="cannot encode image"):
        text.encode("image", x["image"])
    with pytest.raises(ConfigError, match="modality=image or text"):
        UnimodalKrossFuse(inputs=INPUTS["both"], dim=12)
    with pytest.raises(ConfigError, match="two image parents or more"):
        UnimodalKrossFuse(inputs=InputSpec(None, {"dino.v2": IMAGE}), dim=12)


def test_joint_fourier_features_of_a_product_of_gaussians() -> None:
    x = features(8)
    kernel = partial(GaussianKernel, bandwidth=3.0, features=4000)
    method = RPKrossFuse(
        inputs=INPUTS["image"], dim=8000, C=C, alignment="exact", kernel=kernel, sketch=JointFourierSketch
    ).double()
    for a, b in PAIRS:
        exact = method.kernel(a, x[a], b, x[b])
        assert exact is not None
        assert float((method.encode(a, x[a]) @ method.encode(b, x[b]).T - exact).abs().max()) < 0.15
    with pytest.raises(ConfigError, match="random Fourier features"):
        RPKrossFuse(inputs=InputSpec(6, {"e": 6}), dim=12, alignment="exact", sketch=JointFourierSketch)


def test_fit_sets_bandwidths_of_each_parent() -> None:
    x = features(40)
    method = RPKrossFuse(
        inputs=INPUTS["both"], dim=30, kernel=partial(GaussianKernel, features=16), expert_kernel=LaplaceKernel
    ).double()
    with pytest.raises(NotFittedError, match="bandwidth"):
        method.encode("image", x["image"])
    method.fit(image=x["image"], text=x["text"])
    both = torch.cat([x["image"]["cross_modal"], x["text"]["cross_modal"]])
    expected = torch.pdist(both).median()
    assert float(method.kernels["cross_modal"].bandwidth) == pytest.approx(float(expected))  # type: ignore[arg-type]
    assert isinstance(method.kernels["minilm"], LaplaceKernel)
    assert method.describe()["bandwidth/minilm"] > 0
    with pytest.raises(DataError, match=r"'minilm' needs its features"):
        RPKrossFuse(inputs=INPUTS["both"], dim=30, kernel=GaussianKernel).fit(image=x["image"])


def test_alone() -> None:
    x = features()
    alone = Alone(inputs=INPUTS["both"]).double()
    assert alone.modalities == ("image", "text")
    assert torch.allclose(alone.encode("text", x["text"]), normalize(x["text"]["cross_modal"], dim=1))
    expert = Alone(inputs=INPUTS["both"], parent="image", kernel=LinearKernel).double()
    assert expert.modalities == ("image",)
    assert expert.out_dim == IMAGE
    assert torch.equal(expert.encode("image", x["image"]), x["image"]["dino.v2"])
    kernel = expert.kernel("image", x["image"], "image", x["image"])
    assert torch.equal(kernel, x["image"]["dino.v2"] @ x["image"]["dino.v2"].T)  # type: ignore[arg-type]
    assert Alone(inputs=INPUTS["several"], parent="image", name="unicom").out_dim == 4
    for arguments, message in (
        ({"inputs": INPUTS["several"], "parent": "image"}, "the name of one"),
        ({"inputs": INPUTS["several"], "parent": "image", "name": "unicon"}, "did you mean 'unicom'"),
        ({"inputs": INPUTS["image"], "parent": "text"}, "needs one"),
        ({"inputs": InputSpec(None, {"dino.v2": 3})}, "no cross-modal"),
        ({"inputs": INPUTS["image"], "name": "dino.v2"}, "experts only"),
    ):
        with pytest.raises(ConfigError, match=message):
            Alone(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["image", "text", "both"])
def test_concatenation_is_the_sum_of_kernels(case: str) -> None:
    x = features()
    method = Concatenation(inputs=INPUTS[case], missing="zeros", weights={"cross_modal": 2.0}).double()
    for a, b in PAIRS:
        z = method.encode(a, x[a]) @ method.encode(b, x[b]).T
        kernel = method.kernel(a, x[a], b, x[b])
        assert kernel is not None
        assert torch.allclose(z, kernel, atol=1e-12)
        psi = [normalize(x[m]["cross_modal"], dim=1) for m in (a, b)]
        if a != b:
            assert torch.allclose(z, 2 * psi[0] @ psi[1].T, atol=1e-12)
    if case == "both":
        with pytest.raises(ConfigError, match="missing=zeros"):
            Concatenation(inputs=INPUTS[case])
    else:
        assert Concatenation(inputs=INPUTS[case]).modalities == (case,)


def test_gram_in_blocks() -> None:
    x, y = features(11), features(7, seed=1)
    method = ExactKrossFuse(inputs=INPUTS["image"], C=C, explicit=False).double()
    whole = method.kernel("image", x["image"], "text", y["text"])
    assert torch.allclose(gram(method, "image", x["image"], "text", y["text"], block_rows=3), whole)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="explicit=False"):
        method.encode("image", x["image"])


@pytest.mark.parametrize("case", ["image", "text", "both"])
def test_a_product_that_is_too_large_is_written_in_the_span_of_the_fit_set(case: str, tmp_path: Path) -> None:
    train, new = features(50), features(9, seed=3)
    whole = ExactKrossFuse(inputs=INPUTS[case], **constants(case)).double()
    span = ExactKrossFuse(inputs=INPUTS[case], max_dim=20, **constants(case)).double()
    for modality in ("image", "text"):
        with pytest.raises(NotFittedError, match="max_dim=20"):
            span.encode(modality, new[modality])
    span.fit(image=train["image"], text=train["text"])
    fused = {m: (span.encode(m, train[m]), span.encode(m, new[m])) for m in ("image", "text")}
    for modality, (fitted, other) in fused.items():
        assert (
            fitted.shape[1]
            == span.out_dim
            == INPUTS[case].cross_modal + sum(len(train[m]["cross_modal"]) for m in span.sketches)
        )  # type: ignore[index]
        for a, b in ((fitted, fitted), (fitted, other)):
            x = train[modality] if b is fitted else new[modality]
            exact = whole.kernel(modality, train[modality], modality, x)
            torch.testing.assert_close(a @ b.T, exact)
    exact = whole.kernel("image", new["image"], "text", new["text"])
    torch.testing.assert_close(fused["image"][1] @ fused["text"][1].T, exact)
    again = load_fusion(save_fusion(span, tmp_path / "fusion.safetensors"))
    assert torch.equal(again.encode("image", new["image"]), fused["image"][1])
    assert again.describe() == span.describe()


def test_any_dimensions_have_an_exact_form() -> None:
    inputs = InputSpec(512, {"dino": 1280})
    x = {"cross_modal": torch.randn(30, 512), "dino": torch.randn(30, 1280)}
    method = ExactKrossFuse(inputs=inputs).fit(image=x)
    z = method.encode("image", x)
    assert z.shape == (30, 542)
    torch.testing.assert_close(z @ z.T, method.kernel("image", x, "image", x), atol=1e-4, rtol=1e-4)
