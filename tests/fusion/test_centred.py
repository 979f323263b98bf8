"""The centred kernel and the constants that follow from the features: by hand, and what they must not depend on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krossfuse.core.errors import ConfigError, DataError, NotFittedError
from krossfuse.core.seeds import derived_generator
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.choice import Terms
from krossfuse.fusion.io import load_fusion, save_fusion
from krossfuse.fusion.kernels import CentredKernel, CosineKernel
from krossfuse.fusion.methods import ExactKrossFuse, RPKrossFuse
from krossfuse.fusion.selection import equal_variance
from krossfuse.fusion.sketches import SpectralSketch

INPUTS = InputSpec(cross_modal=6, image_experts={"dino": 8})
RULE = {
    "C": "variance",
    "expert_weight": 2.0,
    "expert_kernel": CentredKernel,
    "product_kernel": CentredKernel,
}


def features(n: int, dim: int, *, offset: float = 1.0, tail: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Features in a cone, with tails that get heavier with ``tail``, float64."""
    z = torch.randn(n, dim, generator=derived_generator(seed, "test", str(dim)), dtype=torch.float64)
    return offset + z.sign() * z.abs() ** tail


def preset(dim: int = 6 + 7 * 8, inputs: InputSpec = INPUTS) -> RPKrossFuse:
    """The rule with every direction of the product, so that the embedding is exact."""
    return RPKrossFuse(inputs=inputs, dim=dim, alignment="exact", sketch=SpectralSketch, **RULE).double()


@pytest.mark.parametrize("power", [1.0, 0.7, 0.5])
def test_the_map_by_hand(power: float) -> None:
    x, y = features(50, 5), features(9, 5, seed=1)
    kernel = CentredKernel(5, power=power).double().fit(x)
    unit = [v / v.norm(dim=1, keepdim=True) for v in (x, y)]
    mean = unit[0].mean(0)
    powered = [(u - mean).sign() * (u - mean).abs() ** power for u in unit]
    powered = [s / s.norm(dim=1, keepdim=True) for s in powered]
    centred = powered[1] - powered[0].mean(0)
    expected = centred / centred.norm(dim=1, keepdim=True)
    torch.testing.assert_close(kernel(y), expected)
    torch.testing.assert_close(kernel.kernel(y, x), kernel(y) @ kernel(x).T)
    assert kernel(y).norm(dim=1).sub(1).abs().max() < 1e-12


@pytest.mark.parametrize(("tail", "low", "high"), [(1.0, 0.95, 1.0), (1.4, 0.55, 0.95), (3.0, 0.5, 0.5)])
def test_the_power_follows_the_fourth_moment(tail: float, low: float, high: float) -> None:
    kernel = CentredKernel(40).double().fit(features(4000, 40, offset=0.0, tail=tail))
    assert low <= float(kernel.power) <= high


def test_dead_coordinates_do_not_choose_the_power() -> None:
    x = features(400, 6)
    dead = torch.full((400, 30), 0.5, dtype=torch.float64) * x.norm(dim=1, keepdim=True)
    dead[0] *= 1 + 1e-7  # a coordinate that one row alone moves has an enormous fourth moment
    wide = torch.cat([x, dead], 1)
    assert float(CentredKernel(36).double().fit(wide).power) == pytest.approx(
        float(CentredKernel(6).double().fit(x).power), abs=0.1
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.sampled_from([1.0, 2.0]))
def test_what_the_rule_must_not_depend_on(seed: int, scale: float, tail: float) -> None:
    x = {
        "cross_modal": features(60, 6, tail=tail, seed=seed),
        "dino": features(60, 8, offset=0.3, tail=tail, seed=seed + 1),
    }
    reference = preset().fit(image=x)
    kernel = reference.kernel("image", x, "image", x)
    assert kernel is not None
    generator = torch.Generator().manual_seed(seed)
    rows = scale * (0.1 + torch.rand(60, 1, generator=generator, dtype=torch.float64))
    columns = torch.randperm(8, generator=generator)
    signs = torch.randint(0, 2, (8,), generator=generator) * 2.0 - 1
    order = torch.randperm(60, generator=generator)
    changed = {
        "scaled": {"cross_modal": x["cross_modal"] * rows, "dino": x["dino"] * scale},
        "permuted, signs": {**x, "dino": x["dino"][:, columns] * signs},
    }
    for name, other in changed.items():
        method = preset().fit(image=other)
        assert pytest.approx(reference.C) == method.C, name
        torch.testing.assert_close(method.kernel("image", other, "image", other), kernel, msg=name)
    for name, fit_on in {
        "reordered": {role: v[order] for role, v in x.items()},
        "repeated": {role: v.repeat(2, 1) for role, v in x.items()},
    }.items():
        method = preset().fit(image=fit_on)
        if name == "reordered":
            assert pytest.approx(reference.C) == method.C, name
        torch.testing.assert_close(
            method.kernel("image", x, "image", x), kernel, msg=name, rtol=0.1 if name == "repeated" else 1e-7, atol=0.1
        )


def test_no_rotation_changes_it_where_the_power_is_one() -> None:
    x = features(200, 6)
    rotation = torch.linalg.qr(features(6, 6, offset=0.0, seed=3))[0]
    kernels = [CentredKernel(6, power=1.0).double().fit(v).kernel(v, v) for v in (x, x @ rotation)]
    torch.testing.assert_close(*kernels)


def test_the_kernel_is_the_sum_that_is_written_down() -> None:
    x = {"cross_modal": features(70, 6), "dino": features(70, 8, tail=2.0)}
    text = {"cross_modal": features(5, 6, seed=9)}
    method = preset().fit(image=x)
    p = CentredKernel(6).double().fit(x["cross_modal"]).kernel(x["cross_modal"], x["cross_modal"])
    g = CentredKernel(8).double().fit(x["dino"]).kernel(x["dino"], x["dino"])
    psi = CosineKernel(6)
    k = psi.kernel(x["cross_modal"], x["cross_modal"])
    variance = [float(m.diagonal().mean() - (m.sum() - m.trace()) / (70 * 69)) for m in (g, k)]
    assert pytest.approx(2 * variance[0] / variance[1]) == method.C
    image, texts = method.encode("image", x), method.encode("text", text)
    torch.testing.assert_close(image @ image.T, method.C * k + (2 + p) * g)
    torch.testing.assert_close(method.kernel("image", x, "image", x), method.C * k + (2 + p) * g)
    torch.testing.assert_close(image @ texts.T, method.C * psi.kernel(x["cross_modal"], text["cross_modal"]))
    exact = ExactKrossFuse(inputs=INPUTS, **RULE).double().fit(image=x)
    torch.testing.assert_close(exact.encode("image", x) @ exact.encode("image", x).T, image @ image.T)


def test_both_sides_have_their_own_constants_and_means(tmp_path: Path) -> None:
    inputs = InputSpec(cross_modal=6, image_experts={"dino": 8}, text_experts={"e5": 7})
    image = {"cross_modal": features(70, 6), "dino": features(70, 8)}
    text = {"cross_modal": features(80, 6, offset=0.2, seed=4), "e5": features(80, 7)}
    method = preset(6 + 2 * 40, inputs).fit(image=image, text=text)
    alone = preset(inputs=InputSpec(cross_modal=6, image_experts={"dino": 8})).fit(image=image)
    assert method.constant("image") == pytest.approx(alone.C)
    assert method.constant("text") != pytest.approx(alone.C, rel=0.05)
    a, b = method.encode("image", image), method.encode("text", text)
    k = CosineKernel(6).kernel(image["cross_modal"], text["cross_modal"])
    torch.testing.assert_close(a @ b.T, method.constant("image") * method.constant("text") * k)
    again = load_fusion(save_fusion(method, tmp_path / "fusion.safetensors"))
    assert torch.equal(again.encode("text", text), b)
    assert again.describe() == method.describe()
    given = RPKrossFuse(inputs=inputs, dim=86, alignment="exact", sketch=SpectralSketch, C_text=3.0, **RULE).double()
    for _ in range(2):  # fitted again, the text's constant is still the one that was given
        assert given.fit(image=image, text=text).constant("text") == 3.0


def test_a_row_in_the_direction_of_the_mean_is_similar_to_nothing() -> None:
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0], [3.0, 0.0], [-3.0, 0.0]])
    kernel = CentredKernel(2, power=1.0).fit(x)
    kernel.mean.copy_(torch.tensor([1.0, 0.0]))
    kernel.centre.zero_()
    assert torch.equal(kernel(torch.tensor([[2.0, 0.0]])), torch.zeros(1, 2))


def test_equal_variance_is_label_free_and_refuses_constants() -> None:
    eye, one = torch.eye(4), torch.ones(4, 4)
    assert equal_variance(Terms(0.5 * (eye + one), eye, eye), 2.0) == pytest.approx(4.0)
    with pytest.raises(DataError, match="constant over the training samples"):
        equal_variance(Terms(one, eye, eye), 2.0)


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"power=2.0"):
        CentredKernel(4, power=2.0)
    with pytest.raises(NotFittedError, match="no mean yet"):
        CentredKernel(4)(torch.ones(2, 4))
    with pytest.raises(DataError, match="two rows"):
        CentredKernel(4).fit(torch.ones(1, 4))
    with pytest.raises(DataError, match="all 3 rows have one direction"):
        CentredKernel(4).fit(torch.ones(3, 4))
    with pytest.raises(ConfigError, match="expert_weight=0 leaves it out"):
        RPKrossFuse(inputs=INPUTS, dim=40, alignment="exact", C="variance")
    for alignment in ("published", "offset"):
        with pytest.raises(ConfigError, match="product_kernel needs alignment='exact'"):
            RPKrossFuse(inputs=INPUTS, dim=40, alignment=alignment, product_kernel=CentredKernel)
    with pytest.raises(ConfigError, match="chosen together with C='cv'"):
        RPKrossFuse(inputs=INPUTS, dim=40, alignment="exact", expert_weight="cv")
    with pytest.raises(DataError, match="needs image features to fit on"):
        RPKrossFuse(inputs=INPUTS, dim=40, alignment="exact", product_kernel=CentredKernel).fit()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_precision_of_the_method_is_kept(dtype: torch.dtype) -> None:
    x = {"cross_modal": features(70, 6), "dino": features(70, 8)}
    method = preset().fit(image=x)
    reference = method.encode("image", x)
    z = method.to(dtype).encode("image", {role: v.to(dtype) for role, v in x.items()})
    assert z.dtype == dtype
    torch.testing.assert_close(z.double(), reference, atol=float(50 * torch.finfo(dtype).eps), rtol=0)
