"""The choice of C: the fold identity against refitting, the winner where it is known, the rules in a method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, NotFittedError
from krossfuse.core.parts import Part
from krossfuse.features.embeddings import EmbeddingsFile
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.fit import fit_method
from krossfuse.fusion.io import load_fusion, save_fusion
from krossfuse.fusion.kernels import CentredKernel, CosineKernel
from krossfuse.fusion.methods import ExactKrossFuse, RPKrossFuse
from krossfuse.fusion.selection import WEIGHTS, Terms, assign_folds, balance, cross_validate

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


def test_held_out_predictions_are_those_of_refitting() -> None:
    k_cross, k_expert, labels = grams()
    terms, grid = Terms(k_cross, k_expert, k_cross), (0.1, 2.0)
    choice = cross_validate(terms, labels, grid=grid, weights=(0.3,), ridges=(0.05,), folds=3, seed=4)
    folds = assign_folds(labels, 3, seed=4)
    y = torch.nn.functional.one_hot(labels).double()
    y = y - y.mean(0)
    for C in (0.1, 2.0):
        kernel = C * k_cross + (0.3 + k_cross) * k_expert
        ridge = 0.05 * float(kernel.diagonal().mean())
        right = 0
        for fold in range(3):
            held, kept = torch.nonzero(folds == fold).flatten(), torch.nonzero(folds != fold).flatten()
            inner = kernel[kept][:, kept] + ridge * torch.eye(len(kept))
            scores = kernel[held][:, kept] @ torch.linalg.solve(inner, y[kept])
            right += int((scores.argmax(1) == labels[held]).sum())
        assert choice.record["C_accuracy"][f"{C:g}"] == pytest.approx(right / len(labels), abs=1e-6)


def test_folds_are_balanced_and_repeat() -> None:
    labels = torch.tensor([0] * 11 + [1] * 7 + [2] * 2)
    folds = assign_folds(labels, 3, seed=1)
    assert torch.equal(folds, assign_folds(labels, 3, seed=1))
    assert not torch.equal(folds, assign_folds(labels, 3, seed=2))
    for label, most in ((0, 4), (1, 3), (2, 1)):
        counts = torch.bincount(folds[labels == label], minlength=3)
        assert int(counts.max()) <= most
        assert int(counts.max() - counts.min()) <= 1


def test_the_grid_leans_to_the_parent_that_knows() -> None:
    k_cross, k_expert, labels = grams(80)
    x = torch.randn(80, 5, generator=torch.Generator().manual_seed(1)).double()
    noise = torch.nn.functional.normalize(x, dim=1)
    alone = cross_validate(Terms(k_cross, noise @ noise.T, k_cross), labels % 2)
    assert alone.C >= 1, "an expert that knows nothing gets little weight"
    both = cross_validate(Terms(k_cross, k_expert, k_cross), labels)
    assert both.C <= 10, "where both parents are needed, the expert keeps some"
    assert both.record["C_accuracy"]["1000"] < both.record["C_accuracy"][f"{both.C:g}"]


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
    best = max(max(choice.record["C_accuracy"].values()) for choice in each.values())
    assert max(joint.record["C_accuracy"].values()) == best
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
    small = cross_validate(terms, labels, weights=(2.0,), basis=256)
    for C, accuracy in full.record["C_accuracy"].items():
        assert small.record["C_accuracy"][C] == pytest.approx(accuracy, abs=0.02)
    chosen = full.record["C_accuracy"][f"{small.C:g}"]
    assert chosen >= max(full.record["C_accuracy"].values()) - 0.005


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
