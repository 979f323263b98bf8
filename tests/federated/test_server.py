"""Server optimisers against their formulae and PyTorch's SGD."""

from __future__ import annotations

import pytest
import torch

from krossfuse.core.errors import ConfigError
from krossfuse.federated import make_server

MEANS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def play(server):
    parameters, state = torch.zeros(4), server.start(4)
    for mean in MEANS:
        parameters, state = server.step(parameters, mean, state)
    return parameters


def test_fedavg_is_the_sum_and_with_momentum_torch_sgd():
    assert torch.allclose(play(make_server("fedavg")), MEANS.sum(0))
    assert torch.allclose(play(make_server("fedavg", lr=1.2732)), 1.2732 * MEANS.sum(0))
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimiser = torch.optim.SGD([parameter], lr=0.5, momentum=0.9)
    for mean in MEANS:
        parameter.grad = -mean
        optimiser.step()
    assert torch.allclose(play(make_server("fedavg", lr=0.5, momentum=0.9)), parameter)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive(name):
    m, v, expected = torch.zeros(4), torch.full((4,), 1e-6), torch.zeros(4)
    for mean in MEANS:
        m = 0.9 * m + 0.1 * mean
        square = mean**2
        v = {
            "fedadam": 0.99 * v + 0.01 * square,
            "fedyogi": v - 0.01 * square * torch.sign(v - square),
            "fedadagrad": v + square,
        }[name]
        expected = expected + 0.1 * m / (v.sqrt() + 1e-3)
    assert torch.allclose(play(make_server(name, lr=0.1)), expected)


def test_bad_inputs():
    with pytest.raises(ConfigError, match="did you mean 'fedavg'"):
        make_server("fedavgm")
    with pytest.raises(ConfigError, match="unexpected keyword argument 'beta3'"):
        make_server("fedadam", beta3=1)
    for name, options in [
        ("fedavg", {"lr": 0.0}),
        ("fedavg", {"momentum": 1.0}),
        ("fedadam", {"beta1": -0.1}),
        ("fedadam", {"beta2": 1.0}),
        ("fedyogi", {"tau": 0.0}),
    ]:
        with pytest.raises(ConfigError, match=next(iter(options))):
            make_server(name, **options)
