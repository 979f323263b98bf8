from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.probes.solvers import (
    Target,
    fit_kernel_logistic,
    fit_kernel_ridge,
    fit_logistic,
    fit_logistic_batch,
    fit_ridge,
)
from krossfuse.probes.solvers.objective import log_softmax_, softmax
from krossfuse.probes.solvers.rows import product

GRID = [1.0, 0.01, 100.0]


def draw(n: int, d: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    x = torch.randn(n, d, generator=g) + 0.5 * torch.randn(k, d, generator=g)[y] + 1
    return (x / x.norm(dim=1, keepdim=True)).to(dtype), y


def objective(x: Tensor, y: Tensor, w: Tensor, b: Tensor, c: float, weight: Tensor | None = None) -> float:
    """Scikit-learn's: for two classes, of the one weight vector that is the difference of the two."""
    if len(w) == 2:
        w, b = torch.stack([0 * w[0], w[1] - w[0]]), torch.stack([0 * b[0], b[1] - b[0]])
    loss = torch.nn.functional.cross_entropy(x.double() @ w.double().T + b.double(), y, reduction="none")
    return float(c * (loss if weight is None else loss * weight).sum() + 0.5 * w.double().square().sum())


def reference(x: Tensor, y: Tensor, c: float, **kwargs: object) -> tuple[Tensor, Tensor]:
    model = LogisticRegression(C=c, tol=1e-9, max_iter=20000).fit(x.double().numpy(), y.numpy(), **kwargs)
    w, b = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    return (torch.cat([-w / 2, w / 2]), torch.cat([-b / 2, b / 2])) if len(w) == 1 else (w, b)


SHAPES = [(60, 200, 4), (90, 120, 3), (200, 30, 5), (150, 40, 2), (30, 80, 2)]


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("path", [True, False])
def test_the_optimum_is_that_of_scikit_learn(n: int, d: int, k: int, path: bool) -> None:
    x, y = draw(n, d, k)
    (fit,) = fit_logistic(x, Target(y, k), C=GRID, tol=1e-4, path=path)
    assert fit.converged.all()
    for i, c in enumerate(GRID):
        best = objective(x, y, *reference(x, y, c), c)
        found = objective(x, y, fit.weights[i], fit.intercepts[i], c)
        assert found == pytest.approx(best, rel=1e-5)
        assert float(fit.objective[i]) == pytest.approx(found, rel=1e-5)


def test_float64_goes_on_to_the_coefficients() -> None:
    x, y = draw(80, 20, 3, dtype=torch.float64)
    (fit,) = fit_logistic(x, Target(y, 3), C=[5.0], tol=1e-9)
    w, b = reference(x, y, 5.0)
    assert fit.weights.dtype == torch.float64
    torch.testing.assert_close(fit.weights[0], w, atol=1e-6, rtol=0)
    torch.testing.assert_close(fit.intercepts[0] - fit.intercepts[0].mean(), b - b.mean(), atol=1e-6, rtol=0)


def test_without_intercept() -> None:
    x, y = draw(80, 20, 3, dtype=torch.float64)
    (fit,) = fit_logistic(x, Target(y, 3), C=[5.0], tol=1e-9, fit_intercept=False)
    model = LogisticRegression(C=5.0, tol=1e-10, max_iter=9999, fit_intercept=False).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(fit.weights[0].numpy(), model.coef_, atol=1e-6)
    assert not fit.intercepts.any()


@pytest.mark.parametrize(("n", "d"), [(60, 150), (120, 20)])
def test_rows_without_label_and_weights_count_as_in_scikit_learn(n: int, d: int) -> None:
    x, y = draw(n, d, 3)
    weight = torch.rand(n, generator=torch.Generator().manual_seed(1)) + 0.1
    hidden = y.clone()
    hidden[::5] = -1
    (fit,) = fit_logistic(x, Target(hidden, 3, weight=weight), C=[3.0], tol=1e-5)
    keep = hidden >= 0
    w, b = reference(x[keep], y[keep], 3.0, sample_weight=weight[keep].numpy())
    best = objective(x[keep], y[keep], w, b, 3.0, weight[keep])
    assert objective(x[keep], y[keep], fit.weights[0], fit.intercepts[0], 3.0, weight[keep]) == pytest.approx(best)


def test_multilabel_is_one_regression_a_class() -> None:
    x, y = draw(90, 12, 3, dtype=torch.float64)
    labels = torch.stack([y == 0, y != 1, torch.arange(90) % 4 == 0], 1)
    (fit,) = fit_logistic(x, Target(labels, 3, multilabel=True), C=[2.0], tol=1e-9)
    for k in range(3):
        model = LogisticRegression(C=2.0, tol=1e-10, max_iter=9999).fit(x.numpy(), labels[:, k].numpy())
        np.testing.assert_allclose(fit.weights[0, k].numpy(), model.coef_[0], atol=1e-6)
        assert float(fit.intercepts[0, k]) == pytest.approx(model.intercept_[0], abs=1e-6)


def test_blocks_parts_and_company_change_nothing_that_matters() -> None:
    x, y = draw(200, 30, 5)
    other = Target(y % 3, 3, C=[2.0, 4.0])
    (alone,) = fit_logistic(x, Target(y, 5), C=[0.5, 8.0], tol=1e-4)
    joint, second = fit_logistic([x[:70], x[70:]], [Target(y, 5), other], C=[0.5, 8.0], tol=1e-4, block_rows=33)
    torch.testing.assert_close(alone.objective, joint.objective, rtol=1e-5, atol=0)
    (own,) = fit_logistic(x, Target(y % 3, 3), C=[2.0, 4.0], tol=1e-4)
    torch.testing.assert_close(own.objective, second.objective, rtol=1e-5, atol=0)
    assert joint.passes < alone.passes + own.passes


def test_rows_that_are_not_rotated_may_come_in_blocks() -> None:
    """Intercepts are then balanced over the scores of several blocks."""
    x, y = draw(1600, 800, 5)
    (whole,) = fit_logistic(x, Target(y, 5), C=[0.5, 8.0], tol=1e-4)
    (blocks,) = fit_logistic(x, Target(y, 5), C=[0.5, 8.0], tol=1e-4, block_rows=500)
    torch.testing.assert_close(blocks.objective, whole.objective, rtol=1e-5, atol=0)
    assert blocks.passes <= whole.passes + 2  # intercepts that were not balanced would cost many more
    best = objective(x, y, *reference(x, y, 8.0), 8.0)
    assert objective(x, y, blocks.weights[1], blocks.intercepts[1], 8.0) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 7, 8, 9, 15, 16, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_softmax_of_few_classes_is_torchs(classes: int, dtype: torch.dtype) -> None:
    scores = 30 * torch.randn(2, 50, 3, classes, generator=torch.Generator().manual_seed(0), dtype=dtype)
    scores[0, 0, 0, 0] = 1e4  # an exponential that is none
    tight = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(softmax(scores), scores.softmax(-1), **tight)
    expected = scores.log_softmax(-1)
    log_softmax_(scores)
    torch.testing.assert_close(scores, expected, **tight)


@pytest.mark.parametrize("by_mkls_maker", [True, False])
@pytest.mark.parametrize(("m", "k", "n"), [(50, 30, 5), (50, 30, 40), (1, 1, 1)])
def test_the_product_is_one_on_every_processor(
    m: int, k: int, n: int, by_mkls_maker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krossfuse.probes.solvers.rows._by_mkls_maker", lambda: by_mkls_maker)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(k, m, generator=g).T, torch.randn(k, n, generator=g).T
    torch.testing.assert_close(product(a, b), (a.double() @ b.double().T).float(), rtol=1e-5, atol=1e-5)


def test_the_same_bits_every_time() -> None:
    x, y = draw(120, 40, 4)
    one, two = (fit_logistic(x, Target(y, 4), C=GRID)[0] for _ in range(2))
    assert torch.equal(one.weights, two.weights)
    assert torch.equal(one.intercepts, two.intercepts)


def test_a_grid_in_any_order_is_answered_in_that_order() -> None:
    x, y = draw(120, 40, 4)
    (fit,) = fit_logistic(x, Target(y, 4), C=[10.0, 0.1], tol=1e-4)
    (turned,) = fit_logistic(x, Target(y, 4), C=[0.1, 10.0], tol=1e-4)
    assert torch.equal(fit.weights[0], turned.weights[1])
    assert torch.equal(fit.at(1).weights, fit.weights[1])


def test_normalise_is_as_if_the_rows_had_norm_1() -> None:
    x, y = draw(120, 40, 4)
    (plain,) = fit_logistic(x, Target(y, 4), C=[1.0], tol=1e-5)
    (scaled,) = fit_logistic(x * torch.rand(120, 1).add(0.5), Target(y, 4), C=[1.0], tol=1e-5, normalise=True)
    torch.testing.assert_close(plain.weights, scaled.weights, atol=1e-3, rtol=0)


def test_max_iter_is_told() -> None:
    x, y = draw(120, 40, 4)
    (fit,) = fit_logistic(x, Target(y, 4), C=[1000.0], tol=1e-6, max_iter=2)
    assert not fit.converged[0]
    assert int(fit.iterations[0]) == 2
    assert float(fit.gradient[0]) > 1e-6


@settings(max_examples=8, deadline=None)
@given(n=st.integers(6, 30), d=st.integers(2, 30), k=st.integers(2, 4), seed=st.integers(0, 99))
def test_a_batch_solves_each_of_its_problems(n: int, d: int, k: int, seed: int) -> None:
    x, y = draw(n, d, k, seed)
    short = y.clone()
    short[k:] = torch.where(torch.arange(n - k) % 3 == 0, -1, short[k:])
    fit = fit_logistic_batch(torch.stack([x, x]), torch.stack([y, short]), n_classes=k, C=[0.1, 10.0], tol=1e-5)
    for b, labels in enumerate([y, short]):
        keep = labels >= 0
        for i, c in enumerate([0.1, 10.0]):
            best = objective(x[keep], y[keep], *reference(x[keep], y[keep], c), c)
            found = objective(x[keep], y[keep], fit.weights[b, i], fit.intercepts[b, i], c)
            assert found == pytest.approx(best, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_dual_on_a_linear_kernel_is_the_primal(intercept: bool) -> None:
    x, y = draw(50, 12, 3, dtype=torch.float64)
    dual = fit_kernel_logistic(x @ x.T, Target(y, 3), C=[1.0, 30.0], tol=1e-8, fit_intercept=intercept)
    (primal,) = fit_logistic(x, Target(y, 3), C=[1.0, 30.0], tol=1e-8, fit_intercept=intercept)
    torch.testing.assert_close(dual.weights @ x, primal.weights, atol=1e-5, rtol=0)
    torch.testing.assert_close(dual.intercepts, primal.intercepts, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("n", "d"), [(40, 90), (90, 40)])
@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_is_that_of_scikit_learn_primal_and_dual(n: int, d: int, intercept: bool) -> None:
    x, y = draw(n, d, 3, dtype=torch.float64)
    t = 2.0 * torch.nn.functional.one_hot(y, 3) - 1
    weight = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    fit = fit_ridge(x, t, alphas=[0.1, 10.0], fit_intercept=intercept, weight=weight, block_rows=16)
    dual = fit_kernel_ridge(x @ x.T, t, alphas=[0.1, 10.0], fit_intercept=intercept, weight=weight)
    for i, alpha in enumerate([0.1, 10.0]):
        model = Ridge(alpha=alpha, fit_intercept=intercept).fit(x.numpy(), t.numpy(), sample_weight=weight.numpy())
        np.testing.assert_allclose(fit.weights[i].numpy(), model.coef_, atol=1e-9)
        np.testing.assert_allclose(fit.intercepts[i].numpy(), model.intercept_, atol=1e-9)
        np.testing.assert_allclose((dual.weights[i] @ x).numpy(), model.coef_, atol=1e-9)
        np.testing.assert_allclose(dual.intercepts[i].numpy(), model.intercept_, atol=1e-9)


def test_ridge_leaves_out_rows_of_weight_zero() -> None:
    x, y = draw(60, 20, 3, dtype=torch.float64)
    t = torch.nn.functional.one_hot(y, 3).double()
    weight = (torch.arange(60) % 4 > 0).double()
    some = fit_ridge([x[:25], x[25:]], t, alphas=[1.0], weight=weight)
    none = fit_ridge(x[weight > 0], t[weight > 0], alphas=[1.0])
    torch.testing.assert_close(some.weights, none.weights)


def test_kernel_ridge_without_intercept_is_that_of_scikit_learn() -> None:
    x, y = draw(40, 8, 3, dtype=torch.float64)
    gram = torch.exp(-torch.cdist(x, x).square())
    t = torch.nn.functional.one_hot(y, 3).double()
    fit = fit_kernel_ridge(gram, t, alphas=[0.3], fit_intercept=False)
    model = KernelRidge(alpha=0.3, kernel="precomputed").fit(gram.numpy(), t.numpy())
    np.testing.assert_allclose(fit.weights[0].T.numpy(), model.dual_coef_, atol=1e-10)


@pytest.mark.parametrize("bad", [[], [1.0, 1.0], [0.0], [float("nan")]])
def test_a_bad_grid_is_an_error(bad: list[float]) -> None:
    x, y = draw(20, 4, 2)
    with pytest.raises(ConfigError):
        fit_logistic(x, Target(y, 2), C=bad)


def test_bad_targets_are_errors() -> None:
    x, y = draw(20, 4, 2)
    with pytest.raises(DataError, match=r"-1 \.\.\. 1"):
        fit_logistic(x, Target(y + 1, 2), C=[1.0])
    with pytest.raises(DataError, match="no row"):
        fit_logistic(x, Target(torch.full((20,), -1), 2), C=[1.0])
    with pytest.raises(DataError, match="shape"):
        fit_logistic(x, Target(y[:5], 2), C=[1.0])
    with pytest.raises(DataError, match="non-negative"):
        fit_logistic(x, Target(y, 2, weight=torch.full((20,), -1.0)), C=[1.0])


@pytest.mark.parametrize(("n", "d"), [(54, 64), (54, 200)])
@pytest.mark.parametrize("value", [0.0, 1e-3, 0.3, 1.0, 3e3])
@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-5])
def test_features_that_do_not_vary_end_the_search_at_once(n: int, d: int, value: float, spread: float) -> None:
    x = value * (1 + spread * torch.randn(n, d, generator=torch.Generator().manual_seed(0)))
    (fit,) = fit_logistic(x, Target(torch.arange(n) % 3, 3), C=[0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])
    assert fit.passes < 600
    assert set(fit.ended()) <= {"tolerance", "rounding"}
    assert bool(torch.isfinite(fit.weights).all())
    if spread == 0 and value <= 1:
        assert not fit.weights.any()


def test_what_ended_the_search_is_said() -> None:
    x, y = draw(120, 40, 4)
    (fit,) = fit_logistic(x, Target(y, 4), C=[1.0, 1000.0], max_iter=6)
    assert fit.ended() == ["tolerance", "max_iter"]
    (vain,) = fit_logistic(x, Target(y, 4), C=[1.0], tol=1e-14)
    assert vain.ended() == ["rounding"]
    assert int(vain.iterations[0]) < 1000
