from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process.kernels import Matern, RationalQuadratic
from sklearn.kernel_approximation import PolynomialCountSketch, RBFSampler
from sklearn.metrics import pairwise
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError
from krossfuse.fusion.kernels import (
    CauchyKernel,
    CosineKernel,
    GaussianKernel,
    Kernel,
    LaplaceKernel,
    LinearKernel,
    MaternKernel,
    PolynomialKernel,
    ShiftInvariantKernel,
    paired_kernels,
)

D = 6
EXACT = [
    LinearKernel(D),
    CosineKernel(D),
    PolynomialKernel(D, degree=3, gamma=0.5, coef0=0.7),
    PolynomialKernel(D, coef0=0),
]
FOURIER: list[tuple[type[ShiftInvariantKernel], dict[str, Any]]] = [
    (GaussianKernel, {}),
    (LaplaceKernel, {}),
    (CauchyKernel, {}),
    (MaternKernel, {"nu": 0.5}),
    (MaternKernel, {"nu": 1.5}),
    (MaternKernel, {"nu": 2.5}),
]


def draw(n: int, d: int = D, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_exact_kernels_agree_with_scikit_learn() -> None:
    x, y = draw(7), draw(5, seed=1)
    sigma = 1.7
    references = [
        (LinearKernel(D), pairwise.linear_kernel(x, y)),
        (CosineKernel(D), pairwise.cosine_similarity(x, y)),
        (PolynomialKernel(D, degree=3, gamma=0.5, coef0=0.7), pairwise.polynomial_kernel(x, y, 3, 0.5, 0.7)),
        (GaussianKernel(D, bandwidth=sigma), pairwise.rbf_kernel(x, y, gamma=0.5 / sigma**2)),
        (LaplaceKernel(D, bandwidth=sigma), pairwise.laplacian_kernel(x, y, gamma=1 / sigma)),
        (
            CauchyKernel(D, bandwidth=sigma),
            RationalQuadratic(alpha=1.0, length_scale=sigma / math.sqrt(2))(x.numpy(), y.numpy()),
        ),
        *(
            (MaternKernel(D, nu=nu, bandwidth=sigma), Matern(sigma, nu=nu)(x.numpy(), y.numpy()))
            for nu in (0.5, 1.5, 2.5)
        ),
    ]
    for kernel, reference in references:
        values = kernel.double().kernel(x, y)
        # Bandwidths are float32 numbers: 1.7 is not one.
        assert torch.allclose(values, torch.as_tensor(reference), atol=1e-6), kernel.name


@pytest.mark.parametrize("kernel", EXACT, ids=lambda k: k.name)
def test_exact_maps_have_the_exact_kernel(kernel: Kernel) -> None:
    x, y = draw(7), draw(5, seed=1)
    assert kernel(x).shape == (7, kernel.out_dim)
    assert torch.allclose(kernel(x) @ kernel(y).T, kernel.kernel(x, y), atol=1e-12)


@pytest.mark.parametrize(("cls", "options"), FOURIER)
@pytest.mark.parametrize("orthogonal", [False, True])
def test_fourier_features_are_unbiased(
    cls: type[ShiftInvariantKernel], options: dict[str, Any], orthogonal: bool
) -> None:
    if orthogonal and not cls.rotation_invariant:
        pytest.skip("not rotation-invariant")
    x = draw(4)
    made = [cls(D, bandwidth=2.0, features=48, orthogonal=orthogonal, seed=s, **options).double() for s in range(300)]
    values = torch.stack([kernel(x) @ kernel(x).T for kernel in made])
    exact = made[0].kernel(x, x)
    assert torch.allclose(values.diagonal(dim1=1, dim2=2), torch.ones(300, 4).double(), atol=1e-12)
    off = ~torch.eye(4, dtype=torch.bool)
    z = (values.mean(0) - exact)[off] / (values.std(0)[off] / math.sqrt(300))
    assert z.abs().max() < 4.5


@pytest.mark.parametrize(("cls", "options"), FOURIER)
def test_variance_of_a_frequency_is_the_closed_form(cls: type[ShiftInvariantKernel], options: dict[str, Any]) -> None:
    n = 200_000
    kernel = cls(D, bandwidth=1.0, features=2 * n, seed=3, **options).double()
    delta = draw(1) * 0.6
    one = torch.cos(kernel.directions @ delta.T).flatten()  # a frequency's cos·cos + sin·sin
    k, k2 = (float(kernel.kernel(c * delta, torch.zeros(1, D).double())) for c in (1.0, 2.0))
    assert abs(float(one.mean()) - k) < 4.5 * float(one.std()) / math.sqrt(n)
    assert float(one.var()) == pytest.approx((1 + k2 - 2 * k**2) / 2, rel=0.03)


def test_orthogonal_frequencies() -> None:
    kernel = GaussianKernel(D, bandwidth=1.0, features=60, orthogonal=True, seed=1).double()
    for block in kernel.directions.split(D):
        products = block @ block.T
        assert torch.allclose(products - products.diag().diag(), torch.zeros(()).double(), atol=1e-5)
    norms = GaussianKernel(D, bandwidth=1.0, features=40_000, orthogonal=True).directions.square().sum(1)
    assert float(norms.mean()) == pytest.approx(D, rel=0.03)  # χ² of D degrees
    assert float(norms.var()) == pytest.approx(2 * D, rel=0.1)


def test_fourier_error_against_scikit_learns_sampler() -> None:
    x = draw(30)
    exact = pairwise.rbf_kernel(x, gamma=0.125)

    def error(maps: list[Any]) -> float:
        return sum(float(((z @ z.T) - torch.as_tensor(exact)).square().mean()) for z in maps) / len(maps)

    sampler = [
        torch.as_tensor(RBFSampler(gamma=0.125, n_components=64, random_state=s).fit_transform(x)) for s in range(20)
    ]
    ours = {o: [GaussianKernel(D, bandwidth=2.0, features=64, orthogonal=o, seed=s).double()(x) for s in range(20)]
            for o in (False, True)}  # fmt: skip
    assert error(ours[True]) < error(ours[False]) < error(sampler)


@given(st.floats(0.3, 4), st.floats(0.3, 4), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_product_of_gaussians_is_one_gaussian(s1: float, s2: float, seed: int) -> None:
    x, y = draw(6, 3, seed), draw(6, 4, seed + 1)
    one, two = GaussianKernel(3, bandwidth=s1).double(), GaussianKernel(4, bandwidth=s2).double()
    joint = torch.cat([x / one.bandwidth, y / two.bandwidth], 1)
    product = one.kernel(x, x) * two.kernel(y, y)
    assert torch.allclose(GaussianKernel(7, bandwidth=1.0).double().kernel(joint, joint), product, atol=1e-14)


@given(st.integers(0, 1000), st.sampled_from([GaussianKernel, LaplaceKernel, CauchyKernel, MaternKernel]))
@settings(max_examples=25, deadline=None)
def test_exact_shift_invariant_kernels(seed: int, cls: type[ShiftInvariantKernel]) -> None:
    kernel, x, shift = cls(D, bandwidth=1.3).double(), draw(8, seed=seed), draw(1, seed=seed + 1)
    k = kernel.kernel(x, x)
    assert torch.allclose(k.diagonal(), torch.ones(8).double(), atol=1e-7)
    assert torch.allclose(k, k.T)
    assert torch.allclose(kernel.kernel(x + shift, x + shift), k, atol=1e-6)
    assert torch.linalg.eigvalsh(k).min() > -1e-6


def test_polynomial_sketch_is_scikit_learns_with_the_same_hashes() -> None:
    x = draw(9)
    reference = PolynomialCountSketch(degree=3, gamma=0.5, coef0=0.7, n_components=50, random_state=0).fit(x)
    kernel = PolynomialKernel(D, degree=3, gamma=0.5, coef0=0.7, features=50).double()
    assert kernel.sketch is not None
    for i in range(3):
        kernel.sketch.get_buffer(f"buckets_{i}").copy_(torch.as_tensor(reference.indexHash_[i]))
        kernel.sketch.get_buffer(f"signs_{i}").copy_(torch.as_tensor(reference.bitHash_[i]).unsqueeze(1))
    assert torch.allclose(kernel(x), torch.as_tensor(reference.transform(x)), atol=1e-10)


def test_median_heuristic() -> None:
    x = draw(50)
    for cls, p in ((GaussianKernel, 2.0), (LaplaceKernel, 1.0)):
        kernel = cls(D)
        assert kernel.needs_fit
        with pytest.raises(NotFittedError, match="bandwidth"):
            kernel(x.float())
        kernel.fit(x)
        upper = torch.cdist(x, x, p=p)[torch.triu_indices(50, 50, 1).unbind()]
        assert float(kernel.bandwidth) == pytest.approx(float(upper.median()), rel=1e-5)
        again = cls(D)
        again.load_state_dict(kernel.state_dict())
        assert torch.equal(again(x.float()), kernel(x.float()))
    with pytest.raises(DataError, match="two rows"):
        GaussianKernel(D).fit(x[:1])
    with pytest.raises(DataError, match="zero"):
        GaussianKernel(D).fit(torch.ones(5, D))


def test_normalize_is_the_kernel_of_directions() -> None:
    x = draw(5)
    scaled = x * torch.arange(1, 6).unsqueeze(1)
    for kernel in (GaussianKernel(D, bandwidth=1.0, normalize=True), PolynomialKernel(D, normalize=True)):
        assert torch.allclose(kernel.double()(x), kernel(scaled))
        assert torch.allclose(kernel.kernel(x, x), kernel.kernel(scaled, x))


@pytest.mark.parametrize("cls", [GaussianKernel, LaplaceKernel, CauchyKernel, MaternKernel])
def test_same_seed_same_bits(cls: type[ShiftInvariantKernel]) -> None:
    for orthogonal in {False, cls.rotation_invariant}:
        one, two, other = (cls(D, bandwidth=1.0, orthogonal=orthogonal, seed=s).directions for s in (0, 0, 1))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


def test_gradients() -> None:
    x = draw(3).requires_grad_()
    for kernel in (CosineKernel(D), GaussianKernel(D, bandwidth=1.0, features=8), PolynomialKernel(D, features=16)):
        assert torch.autograd.gradcheck(kernel.double(), (x,))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearKernel(0),
        lambda: GaussianKernel(D, bandwidth=-1.0),
        lambda: GaussianKernel(D, bandwidth="mean"),
        lambda: GaussianKernel(D, features=7),
        lambda: LaplaceKernel(D, orthogonal=True),
        lambda: MaternKernel(D, nu=1.0),
        lambda: PolynomialKernel(D, coef0=-1.0),
        lambda: PolynomialKernel(D, degree=0),
        lambda: PolynomialKernel(D, degree=1, features=50),
    ],
)
def test_impossible_configurations(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_the_exact_polynomial_map_has_a_limit() -> None:
    with pytest.raises(DimensionError, match="TensorSketch"):
        PolynomialKernel(512, degree=2)


@pytest.mark.parametrize("kernel", [*EXACT, GaussianKernel(D, bandwidth=1.0)], ids=lambda k: k.name)
def test_bad_features(kernel: Kernel) -> None:
    x = draw(4).to(next(kernel.buffers(), torch.empty(0)).dtype)
    for value in (math.nan, math.inf):
        bad = x.clone()
        bad[2, 1] = value
        with pytest.raises(DataError, match="NaN or infinite.*row 2"):
            kernel(bad)
        with pytest.raises(DataError, match="NaN or infinite"):
            kernel.kernel(x, bad)
    with pytest.raises(DataError, match=r"\(n, 6\)"):
        kernel(x[:, :5])
    assert kernel(x[:0]).shape == (0, kernel.out_dim)


def test_a_zero_vector_has_no_direction() -> None:
    x = draw(4)
    x[1] = 0
    with pytest.raises(DataError, match="zero vectors.*1 of 4 rows.*row 1"):
        CosineKernel(D)(x)


def test_paired_kernels() -> None:
    image, text = torch.rand(3, 4), torch.rand(3, 4)
    kernels = paired_kernels(image, text)
    assert torch.equal(kernels["sum"], image + text)
    assert torch.equal(kernels["product"], image * text)
    with pytest.raises(DataError, match="same items"):
        paired_kernels(image, text[:2])
