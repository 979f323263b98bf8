"""Label-free baselines and post-processing against scikit-learn, brute force and their identities."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA as SklearnCCA
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.kernels import GaussianKernel
from krossfuse.fusion.methods import CCA, AverageKernel, PCAConcatenation, PostProcess, RFFConcatenation
from krossfuse.fusion.methods.principal import principal_axes

INPUTS = InputSpec(cross_modal=6, image_experts={"dino": 8})
BOTH = InputSpec(cross_modal=6, image_experts={"dino": 8}, text_experts={"minilm": 5})


def features(n: int, seed: int = 0, **dims: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 3, generator=generator)
    dims = dims or {"cross_modal": 6, "dino": 8}
    return {
        role: shared @ torch.randn(3, d, generator=generator) + 0.3 * torch.randn(n, d, generator=generator)
        for role, d in dims.items()
    }


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True)


def test_pca_is_scikit_learns() -> None:
    train, test = features(40), features(9, seed=1)
    method = PCAConcatenation(inputs=INPUTS, dim=4, weights={"dino": 2.0}).fit(image=train)

    def stack(x: dict[str, torch.Tensor]) -> np.ndarray:
        return torch.cat([unit(x["cross_modal"]), math.sqrt(2) * unit(x["dino"])], 1).double().numpy()

    reference = PCA(4, svd_solver="full").fit(stack(train))
    expected = torch.from_numpy(reference.transform(stack(test))).abs()
    assert torch.allclose(method.encode("image", test).double().abs(), expected, atol=1e-5)
    assert method.modalities == ("image",)
    assert method.deterministic
    assert method.describe()["dim"] == 4


def test_pca_with_zeros_at_full_rank_keeps_every_inner_product() -> None:
    image, text = features(40), features(7, 2, cross_modal=6)
    method = PCAConcatenation(inputs=INPUTS, dim=14, missing="zeros").fit(image=image, text=text)
    x, t = method.encode("image", image), method.encode("text", text)
    assert torch.allclose(x @ t.T, unit(image["cross_modal"]) @ unit(text["cross_modal"]).T, atol=1e-5)
    sums = sum(unit(image[r]) @ unit(image[r]).T for r in image)
    assert torch.allclose(x @ x.T, sums, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(3, 12), d=st.integers(2, 12), centre=st.booleans(), seed=st.integers(0, 99))
def test_principal_axes_by_either_side_are_the_svds(n: int, d: int, centre: bool, seed: int) -> None:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    k = min(n - centre, d, 2)
    mean, axes = principal_axes(lambda: x.split(2), n=n, k=k, centre=centre)
    reference = torch.linalg.svd(x - x.mean(0) if centre else x, full_matrices=False)[2][:k].T
    assert torch.allclose(mean, x.mean(0) if centre else torch.zeros(d, dtype=x.dtype))
    assert torch.allclose(axes.T @ axes, torch.eye(k, dtype=x.dtype), atol=1e-8)
    assert torch.allclose((axes * reference).sum(0).abs(), torch.ones(k, dtype=x.dtype), atol=1e-6)


def test_cca_is_scikit_learns() -> None:
    x = features(400)
    method = CCA(inputs=INPUTS, dim=4, ridge=1e-9).fit(image=x)
    variates = method.encode("image", x)
    reference = SklearnCCA(2, max_iter=5000, tol=1e-12).fit(unit(x["cross_modal"]).numpy(), unit(x["dino"]).numpy())
    sk_x, sk_y = reference.transform(unit(x["cross_modal"]).numpy(), unit(x["dino"]).numpy())
    expected = [np.corrcoef(sk_x[:, i], sk_y[:, i])[0, 1] for i in range(2)]
    assert method.correlations.numpy() == pytest.approx(expected, abs=1e-3)
    # The variates have unit variance, are uncorrelated in their view, and correlate by ρ across views.
    second = variates.T @ variates / len(variates)
    eye, rho = torch.eye(2), torch.diag(method.correlations)
    assert torch.allclose(second, torch.cat([torch.cat([eye, rho], 1), torch.cat([rho, eye], 1)]), atol=1e-3)
    added = CCA(inputs=INPUTS, dim=2, ridge=1e-9, combine="sum").fit(image=x).encode("image", x)
    assert torch.allclose(added, variates[:, :2] + variates[:, 2:], atol=1e-5)
    assert CCA(inputs=INPUTS).out_dim == 12


def test_average_kernel_is_the_weighted_mean_of_kernels() -> None:
    image, text = features(9), features(4, 3, cross_modal=6, minilm=5)
    method = AverageKernel(inputs=BOTH, missing="zeros", weights={"dino": 3.0})
    x, t = method.encode("image", image), method.encode("text", text)
    k_psi, k_gamma = (unit(image[r]) @ unit(image[r]).T for r in ("cross_modal", "dino"))
    assert torch.allclose(x @ x.T, (k_psi + 3 * k_gamma) / 5, atol=1e-6)
    assert torch.allclose(x @ t.T, unit(image["cross_modal"]) @ unit(text["cross_modal"]).T / 5, atol=1e-6)
    for a, fa, ea in (("image", image, x), ("text", text, t)):
        for b, fb, eb in (("image", image, x), ("text", text, t)):
            assert torch.allclose(method.kernel(a, fa, b, fb), ea @ eb.T, atol=1e-6)


def test_average_of_gaussians_approximates_its_exact_kernel() -> None:
    image = features(12)
    kernel = partial(GaussianKernel, features=4096)
    method = AverageKernel(inputs=INPUTS, kernel=kernel, seed=3).fit(image=image)
    x = method.encode("image", image)
    assert x.shape == (12, 8192)
    assert not method.deterministic
    assert torch.allclose(x @ x.T, method.kernel("image", image, "image", image), atol=0.06)


def test_random_features_of_the_concatenation_are_a_product_of_gaussians() -> None:
    image, text = features(12), features(5, 3, cross_modal=6)
    method = RFFConcatenation(inputs=INPUTS, dim=8000, bandwidth=0.8, weights={"dino": 2.0}, missing="zeros", seed=1)
    exact = method.kernel("image", image, "image", image).double().numpy()
    product = rbf_kernel(unit(image["cross_modal"]).double().numpy(), gamma=0.5 / 0.64) * rbf_kernel(
        unit(image["dino"]).double().numpy(), gamma=2 * 0.5 / 0.64
    )
    assert exact == pytest.approx(product, abs=1e-5)
    x, t = method.encode("image", image), method.encode("text", text)
    assert (x @ x.T).double().numpy() == pytest.approx(exact, abs=0.05)
    # The padded expert gives image-text pairs one constant factor.
    cross = torch.exp(-(torch.cdist(unit(image["cross_modal"]), unit(text["cross_modal"])) ** 2) / 1.28)
    assert torch.allclose(method.kernel("image", image, "text", text), cross * math.exp(-2 / 1.28), atol=1e-5)
    assert torch.allclose(x @ t.T, cross * math.exp(-2 / 1.28), atol=0.05)


def test_median_bandwidth_needs_a_fit() -> None:
    method = RFFConcatenation(inputs=INPUTS, dim=10)
    with pytest.raises(NotFittedError, match="median"):
        method.encode("image", features(3))
    method.fit(image=features(30))
    assert method.describe()["bandwidth"] > 0


def test_postprocess_reduces_normalises_and_converts() -> None:
    image, text = features(40), features(11, 2, cross_modal=6)
    inner = partial(AverageKernel, missing="zeros")
    full = inner(inputs=INPUTS)
    method = PostProcess(inputs=INPUTS, method=inner, pca_dim=3, normalise=True, dtype="float16")
    with pytest.raises(NotFittedError, match="3 dimensions"):
        method.encode("image", image)
    method.fit(image=image, text=text)
    x = method.encode("image", image)
    assert x.dtype == torch.float16
    assert x.shape == (40, 3)
    assert method.out_dim == 3
    both = torch.cat([full.encode("image", image), full.encode("text", text)])
    axes = torch.linalg.svd(both, full_matrices=False)[2][:3].T
    expected = unit(full.encode("image", image) @ axes)
    assert torch.allclose(x.float() @ x.float().T, expected @ expected.T, atol=5e-3)
    assert method.kernel("image", image, "image", image) is None
    described = method.describe()
    assert (described["method"], described["dim"], described["fused_dim"]) == ("average_kernel", 3, 14)


def test_postprocess_at_full_rank_changes_no_similarity() -> None:
    image, text = features(40), features(11, 2, cross_modal=6)
    inner = AverageKernel(inputs=INPUTS, missing="zeros")
    method = PostProcess(inputs=INPUTS, method=inner, pca_dim=14).fit(image=image, text=text)
    products = method.encode("image", image) @ method.encode("text", text).T
    assert torch.allclose(products, inner.encode("image", image) @ inner.encode("text", text).T, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (partial(PCAConcatenation, dim=15), DimensionError, "larger than the concatenation"),
        (partial(PCAConcatenation, dim=0), ConfigError, "dim=0"),
        (partial(PCAConcatenation, dim=3, weights={"dinno": 1.0}), ConfigError, "did you mean 'dino'"),
        (partial(PCAConcatenation, dim=3, weights={"dino": -1.0}), ConfigError, r"weights\[dino\]=-1"),
        (partial(PCAConcatenation, dim=3, missing="zero"), ConfigError, "did you mean 'zeros'"),
        (partial(CCA, dim=5), ConfigError, "must be even"),
        (partial(CCA, dim=14), DimensionError, "7 canonical variates"),
        (partial(CCA, dim=4, ridge=0.0), ConfigError, "ridge"),
        (partial(CCA, dim=4, combine="add"), ConfigError, "combine"),
        (partial(RFFConcatenation, dim=7), ConfigError, "even"),
        (partial(PostProcess, method=AverageKernel, pca_dim=99), DimensionError, "larger than the fused"),
        (partial(PostProcess, method=AverageKernel, centre=True), ConfigError, "pca_dim"),
        (partial(PostProcess, method=AverageKernel, dtype="half"), ConfigError, "dtype='half'"),
    ],
)
def test_bad_configurations(make: partial[FusionMethod], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(inputs=INPUTS)


def test_sides_without_an_expert() -> None:
    with pytest.raises(ConfigError, match="needs an expert"):
        PCAConcatenation(inputs=InputSpec(cross_modal=6), dim=2)
    with pytest.raises(ConfigError, match="missing=zeros"):
        PCAConcatenation(inputs=BOTH, dim=2)
    with pytest.raises(ConfigError, match="cannot encode text"):
        AverageKernel(inputs=INPUTS).encode("text", features(3))
    two = InputSpec(image_experts={"a": 4, "b": 3})
    x = features(20, a=4, b=3)
    assert CCA(inputs=two, dim=2).fit(image=x).encode("image", x).shape == (20, 2)
    assert AverageKernel(inputs=two).encode("image", x).shape == (20, 7)


def test_bad_features() -> None:
    x = features(20)
    with pytest.raises(DataError, match=r"more than 2 fit samples|canonical variates"):
        CCA(inputs=INPUTS, dim=4).fit(image=features(2))
    with pytest.raises(DataError, match="5 fit samples"):
        PCAConcatenation(inputs=INPUTS, dim=4).fit(image=features(4))
    with pytest.raises(DataError, match="fit\\(\\) needs image features"):
        PCAConcatenation(inputs=INPUTS, dim=4).fit(text=x)
    with pytest.raises(NotFittedError, match="PCAConcatenation"):
        PCAConcatenation(inputs=INPUTS, dim=4).encode("image", x)
    with pytest.raises(NotFittedError, match="CCA"):
        CCA(inputs=INPUTS, dim=4).encode("image", x)
    zero = {**x, "dino": torch.zeros(20, 8)}
    with pytest.raises(DataError, match=r"'dino'.*zero"):
        AverageKernel(inputs=INPUTS).encode("image", zero)
