from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Part
from krossfuse.probes import Clustering
from krossfuse.probes.clustering import affinity, clustering_scores, kernel_points
from krossfuse.probes.space import EmbeddingSpace


def make_space(noise: float = 0.35, seed: int = 0) -> EmbeddingSpace:
    g = torch.Generator().manual_seed(seed)
    centres = torch.eye(3, 10)
    labels, parts = {}, {}
    for split, n in (("train", 40), ("val", 20), ("test", 30)):
        labels[split] = torch.arange(n) % 3
        parts[Part(split, "image")] = centres[labels[split]] + noise * torch.randn(n, 10, generator=g)
    labels["test"][0] = -1
    return EmbeddingSpace(DatasetInfo("toy", {}, {"class": LabelSet(("a", "b", "c"), labels)}), parts)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(2, 4))
def test_matched_accuracy_against_every_matching(seed: int, classes: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(0, classes, 30), rng.integers(0, clusters, 30)
    wide = max(classes, clusters)
    best = max(np.mean(np.array(p)[found] == truth) for p in itertools.permutations(range(wide)))
    assert clustering_scores(truth, found)["matched_accuracy"] == pytest.approx(best)


def test_separate_groups_are_found_by_every_method() -> None:
    probe = Clustering(methods=["kmeans", "spectral", "kernel_kmeans"], n_seeds=2)
    measurements = probe.evaluate(make_space(0.1), seed=0).measurements
    assert {f.protocol["space"] for f in measurements} == {"embedding/kmeans", "kernel/spectral", "kernel/kmeans"}
    assert len(measurements) == 3 * 2 * 4
    assert all(f.value == pytest.approx(1.0) for f in measurements)
    assert all(f.protocol["n_items"] == 89 for f in measurements)


def test_spectral_parity_with_scikit_learn() -> None:
    x = torch.cat([make_space()[Part(s, "image")] for s in ("train", "val")]).double()
    x = x / x.norm(dim=1, keepdim=True)
    near = affinity((x @ x.T).numpy(), "rbf")
    theirs = SpectralClustering(3, affinity="precomputed", random_state=0).fit_predict(near)
    space = make_space()
    labels = {s: y for s, y in space.info.label_sets["class"].labels.items() if s != "test"}
    info = replace(space.info, label_sets={"class": LabelSet(("a", "b", "c"), labels)})
    ours = Clustering(methods=["spectral"], n_seeds=1, n_init=10).evaluate(replace(space, info=info), seed=0)
    truth = torch.cat([labels["train"], labels["val"]]).numpy()
    (ari,) = [f.value for f in ours.measurements if f.metric == "ari"]
    assert ari == pytest.approx(adjusted_rand_score(truth, theirs))


def test_kernel_points_have_the_kernel_as_inner_products() -> None:
    x = np.random.default_rng(0).normal(size=(30, 6))
    gram = (x @ x.T) ** 2 * 3.0
    norm = np.sqrt(np.diag(gram))
    points = kernel_points(gram)
    np.testing.assert_allclose(points @ points.T, gram / norm / norm[:, None], atol=1e-10)


def test_exact_kernel_is_used_where_there_is_one() -> None:
    space = make_space(0.6)
    asked: list[tuple[Part, Part]] = []

    def kernel(a: Part, rows_a: Tensor, b: Part, rows_b: Tensor) -> Tensor:
        asked.append((a, b))
        la, lb = (space.info.label_sets["class"].labels[p.split][r] for p, r in ((a, rows_a), (b, rows_b)))
        return (la[:, None] == lb[None, :]).float() * 0.9 + 0.1

    result = Clustering(methods=["spectral"], n_seeds=1).evaluate(replace(space, kernel=kernel), seed=0)
    assert result.protocol["kernel"] == "exact"
    assert len(asked) == 1 + 6  # whether there is one, then each pair of parts
    assert all(f.value == pytest.approx(1.0) for f in result.measurements)


def test_affinities_are_stated_and_not_negative() -> None:
    gram = np.array([[4.0, -2.0, 1.0], [-2.0, 4.0, 0.0], [1.0, 0.0, 1.0]])
    np.testing.assert_allclose(affinity(gram, "clip"), [[1, 0, 0.5], [0, 1, 0], [0.5, 0, 1]])
    np.testing.assert_allclose(affinity(gram, "rbf")[0], np.exp(-np.array([0, 3, 1]) / 2.0))


def test_same_seed_same_figures_and_a_large_set_is_subsampled() -> None:
    space = make_space(0.8)
    probe = Clustering(max_items=50, n_seeds=2)
    a, b, c = (probe.evaluate(space, seed=seed) for seed in (1, 1, 2))
    assert [f.value for f in a.measurements] == [f.value for f in b.measurements] != [f.value for f in c.measurements]
    assert a.measurements[0].protocol["n_items"] == 50


def test_k_means_is_that_of_scikit_learn() -> None:
    space = make_space(0.6)
    result = Clustering(methods=["kmeans"], n_seeds=1, splits=["train"]).evaluate(space, seed=4)
    x = space[Part("train", "image")]
    state = int(np.random.SeedSequence([4, 0]).generate_state(1)[0])
    guess = KMeans(3, n_init=3, random_state=state).fit_predict((x / x.norm(dim=1, keepdim=True)).numpy())
    assert {f.metric: f.value for f in result.measurements} == pytest.approx(
        clustering_scores(torch.arange(40).numpy() % 3, guess)
    )


def test_bad_input_is_named() -> None:
    space = make_space()
    assert Clustering().applies(space)
    assert not Clustering(modalities=["text"]).applies(space)
    one = {"class": LabelSet(("a", "b", "c"), {"train": torch.zeros(40, dtype=torch.int64)})}
    with pytest.raises(DataError, match="two classes"):
        Clustering().evaluate(replace(space, info=replace(space.info, label_sets=one)), seed=0)
    broken = space[Part("val", "image")].clone()
    broken[3] = float("nan")
    with pytest.raises(DataError, match=r"val:image .* row 3"):
        Clustering().evaluate(replace(space, parts={**space.parts, Part("val", "image"): broken}), seed=0)
    with pytest.raises(DataError, match="finite"):
        kernel_points(np.array([[0.0, 1.0], [1.0, 1.0]]))
    with pytest.raises(ConfigError, match="did you mean 'spectral'"):
        Clustering(methods=["spectra"])
    with pytest.raises(ConfigError, match="n_seeds=0"):
        Clustering(n_seeds=0)
