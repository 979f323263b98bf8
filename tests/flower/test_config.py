"""The app's run configuration: what is wrong is said before any node is asked."""

from __future__ import annotations

import tomllib

import pytest

pytest.importorskip("flwr", reason="needs the package flwr (make test-flower)")

from flwr.serverapp import strategy as flower

from krossfuse.core.errors import ConfigError
from krossfuse.flower.config import RunConfig
from krossfuse.privacy import Accountant


def defaults(repository):
    return tomllib.loads((repository / "experiments/flower/pyproject.toml").read_text())["tool"]["flwr"]["app"][
        "config"
    ]


@pytest.fixture
def read(repository):
    return lambda **change: RunConfig.read(
        {**defaults(repository), "data": "x.npz", **{key.replace("_", "-"): value for key, value in change.items()}}
    )


def test_the_app_names_every_key(repository):
    assert list(defaults(repository)) == [name.replace("_", "-") for name in RunConfig.__dataclass_fields__]


def test_epsilon_decides_the_noise_and_is_the_budget(read):
    protection = read(clients=30, rounds=7, epsilon="2", clip="0.5").protection()
    account = Accountant()
    account.step(noise_std=protection.mechanism.sigma * 30**0.5, clip=0.5, rounds=7)
    assert 1.99 < account.epsilon(1e-5) <= 2
    assert protection.budgets == 2
    by_client = read(clients=2, epsilon="2,4", clip="0.5,1").protection()
    assert by_client.budgets == [2, 4]
    assert by_client.clip == [0.5, 1]
    poisson = read(clients=30, rounds=7, epsilon=2, clip="0.5", sampling="poisson", sampling_rate=0.2).protection()
    assert poisson.mechanism.sigma < protection.mechanism.sigma * 0.2**-0.5
    assert poisson.secretly_sampled


def test_sigma_and_options(read):
    protection = read(epsilon="", sigma="0.5,1", budget="3", lattice="E8", clip=2.0).protection()
    assert protection.sigmas == [0.5, 1]
    assert protection.budgets == 3
    assert protection.mechanism.lattice == "E8"
    laplace = read(epsilon="", sigma=0.5, law="laplace", accounting="rdp").protection()
    assert (laplace.mechanism.noise, laplace.norm, laplace.accounting) == ("laplace", "l1", "rdp")
    assert read(mechanism="none", epsilon="", clip="").protection().clip is None
    assert read(mechanism="sdq", epsilon="", step=0.5).protection().mechanism.step == 0.5


def test_strategies(read):
    adam = read(strategy="fedadam", server_lr=0.5, server_tau=0.1).make_strategy()
    assert isinstance(adam, flower.FedAdam)
    assert (adam.eta, adam.tau, adam.fraction_evaluate, adam.min_available_nodes) == (0.5, 0.1, 0, 2)
    momentum = read(strategy="fedavgm", server_lr=0.5, server_momentum=0.9, clients=9, min_nodes=4).make_strategy()
    assert (momentum.server_learning_rate, momentum.server_momentum, momentum.min_train_nodes) == (0.5, 0.9, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": ""}, "data='' names no file of embeddings"),
        ({"epsilom": "8"}, "unknown key 'epsilom'.*did you mean 'epsilon'"),
        ({"rounds": 2.5}, "rounds=2.5 must be of type int"),
        ({"rounds": True}, "rounds=True must be of type int"),
        ({"normalise": 1}, "normalise=1 must be of type bool"),
        ({"clip": True}, "clip=True must be of type"),
        ({"rounds": 0}, "rounds=0 must be a positive integer"),
        ({"clients": 0}, "clients=0 must be a positive integer"),
        ({"pad": 0}, "pad=0"),
        ({"timeout": 0.0}, "timeout=0.0"),
        ({"min-nodes": -1}, "min-nodes=-1"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"local-steps": 0}, "steps=0"),
        ({"partition": "idd"}, "did you mean 'iid'"),
        ({"partition": "resampled"}, "do not share records"),
        ({"alpha": 0.5}, "partition.alpha=0.5.*'iid' has no such option"),
        ({"epsilon": "eight"}, "epsilon='eight' must be a number, or one a client"),
        ({"epsilon": "8,,2"}, "epsilon='8,,2'"),
        ({"epsilon": "-1"}, "epsilon=-1"),
        ({"epsilon": "1,2,3"}, "3 budgets and 2 clips"),
        ({"epsilon": ""}, "'cepam' needs epsilon .* or sigma, not neither"),
        ({"sigma": "1"}, "not both"),
        ({"budget": "1"}, "budget goes with sigma"),
        ({"clip": ""}, "needs clip=C"),
        ({"clip": "0"}, "clip=0"),
        ({"law": "laplace"}, "say sigma, and budget"),
        ({"mechanism": "cepan"}, "did you mean 'cepam'"),
        ({"mechanism": "none"}, "'none' draws no noise"),
        ({"lattice": "E9"}, "'E9'"),
        ({"step": 0.5}, "'cepam'.*step"),
        ({"unit": "item"}, "unit='item'"),
        ({"accounting": "moments"}, "accounting='moments'"),
        ({"delta": 0.0}, "delta=0"),
        ({"delta": 1.0}, "delta=1.0 must be below 1"),
        ({"sampling": "some"}, "sampling='some'"),
        ({"sampling-rate": 0.5}, "0.5.*'all'"),
        ({"strategy": "fedadma"}, "did you mean 'fedadam'"),
        ({"strategy": "krum"}, "strategy='krum' is not one of"),
        ({"server-lr": 0.5}, r"server-lr=0.5: strategy='fedavg' has no such option; it has \[\]"),
        ({"server-momentum": 0.5, "strategy": "fedadam"}, "server-momentum=0.5.*'server-lr', 'server-tau'"),
    ],
)
def test_what_is_wrong_is_said(read, change, words):
    with pytest.raises(ConfigError, match=words):
        read(**change).protection()
