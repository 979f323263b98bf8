from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_approximation import Nystroem, PolynomialCountSketch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError
from krossfuse.fusion.kernels import GaussianKernel
from krossfuse.fusion.sketches import (
    BlockOrthogonalSketch,
    ComplexToRealSketch,
    ComplexToRealSRHTSketch,
    DenseSketch,
    GaussianSketch,
    JointFourierSketch,
    KPoMRPSketch,
    KroneckerSketch,
    NystromSketch,
    RademacherSketch,
    RandomSketch,
    Sketch,
    SpectralSketch,
    SRHTSketch,
    TensorSketch,
    UniformSketch,
    largest_products,
)

RANDOM: list[type[RandomSketch]] = [
    UniformSketch,
    GaussianSketch,
    RademacherSketch,
    BlockOrthogonalSketch,
    SRHTSketch,
    ComplexToRealSketch,
    ComplexToRealSRHTSketch,
    TensorSketch,
    KPoMRPSketch,
]
KURTOSIS = {UniformSketch: 1.8, GaussianSketch: 3.0, RademacherSketch: 1.0}


def draw(n: int, dims: Sequence[int], seed: int = 0, unit: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # A shared direction, so that similarities are far from zero.
    rows = [torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.5 for d in dims]
    return [torch.nn.functional.normalize(x, dim=1) if unit else x for x in rows]


def product_kernel(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    return torch.stack([a @ b.T for a, b in zip(x, y, strict=True)]).prod(0)


def z_scores(values: Tensor, exact: Tensor) -> Tensor:
    return (values.mean(0) - exact) / (values.std(0) / math.sqrt(len(values))).clamp_min(1e-12)


@pytest.mark.parametrize("cls", RANDOM, ids=lambda c: c.name)
@pytest.mark.parametrize(("dims", "out_dim"), [((5, 18), 21), ((40, 3), 30), ((4, 3, 6), 16)])
def test_random_sketches_are_unbiased(cls: type[RandomSketch], dims: tuple[int, ...], out_dim: int) -> None:
    x = draw(4, dims)
    maps = [cls(dims, out_dim, seed=seed).double()(x) for seed in range(300)]
    assert maps[0].shape == (4, out_dim)
    z = z_scores(torch.stack([m @ m.T for m in maps]), product_kernel(x, x))
    assert z.abs().max() < 4.5
    assert torch.stack([m.abs().sum() for m in maps]).min() > 0


@pytest.mark.parametrize("cls", RANDOM, ids=lambda c: c.name)
def test_offsets_leave_an_unbiased_sketch_of_the_rest(cls: type[RandomSketch]) -> None:
    x, out_dim = draw(4, (5, 7)), 25
    values = []
    for seed in range(300):
        sketch = cls((5, 7), out_dim, seed=seed).double()
        unit = sketch.unit(1).double()
        image = sketch.finish(sketch.multiply([sketch.project(0, x[0]), sketch.project(1, x[1], unit)]))
        text = sketch.finish(sketch.multiply([sketch.project(0, x[0]), unit]))
        values.append(torch.stack([image @ image.T, image @ text.T, text @ text.T]))
    cross = x[0] @ x[0].T
    exact = torch.stack([cross * (1 + x[1] @ x[1].T), cross, cross])
    assert z_scores(torch.stack(values), exact).abs().max() < 4.5


@pytest.mark.parametrize("cls", RANDOM, ids=lambda c: c.name)
def test_folded_symmetrisation_equals_the_unfolded(cls: type[RandomSketch]) -> None:
    x, y = draw(6, (5, 7))
    constant_c = 0.3
    folded, unfolded = cls((5, 14), 33, seed=2), cls((5, 14), 33, seed=2).double()
    ones = folded.mirror(1).double() * math.sqrt(constant_c / 14)
    folded = folded.double()
    level = math.sqrt(constant_c / 7)
    wide = torch.cat([level + y, level - y], 1) / math.sqrt(2)
    constant = torch.full((6, 14), math.sqrt(constant_c / 14)).double()
    image = folded.finish(folded.multiply([folded.project(0, x), folded.project(1, y, ones)]))
    text = folded.finish(folded.multiply([folded.project(0, x), ones]))
    assert torch.allclose(image, unfolded([x, wide]), atol=1e-6)
    assert torch.allclose(text, unfolded([x, constant]), atol=1e-6)


@pytest.mark.parametrize("cls", list(KURTOSIS), ids=lambda c: c.name)
def test_variance_of_iid_entries_is_the_closed_form(cls: type[DenseSketch]) -> None:
    n, x, y = 400_000, draw(1, (5, 7)), draw(1, (5, 7), seed=1)
    sketch = cls((5, 7), n, seed=3).double()
    factors, expected = [], []
    for i, scale in ((0, math.sqrt(n)), (1, 1.0)):
        k = float(x[i] @ y[i].T)
        expected.append(1 + 2 * k**2 + (KURTOSIS[cls] - 3) * float((x[i] ** 2 * y[i] ** 2).sum()))
        factors.append(scale**2 * (sketch.project(i, x[i]) * sketch.project(i, y[i])).flatten())
        assert float(factors[i].square().mean()) == pytest.approx(expected[i], rel=0.03)
    one = factors[0] * factors[1]  # l times a coordinate of the sketch's inner product
    k = float(product_kernel(x, y))
    assert float(one.var()) == pytest.approx(math.prod(expected) - k**2, rel=0.06)


def test_variance_of_complex_to_real_is_the_closed_form() -> None:
    n, x, y = 400_000, draw(1, (5, 7)), draw(1, (5, 7), seed=1)
    sketch = ComplexToRealSketch((5, 7), n, seed=3).double()
    pairs = (sketch(x) * sketch(y)).view(-1, 2).sum(1) * (n / 2)  # Re(z(x)·conj z(y)) of each complex coordinate
    absolute, square = 1.0, 1.0
    for a, b in zip(x, y, strict=True):
        k, overlap = float(a @ b.T), float((a**2 * b**2).sum())
        absolute *= 1 + k**2 - overlap
        square *= 2 * k**2 - overlap
    k = float(product_kernel(x, y))
    assert float(pairs.var()) == pytest.approx((absolute + square) / 2 - k**2, rel=0.03)


def errors_of(dims: tuple[int, ...], out_dim: int, seeds: int) -> dict[type[RandomSketch], float]:
    """Mean squared off-diagonal kernel error of each sketch over its mean for the uniform one."""
    x = draw(40, dims)
    exact, off = product_kernel(x, x), ~torch.eye(40, dtype=torch.bool)

    def error(cls: type[RandomSketch]) -> float:
        maps = [cls(dims, out_dim, seed=s).double()(x) for s in range(seeds)]
        return sum(float((m @ m.T - exact)[off].square().mean()) for m in maps)

    uniform = error(UniformSketch)
    return {cls: error(cls) / uniform for cls in RANDOM if cls is not UniformSketch}


def test_lower_variance_at_equal_dimension() -> None:
    errors = errors_of((96, 128), 400, 24)
    assert errors.pop(GaussianSketch) > 0.95
    assert errors.pop(RademacherSketch) < 1.05
    assert errors.pop(KPoMRPSketch) > 2
    for cls, value in errors.items():
        assert value < 0.99, cls.name


@pytest.mark.parametrize(("dims", "out_dim"), [((16, 24), 128), ((8, 8), 60), ((100, 40), 900)])
def test_hadamard_groups_do_not_inflate_the_error_of_small_factors(dims: tuple[int, ...], out_dim: int) -> None:
    errors = errors_of(dims, out_dim, 40)
    assert errors[SRHTSketch] < 1.1
    # With a single entry a group, a row's complex phase is common to all of it, and worth no more than a sign.
    assert min(dims) == 8 or errors[ComplexToRealSRHTSketch] < 1.1


@pytest.mark.parametrize("cls", [SRHTSketch, ComplexToRealSRHTSketch])
def test_hadamard_rows(cls: type[SRHTSketch]) -> None:
    sketch = cls((64, 64), 24, seed=1).double()
    assert sketch.get_buffer("signs_1").shape[0] == 1
    projected = sketch.project(1, torch.eye(64).double()).transpose(1, 2)  # (A, columns, 64)
    rows = projected.flatten(0, 1)
    if cls is ComplexToRealSRHTSketch:
        rows = torch.complex(rows[0::2], rows[1::2])
    assert torch.allclose(rows.abs(), torch.ones(()).double())
    # One set of signs, so all rows are orthogonal.
    assert torch.allclose(rows @ rows.conj().T, 64 * torch.eye(len(rows)).to(rows.dtype), atol=1e-9)


def test_block_orthogonal_rows() -> None:
    sketch = BlockOrthogonalSketch((6, 5), 20, seed=1).double()
    rows = sketch.project(1, torch.eye(5).double()).T
    for block in rows.split(5):
        assert torch.allclose(block @ block.T, 5 * torch.eye(len(block)).double(), atol=1e-5)


def test_tensor_sketch_is_scikit_learns_with_the_same_hashes() -> None:
    x = draw(9, (6,), unit=False)[0]
    reference = PolynomialCountSketch(degree=2, coef0=0, n_components=20, random_state=0).fit(x)
    sketch = TensorSketch((6, 6), 20).double()
    for i in range(2):
        sketch.get_buffer(f"buckets_{i}").copy_(torch.as_tensor(reference.indexHash_[i]))
        sketch.get_buffer(f"signs_{i}").copy_(torch.as_tensor(reference.bitHash_[i]).unsqueeze(1))
    assert torch.allclose(sketch([x, x]), torch.as_tensor(reference.transform(x)), atol=1e-10)


def test_kpomrp_is_the_kronecker_product_of_projections() -> None:
    x = draw(3, (5, 7))
    for distribution in ("uniform", "gaussian", "rademacher"):
        sketch = KPoMRPSketch((5, 7), 16, distribution=distribution, seed=1).double()
        a, b = (sketch.project(i, x[i]) for i in range(2))
        assert a.shape == (3, 4)
        assert torch.allclose(sketch(x), torch.stack([torch.kron(p, q) for p, q in zip(a, b, strict=True)]))


def test_kronecker_has_no_error() -> None:
    x = draw(4, (2, 3, 4))
    z = KroneckerSketch((2, 3, 4), 24)(x)
    assert torch.allclose(z @ z.T, product_kernel(x, x), atol=1e-14)
    with pytest.raises(DimensionError, match="24, not 23"):
        KroneckerSketch((2, 3, 4), 23)


def test_joint_fourier_is_the_cosine_and_sine_of_the_summed_phases() -> None:
    x = draw(5, (3, 4), unit=False)
    kernels = [GaussianKernel(d, bandwidth=1.0, features=40, seed=s).double() for s, d in enumerate((3, 4))]
    phase = sum(a @ k.directions.T for a, k in zip(x, kernels, strict=True))
    assert isinstance(phase, Tensor)
    direct = torch.cat([phase.cos(), phase.sin()], 1) / math.sqrt(20)
    joint = JointFourierSketch((40, 40), 40)([k(a) for k, a in zip(kernels, x, strict=True)])
    assert torch.allclose(joint, direct, atol=1e-12)
    with pytest.raises(DimensionError, match="kernel.features"):
        JointFourierSketch((40, 42), 40)


@given(st.lists(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), min_size=2, max_size=3), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_largest_products_by_brute_force(lists: list[list[float]], count: int) -> None:
    values = [torch.tensor(v, dtype=torch.float64).sort(descending=True).values for v in lists]
    every = sorted((float(np.prod(v)) for v in itertools.product(*(v.tolist() for v in values))), reverse=True)
    count = min(count, len(every))
    chosen = largest_products(values, count)
    assert len({tuple(row) for row in chosen.tolist()}) == count
    found = torch.stack([v[i] for v, i in zip(values, chosen.T, strict=True)]).prod(0)
    assert np.allclose(sorted(found.tolist(), reverse=True), every[:count])


@pytest.mark.parametrize("dims", [(4, 5), (3, 4, 2)])
def test_spectral_is_the_best_of_the_product_directions(dims: tuple[int, ...]) -> None:
    train, x = draw(60, dims, unit=False), draw(8, dims, seed=1, unit=False)
    svd = [torch.linalg.svd(f, full_matrices=False) for f in train]
    energy = torch.tensor([math.prod(v) for v in itertools.product(*(s.S.tolist() for s in svd))])
    basis = svd[0].Vh
    for s in svd[1:]:
        basis = torch.kron(basis, s.Vh)
    wide = KroneckerSketch(dims, math.prod(dims))(x)
    previous = math.inf
    for out_dim in (1, 5, 12, math.prod(dims)):
        sketch = SpectralSketch(dims, out_dim).double().fit(train)
        kept = basis[energy.argsort(descending=True)[:out_dim]]
        assert torch.allclose(sketch(x) @ sketch(x).T, wide @ kept.T @ kept @ wide.T, atol=1e-9)
        error = float((sketch(x) @ sketch(x).T - product_kernel(x, x)).diagonal().abs().max())
        assert error <= previous
        previous = error
    assert previous < 1e-9  # every direction: no error


def test_spectral_does_not_depend_on_seed_order_or_blocks() -> None:
    train, x = draw(50, (4, 5)), draw(8, (4, 5), seed=1)
    order = torch.randperm(50)
    one = SpectralSketch((4, 5), 7, seed=0).double().fit(train)
    two = SpectralSketch((4, 5), 7, seed=1).double().fit([f[order] for f in train])
    three = SpectralSketch((4, 5), 7).double().fit_blocks(zip(*(f.split(13) for f in train), strict=True))
    assert torch.allclose(one(x), two(x), atol=1e-9)
    assert torch.allclose(one(x), three(x), atol=1e-9)


def test_spectral_limits() -> None:
    with pytest.raises(DimensionError, match="21 components are more than the 20"):
        SpectralSketch((4, 5), 21)
    with pytest.raises(DataError, match="3 fit samples span 3 × 3 = 9"):
        SpectralSketch((4, 5), 10).double().fit(draw(3, (4, 5)))
    with pytest.raises(NotFittedError, match="spectral"):
        SpectralSketch((4, 5), 10)(draw(3, (4, 5)))


def test_nystrom_agrees_with_scikit_learn() -> None:
    train, x = draw(40, (4, 5)), draw(8, (4, 5), seed=1)
    sketch = NystromSketch((4, 5), 12, seed=3).double().fit(train)
    landmarks = [sketch.get_buffer(f"landmarks_{i}") for i in range(2)]

    def callable_kernel(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
        return float((a[:4] @ b[:4]) * (a[4:] @ b[4:]))

    reference = Nystroem(callable_kernel, n_components=12).fit(torch.cat(landmarks, 1).numpy())
    z = torch.as_tensor(reference.transform(torch.cat(x, 1).numpy()))
    assert torch.allclose(sketch(x) @ sketch(x).T, z @ z.T, atol=1e-8)
    assert torch.allclose(sketch(landmarks) @ sketch(landmarks).T, product_kernel(landmarks, landmarks), atol=1e-8)
    rows = {tuple(row) for row in train[0].tolist()}
    assert len({tuple(row) for row in landmarks[0].tolist()} & rows) == 12


def test_nystrom_landmarks() -> None:
    train, x = draw(40, (4, 5)), draw(8, (4, 5), seed=1)
    exact = product_kernel(x, x)
    few, many = (NystromSketch((4, 5), 12, landmarks=n).double().fit(train)(x) for n in (None, 40))
    assert (many @ many.T - exact).norm() < (few @ few.T - exact).norm()
    all_of_them = NystromSketch((4, 5), 20, landmarks=40).double().fit(train)(x)
    assert torch.allclose(all_of_them @ all_of_them.T, exact, atol=1e-8)  # they span the product space
    one = NystromSketch((4, 5), 12, seed=1).double().fit(train)
    two = NystromSketch((4, 5), 12, seed=1).double().fit_blocks(zip(*(f.split(13) for f in train), strict=True))
    assert torch.allclose(one(x), two(x), atol=1e-9)
    with pytest.raises(DataError, match="10 fit samples are fewer than the 12 landmarks"):
        NystromSketch((4, 5), 12).double().fit([f[:10] for f in train])
    with pytest.raises(ConfigError, match="fewer than the 12 components"):
        NystromSketch((4, 5), 12, landmarks=3)
    with pytest.raises(NotFittedError, match="nystrom"):
        NystromSketch((4, 5), 12)(x)


def test_nystrom_of_repeated_landmarks_stays_finite() -> None:
    train = [f.repeat(3, 1) for f in draw(6, (4, 5))]
    sketch = NystromSketch((4, 5), 18).double().fit(train)
    assert torch.allclose(sketch(train) @ sketch(train).T, product_kernel(train, train), atol=1e-6)


EVERY: list[Any] = [*RANDOM, partial(KPoMRPSketch, distribution="gaussian"), SpectralSketch, NystromSketch]


@pytest.mark.parametrize("cls", EVERY)
def test_state_and_bits(cls: Any) -> None:
    train = [f.float() for f in draw(40, (6, 6))]
    one, two, other = (cls((6, 6), 11, seed=s).fit(train) for s in (4, 4, 5))
    assert torch.equal(one(train), two(train))
    assert one.deterministic == torch.equal(one(train), other(train))
    fresh = cls((6, 6), 11, seed=9)
    fresh.load_state_dict(one.state_dict())
    assert torch.equal(fresh(train), one(train))
    assert one.describe()["sketch"] == one.name
    assert one(train).dtype == torch.float32
    assert torch.allclose(one.double()([f.double() for f in train]).float(), two(train), atol=1e-4)


@pytest.mark.parametrize("cls", [c for c in RANDOM if c is not TensorSketch], ids=lambda c: c.name)
def test_factors_of_one_size_are_independent(cls: type[RandomSketch]) -> None:
    sketch = cls((16, 16), 64, seed=1)
    one, two = (sketch.project(i, torch.eye(16)) for i in range(2))
    assert abs(float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1])) < 0.2


@pytest.mark.parametrize("cls", RANDOM, ids=lambda c: c.name)
def test_gradients(cls: type[RandomSketch]) -> None:
    sketch = cls((3, 4), 6).double()
    x = [f.requires_grad_() for f in draw(2, (3, 4))]
    assert torch.autograd.gradcheck(lambda a, b: sketch([a, b]), x)


@pytest.mark.parametrize("cls", [*EVERY, KroneckerSketch, JointFourierSketch])
def test_impossible_shapes(cls: type[Sketch]) -> None:
    for dims, out_dim in (((5,), 5), ((5, 0), 5), ((5, 5), 0), ((5, 5), -1), ((5, 5), 2.5)):
        with pytest.raises(ConfigError):
            cls(dims, out_dim)  # type: ignore[arg-type]


def test_unknown_distribution() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gaussian'"):
        KPoMRPSketch((5, 5), 4, distribution="gausian")  # type: ignore[arg-type]
