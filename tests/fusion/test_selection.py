"""The choice of C: leaving one out against refitting, the winner where it is known, the rules in a method."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, NotFittedError
from krossfuse.core.parts import Part
from krossfuse.features.embeddings import EmbeddingsFile
from krossfuse.fusion import cross_validation
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.choice import Terms
from krossfuse.fusion.cross_validation import BASIS, WEIGHTS, cross_validate, log_losses
from krossfuse.fusion.fit import fit_method
from krossfuse.fusion.io import load_fusion, save_fusion
from krossfuse.fusion.kernels import CentredKernel, CosineKernel
from krossfuse.fusion.methods import ExactKrossFuse, RPKrossFuse
from krossfuse.fusion.selection import balance

INPUTS = InputSpec(cross_modal=12, image_experts={"dino": 16})


def grams(n: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Kernel matrices of which the first knows the parity of the label, the second its half."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    kernels = []
    for key in (labels % 2, labels // 2):
        x = torch.nn.functional.one_hot(key).double() + 0.5 * torch.randn(n, 2, generator=generator).double()
        x = torch.cat([x, torch.ones(n, 1)], 1)
        kernels.append(torch.nn.functional.normalize(x, dim=1))
    return kernels[0] @ kernels[0].T, kernels[1] @ kernels[1].T, labels


def refitted(kernel: torch.Tensor, labels: torch.Tensor, ridge: float) -> torch.Tensor:
    """Scores of each sample by kernel ridge regression on all the others."""
    y = torch.nn.functional.one_hot(labels).double()
    y = y - y.mean(0)
    scores, every = torch.empty_like(y), torch.arange(len(y))
    for one in range(len(y)):
        kept = every != one
        inner = kernel[kept][:, kept] + ridge * torch.eye(len(y) - 1)
        scores[one] = kernel[one, kept] @ torch.linalg.solve(inner, y[kept])
    return scores


def test_left_out_predictions_are_those_of_refitting() -> None:
    k_cross, k_expert, labels = grams()
    choice = cross_validate(Terms(k_cross, k_expert, k_cross), labels, grid=(0.1, 2.0), weights=(0.3,), ridges=(0.05,))
    for C in (0.1, 2.0):
        kernel = C * k_cross + (0.3 + k_cross) * k_expert
        scores = refitted(kernel, labels, 0.05 * float(kernel.diagonal().mean()))
        assert choice.record["C_accuracy"][f"{C:g}"] == pytest.approx(
            float((scores.argmax(1) == labels).double().mean()), abs=1e-6
        )
        unit = scores.std(1, correction=0).mean()
        losses = [torch.nn.functional.cross_entropy(g * scores / unit, labels) for g in (1, 2, 4, 8)]
        assert choice.record["C_loss"][f"{C:g}"] == pytest.approx(float(min(losses)), abs=1e-4)


def test_in_a_basis_it_is_exact_for_the_kernel_that_the_basis_leaves() -> None:
    """A kernel of low rank plus noise on the diagonal is within the approximation, so nothing is lost."""
    n, rank = 90, 4
    x = torch.randn(2, n, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = (x[0, :, 0] > 0).long() + 2 * (x[1, :, 0] > 0).long()
    x = torch.nn.functional.normalize(x, dim=2)
    noisy = [0.9 * k @ k.T + 0.1 * torch.eye(n, dtype=torch.float64) for k in x]
    terms = Terms(noisy[0], noisy[1], torch.ones(n, n, dtype=torch.float64))
    every, small = (cross_validate(terms, labels, grid=(0.5, 3.0), weights=(0.3,), basis=basis) for basis in (n, 30))
    assert (small.C, small.record["C_basis"], every.record["C_basis"]) == (every.C, 30, n)
    for C, loss in every.record["C_loss"].items():
        assert small.record["C_loss"][C] == pytest.approx(loss, abs=2e-3)


def test_the_loss_is_that_of_the_best_temperature() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(40, 3, 5, generator=generator)
    scores = scores - scores.mean(2, keepdim=True)
    targets = torch.randint(5, (40,), generator=generator)
    for m in range(3):
        own = scores[:, m] / scores[:, m].std(1, correction=0).pow(2).mean().sqrt()
        assert float(log_losses(scores, targets)[m]) <= float(torch.nn.functional.cross_entropy(8 * own, targets))
    torch.testing.assert_close(log_losses(100 * scores, targets), log_losses(scores, targets))
    perfect = torch.nn.functional.one_hot(targets)[:, None].float() - 0.2
    assert float(log_losses(perfect, targets)) < 1e-3
    assert math.isfinite(float(log_losses(-perfect, targets)))


def test_the_grid_leans_to_the_parent_that_knows() -> None:
    k_cross, k_expert, labels = grams(80)
    x = torch.randn(80, 5, generator=torch.Generator().manual_seed(1)).double()
    noise = torch.nn.functional.normalize(x, dim=1)
    alone = cross_validate(Terms(k_cross, noise @ noise.T, k_cross), labels % 2)
    assert alone.C >= 1, "an expert that knows nothing gets little weight"
    both = cross_validate(Terms(k_cross, k_expert, k_cross), labels)
    assert both.C <= 10, "where both parents are needed, the expert keeps some"
    assert both.record["C_loss"]["1000"] > 1.02 * both.record["C_loss"][f"{both.C:g}"]


def test_balance_makes_both_terms_vary_equally() -> None:
    k_cross, k_expert, _ = grams()
    C = balance(k_cross, k_cross * k_expert)
    upper = torch.triu_indices(60, 60, 1)
    terms = [(C * k_cross)[upper[0], upper[1]], (k_cross * k_expert)[upper[0], upper[1]]]
    assert float(terms[0].std()) == pytest.approx(float(terms[1].std()))
    assert balance(k_cross, 2 * k_cross * k_expert) == pytest.approx(2 * C)
    with pytest.raises(DataError, match="constant"):
        balance(torch.ones(5, 5), torch.ones(5, 5))


def test_the_weight_is_chosen_with_C() -> None:
    k_cross, k_expert, labels = grams(80)
    terms = Terms(k_cross, k_expert, k_cross)
    joint = cross_validate(terms, labels, weights=WEIGHTS)
    each = {a: cross_validate(terms, labels, weights=(a,)) for a in WEIGHTS}
    assert joint.expert_weight in WEIGHTS
    best = min(min(choice.record["C_loss"].values()) for choice in each.values())
    assert min(joint.record["C_loss"].values()) == best
    assert each[joint.expert_weight].C == joint.C


def test_a_smaller_basis_finds_the_same_on_real_features(shared: Path) -> None:
    bundle = EmbeddingsFile(path=str(shared / "data" / "clip_caltech101" / "dev.safetensors")).bundle()
    train = Part("train", "image")
    psi, gamma = (x[:600].float() for x in bundle[train].values())
    labels = bundle.info.labels("class", train)[:600]
    units = [CentredKernel(x.shape[1]).fit(x) for x in (psi, gamma)]
    cosine = CosineKernel(psi.shape[1])
    terms = Terms(cosine.kernel(psi, psi), units[1].kernel(gamma, gamma), units[0].kernel(psi, psi))
    full = cross_validate(terms, labels, weights=(2.0,), basis=600)
    small = cross_validate(terms, labels, weights=(2.0,))
    assert small.record["C_basis"] == BASIS < 600
    assert full.record["C_loss"][f"{small.C:g}"] <= 1.02 * min(full.record["C_loss"].values())
    for C, accuracy in full.record["C_accuracy"].items():
        assert accuracy - 0.05 < small.record["C_accuracy"][C] < accuracy + 0.01


def test_the_two_best_weights_are_compared_on_whole_kernels() -> None:
    """Whatever the basis says of them: here it holds next to nothing."""
    k_cross, k_expert, labels = grams(80)
    terms, weights, grid = Terms(k_cross, k_expert, k_cross), (0.5, 20.0), (1.0,)
    whole = cross_validate(terms, labels, grid=grid, weights=weights, basis=80)
    small = cross_validate(terms, labels, grid=grid, weights=weights, basis=2)
    assert (small.C, small.expert_weight) == (whole.C, whole.expert_weight)
    kernel = (k_cross + (0.5 + k_cross) * k_expert) / 2.5
    left_out = cross_validation._LeftOut(torch.eye(80, dtype=torch.float64), labels)
    ridges = cross_validation.RIDGES
    by_cholesky, by_eigh = left_out.best_of_whole(kernel, ridges), left_out.best(kernel, float(kernel.trace()), ridges)
    assert by_cholesky.ridge == by_eigh.ridge
    assert by_cholesky.loss == pytest.approx(by_eigh.loss, rel=1e-6)
    assert by_cholesky.accuracy == by_eigh.accuracy


def test_a_kernel_of_nothing_is_refused() -> None:
    k_cross, _, labels = grams()
    for nothing in (torch.zeros_like(k_cross), torch.full_like(k_cross, torch.nan)):
        with pytest.raises(DataError, match="zero or not finite"):
            cross_validate(Terms(k_cross, nothing, k_cross), labels)


@pytest.mark.parametrize("rule", ["cv", "auto"])
def test_the_rule_in_a_method(rule: str, toy_bundle: FeatureBundle, tmp_path: Path) -> None:
    method = RPKrossFuse(inputs=INPUTS, dim=40, C=rule, seed=1)
    image = toy_bundle[Part("test", "image")]
    with pytest.raises(NotFittedError, match="chosen by fit"):
        method.encode("image", image)
    fit_method(method, toy_bundle, label_set="animal")
    described = method.describe()
    assert described["C_rule"] == rule
    assert described["C"] == method.C > 0
    fixed = RPKrossFuse(inputs=INPUTS, dim=40, C=method.C, seed=1)
    assert torch.equal(method.encode("image", image), fixed.encode("image", image))
    again = load_fusion(save_fusion(method, tmp_path / "fusion.safetensors"))
    assert again.describe() == described
    assert torch.equal(again.encode("image", image), method.encode("image", image))
    half = load_fusion(save_fusion(method.half(), tmp_path / "half.safetensors"))
    assert half.describe()["C"] == described["C"], "the chosen C is not rounded with the tensors"
    sketchless = fit_method(ExactKrossFuse(inputs=INPUTS, C=rule, seed=1), toy_bundle, label_set="animal")
    assert sketchless.describe()["C"] == described["C"], "the choice depends on the exact kernel alone"


def test_the_weight_by_cross_validation_is_kept_in_the_file(toy_bundle: FeatureBundle, tmp_path: Path) -> None:
    method = RPKrossFuse(inputs=INPUTS, dim=40, alignment="exact", C="cv", expert_weight="cv")
    assert method.describe()["expert_weight"] == "cv"
    fit_method(method, toy_bundle, label_set="animal")
    assert method.describe()["expert_weight"] == method.expert_weight in WEIGHTS
    image = toy_bundle[Part("test", "image")]
    again = load_fusion(save_fusion(method, tmp_path / "fusion.safetensors"))
    assert again.describe() == method.describe()
    assert torch.equal(again.encode("image", image), method.encode("image", image))


def test_bad_rules(toy_bundle: FeatureBundle) -> None:
    with pytest.raises(ConfigError, match="did you mean 'auto'"):
        RPKrossFuse(inputs=INPUTS, dim=40, C="auta")
    with pytest.raises(ConfigError, match="C=-1"):
        RPKrossFuse(inputs=INPUTS, dim=40, C=-1.0)
    method, image = RPKrossFuse(inputs=INPUTS, dim=40, C="cv"), toy_bundle[Part("train", "image")]
    with pytest.raises(DataError, match="needs labels"):
        method.fit(image=image)
    with pytest.raises(DataError, match="two classes"):
        method.fit(image=image, labels=torch.zeros(160, dtype=torch.int64))
    with pytest.raises(DataError, match="3 labels but 160"):
        method.fit(image=image, labels=torch.zeros(3, dtype=torch.int64))
    few = {role: x[:4] for role, x in image.items()}
    with pytest.raises(DataError, match="10 training samples"):
        RPKrossFuse(inputs=INPUTS, dim=40, C="auto").fit(image=few)
