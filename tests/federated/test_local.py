"""The batched simulation equals a loop of PyTorch modules and optimisers over clients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from krossfuse.core.errors import ConfigError
from krossfuse.federated import MLP, LinearHead, LocalTraining, ModuleModel, SmallCNN, UnitHead, partition

N = 240
X = torch.randn(N, 784, generator=torch.Generator().manual_seed(0))
Y = torch.randint(10, (N,), generator=torch.Generator().manual_seed(1))
MANY = torch.rand(N, 10, generator=torch.Generator().manual_seed(2)) < 0.3
PARTS = partition(Y, 6, seed=0)


def as_module(model) -> nn.Module:
    if isinstance(model, ModuleModel):
        return SmallCNN()
    layers: list[nn.Module] = []
    for a, b in zip(model.sizes, model.sizes[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def loop(model, local: LocalTraining, start, y, clients) -> torch.Tensor:
    """One module and one SGD a client, one client after the other."""
    out = []
    for k in clients:
        module = as_module(model)
        nn.utils.vector_to_parameters(start.clone(), module.parameters())
        optimiser = torch.optim.SGD(
            module.parameters(), lr=local.lr, momentum=local.momentum, weight_decay=local.weight_decay
        )
        for rows in local.draws(PARTS[k], 5, k, 2):
            optimiser.zero_grad()
            scores = module(X[rows])
            if model.multilabel:
                loss = nn.functional.binary_cross_entropy_with_logits(scores, y[rows].float(), reduction="sum") / len(
                    rows
                )
            else:
                loss = nn.functional.cross_entropy(scores, y[rows])
            loss.backward()
            optimiser.step()
        out.append(nn.utils.parameters_to_vector(module.parameters()).detach() - start)
    return torch.stack(out)


MODELS = {
    "head": (LinearHead(784, 10), Y),
    "multilabel head": (LinearHead(784, 10, multilabel=True), MANY),
    "mlp": (MLP((784, 32, 16, 10)), Y),
    "multilabel mlp": (MLP((784, 12, 10), multilabel=True), MANY),
    "cnn": (ModuleModel(SmallCNN(), 10), Y),
    "multilabel cnn": (ModuleModel(SmallCNN(), 10, multilabel=True), MANY),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 5, "batch_size": 1, "momentum": 0.5},
        {"steps": 3, "batch_size": 7, "momentum": 0.0, "weight_decay": 0.1},
        {"steps": 4, "batch_size": 2, "momentum": 0.9, "weight_decay": 0.01, "replacement": True},
    ],
)
def test_the_batch_equals_the_loop(name, options):
    model, y = MODELS[name]
    local = LocalTraining(lr=0.02, **options)
    start = model.initial(3)
    assert start.shape == (model.d,)
    clients = [4, 0, 5]
    ours = local.updates(model, start, X, y, PARTS, clients, seed=5, round=2)
    theirs = loop(model, local, start, y, clients)
    assert ours.abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 2e-6
    alone = local.updates(model, start, X, y, PARTS, [0], seed=5, round=2)
    assert (alone[0] - ours[1]).abs().max() < 1e-6  # who else takes part does not matter


def test_sizes():
    assert MLP((784, 32, 16, 10)).d == 25_818
    assert ModuleModel(SmallCNN(), 10).d == 6_422
    assert LinearHead(128, 10).d == 1_290
    assert not LinearHead(3, 2).initial(0).any()


def test_initial_parameters_follow_the_seed_and_leave_torch_alone():
    for model in (MLP((784, 32, 16, 10)), ModuleModel(SmallCNN(), 10)):
        state = torch.get_rng_state()
        assert torch.equal(model.initial(1), model.initial(1))
        assert not torch.equal(model.initial(1), model.initial(2))
        assert torch.equal(torch.get_rng_state(), state)
    flat = MLP((784, 32, 16, 10)).initial(0)
    assert flat[: 784 * 32].abs().max() <= 1 / 28
    assert flat[: 784 * 32].std() == pytest.approx(1 / 28 / 3**0.5, rel=0.02)


def test_scores_and_evaluation():
    model = MLP((784, 32, 16, 10))
    flat = model.initial(0)
    module = as_module(model)
    nn.utils.vector_to_parameters(flat.clone(), module.parameters())
    with torch.no_grad():
        assert (model.scores(flat, X) - module(X)).abs().max() < 1e-6
        expected = float((module(X).argmax(1) == Y).double().mean())
    out = model.evaluate(flat, X, Y, size=7)
    assert out["accuracy"] == pytest.approx(expected)
    assert out["loss"] == pytest.approx(float(nn.functional.cross_entropy(module(X), Y).detach()), rel=1e-5)
    many = LinearHead(784, 10, multilabel=True)
    assert many.evaluate(many.initial(0), X, MANY)["accuracy"] == pytest.approx(1 - float(MANY.double().mean()))


def test_a_unit_head_is_a_linear_head_on_rows_of_norm_one():
    g = torch.Generator().manual_seed(0)
    x, y = 100 * torch.randn(40, 6, generator=g), torch.arange(40) % 3
    unit = x / x.norm(dim=1, keepdim=True)
    parts, local = partition(y, 4), LocalTraining(steps=3, batch_size=5, lr=0.5, momentum=0.3)
    start = torch.randn(21, generator=g)
    one, other = (
        local.updates(model, start, inputs, y, parts, range(4), seed=0, round=0)
        for model, inputs in ((UnitHead(6, 3), x), (LinearHead(6, 3), unit))
    )
    assert torch.allclose(one, other, atol=1e-6)
    assert torch.allclose(UnitHead(6, 3).scores(start, x), LinearHead(6, 3).scores(start, unit), atol=1e-6)


def test_draws():
    local = LocalTraining(steps=7, batch_size=3)
    rows = np.arange(100, 110)
    drawn = local.draws(rows, 0, 1, 2)
    assert drawn.shape == (7, 3)
    flat = drawn.flatten().tolist()
    assert sorted(flat[:10]) == rows.tolist()  # none twice before all were seen
    assert sorted(flat[10:20]) == rows.tolist()
    assert torch.equal(drawn, local.draws(rows, 0, 1, 2))
    assert not torch.equal(drawn, local.draws(rows, 0, 1, 3))
    assert not torch.equal(drawn, local.draws(rows, 0, 2, 2))
    assert set(LocalTraining(steps=50, replacement=True).draws(rows, 0, 1, 2).flatten().tolist()) <= set(rows.tolist())


def test_many_clients_go_in_blocks(monkeypatch):
    model, local = LinearHead(784, 10), LocalTraining(steps=2)
    whole = local.updates(model, model.initial(0), X, Y, PARTS, range(6), seed=0, round=0)
    monkeypatch.setattr("krossfuse.federated.local._NUMBERS_AT_ONCE", 1)
    assert torch.allclose(
        local.updates(model, model.initial(0), X, Y, PARTS, range(6), seed=0, round=0), whole, atol=1e-6
    )


def test_bad_inputs():
    for options in ({"steps": 0}, {"batch_size": -1}, {"lr": 0.0}, {"momentum": 1.0}, {"weight_decay": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            LocalTraining(**options)
    with pytest.raises(ConfigError, match="sizes"):
        MLP((3,))
    with pytest.raises(ConfigError, match="size=0"):
        MLP((3, 0))
    with pytest.raises(ConfigError, match="buffers"):
        ModuleModel(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), 3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["head", "mlp", "cnn"])
def test_another_device_gives_the_same_updates(name):
    model, y = MODELS[name]
    local, start = LocalTraining(steps=4, batch_size=2, momentum=0.5), model.initial(3)
    here = local.updates(model, start, X, y, PARTS, range(6), seed=5, round=2)
    there = local.updates(model, start.cuda(), X, y, PARTS, range(6), seed=5, round=2)
    assert (here - there.cpu()).abs().max() < 1e-4
