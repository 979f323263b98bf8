"""LP++ and CLIP-Adapter against plain loops over torch's own layers and optimisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from few_shot_toys import PROMPTS, TEST, TRAIN, VAL, make_space
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from krossfuse.core.trainers import TrainerFactory
from krossfuse.probes import FewShot
from krossfuse.probes.base import ProbeResult
from krossfuse.probes.few_shot import adapter_training
from krossfuse.probes.few_shot.clip_adapter import adapted
from krossfuse.probes.few_shot.lp_plus_plus import STEPS, fit_lp_plus_plus


def problem(seed: int, n: int = 12, dim: int = 7, classes: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    texts = normalize(torch.randn(classes, dim, generator=g, dtype=torch.float64), dim=1)
    y = torch.arange(n) % classes
    shots, val = (
        normalize(texts[y] + 0.6 * torch.randn(n, dim, generator=g, dtype=torch.float64), dim=1) for _ in range(2)
    )
    return shots, y, texts, val, y


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lp_plus_plus_is_a_plain_loop_of_the_published_steps(seed: int) -> None:
    shots, y, texts, val, val_y = problem(seed)
    n, classes = len(shots), len(texts)
    head = nn.Linear(shots.shape[1], classes).double()
    with torch.no_grad():
        head.weight.copy_(torch.stack([shots[y == k].sum(0) for k in range(classes)]))
        head.bias.zero_()
    own = torch.stack([(shots[y == k] @ texts[k]).mean() for k in range(classes)])
    alpha = (250 * own.mean() * torch.ones(classes, dtype=torch.float64)).requires_grad_()
    rate = 4 * n / float(torch.linalg.eigvalsh(shots.T @ shots)[-1])
    text_rate = n / (4 * float((shots @ texts.T).square().sum(0).max()))
    optimizer = torch.optim.SGD(head.parameters(), rate, momentum=0.9)
    best, kept = -1, None
    for step in range(STEPS):
        optimizer.zero_grad()
        alpha.grad = None
        cross_entropy(head(shots) + alpha * (shots @ texts.T), y).backward()
        optimizer.step()
        assert alpha.grad is not None
        if (step + 1) % 10 == 0:
            alpha.data -= text_rate * alpha.grad
        right = int(((head(val) + alpha * (val @ texts.T)).argmax(1) == val_y).sum())
        if right >= best:
            weight = (head.weight + alpha[:, None] * texts).detach().clone()
            best, kept = right, (weight, head.bias.detach().clone(), step)
    found = fit_lp_plus_plus(shots, y, texts, val, val_y)
    assert kept is not None
    assert found.step == kept[2]
    torch.testing.assert_close(found.weight, kept[0], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.bias, kept[1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("n_shots", [1, 2])
def test_adapters_are_those_of_a_plain_loop_and_do_not_touch_each_other(n_shots: int) -> None:
    problems = [problem(seed, n=3 * n_shots, dim=32) for seed in (3, 4)]
    shots, y, texts = (torch.stack([p[i] for p in problems]) for i in range(3))
    shots, texts = shots.float(), 20 * texts.float()
    state = torch.get_rng_state()
    downs, ups = adapter_training.trained_adapters(
        shots, y, texts, n_shots=n_shots, seeds=[1, 2], trainers=TrainerFactory()
    )
    assert torch.equal(torch.get_rng_state(), state)
    epochs = 50 if n_shots == 1 else 100
    for p in range(2):
        down, up = nn.Linear(32, 8, bias=False), nn.Linear(8, 32, bias=False)
        down.weight.data.copy_(adapter_training._uniform(p + 1, "down", 8, 32))
        up.weight.data.copy_(adapter_training._uniform(p + 1, "up", 32, 8))
        weights = [down.weight, up.weight]
        optimizer = torch.optim.SGD(weights, lr=2e-3, momentum=0.9, weight_decay=5e-4)
        successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for epoch in range(epochs):  # One batch an epoch: its order does not matter
            optimizer.param_groups[0]["lr"] = 1e-5 if epoch == 0 else successor.get_last_lr()[0]
            new = torch.relu(up(torch.relu(down(shots[p]))))
            images = normalize(0.2 * new + 0.8 * shots[p], dim=1)
            optimizer.zero_grad()
            cross_entropy(images @ texts[p].T, y[p]).backward()
            optimizer.step()
            if epoch:
                optimizer.param_groups[0]["lr"] = successor.get_last_lr()[0]
                successor.step()
        torch.testing.assert_close(downs[p], down.weight.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ups[p], up.weight.detach(), rtol=1e-4, atol=1e-6)
        assert (downs[p] - adapter_training._uniform(p + 1, "down", 8, 32)).abs().max() > 1e-4, "it has learnt"


def test_the_length_of_an_image_does_not_matter_to_an_adapter() -> None:
    g = torch.Generator().manual_seed(0)
    x, down, up = torch.randn(5, 8, generator=g), torch.randn(2, 8, generator=g), torch.randn(8, 2, generator=g)
    torch.testing.assert_close(adapted(7 * x, down, up), adapted(x, down, up))


def hits(result: ProbeResult) -> dict[int, np.ndarray]:
    return {
        int(m.protocol["subset_seed"]): m.per_item.numpy()
        for m in result.measurements
        if m.metric == "accuracy" and m.label_set == "class" and m.per_item is not None
    }


def test_lp_plus_plus_reads_unit_embeddings_and_the_mean_text_of_a_class() -> None:
    space = make_space(noise=2.0)
    probe = FewShot(shots=[3], n_seeds=2, forms=["LP++"])
    found = hits(probe.evaluate(space, seed=0))
    texts = normalize(space[PROMPTS].double().view(4, 2, -1).mean(1), dim=1)
    labels = {part: space.info.labels("class", part) for part in (TRAIN, VAL, TEST)}
    for subset in probe.subsets(space, "class"):
        train, val = (normalize(space[part][rows], dim=1) for part, rows in ((TRAIN, subset.train), (VAL, subset.val)))
        fit = fit_lp_plus_plus(train, labels[TRAIN][subset.train], texts, val, labels[VAL][subset.val])
        scores = normalize(space[TEST], dim=1).double() @ fit.weight.T + fit.bias
        np.testing.assert_array_equal(found[subset.seed], (scores.argmax(1) == labels[TEST]).numpy())


def test_clip_adapter_in_the_probe_repeats_and_is_above_chance() -> None:
    space = make_space()
    probe = FewShot(shots=[1, 2], n_seeds=2, forms=["CLIP-Adapter"])
    first, second = probe.evaluate(space, seed=0), probe.evaluate(space, seed=1)
    values = [m.value for m in first.measurements]
    assert values == [m.value for m in second.measurements]
    assert min(values) > 0.5
