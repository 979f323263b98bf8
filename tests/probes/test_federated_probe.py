"""The federated probe: what it trains, what it records, and what it refuses."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.labels import DatasetInfo, LabelSet
from krossfuse.core.parts import Part
from krossfuse.federated import ClientSampling, Federation, LocalTraining, Partition, make_server
from krossfuse.privacy import sigma_for
from krossfuse.probes import FederatedProbe, LinearProbe, SGDProbe
from krossfuse.probes.base import ProbeResult
from krossfuse.probes.space import EmbeddingSpace

SIZES = {"train": 200, "val": 60, "test": 120}
LOCAL = LocalTraining(steps=5, batch_size=4, lr=10.0)


def make_space(noise: float = 1.0) -> EmbeddingSpace:
    """Return four classes in embeddings of mean squared norm 1 (in which the SGD probe trains).

    With more noise they overlap, so that a linear head has a solution that is not at infinity.
    """
    g = torch.Generator().manual_seed(0)
    labels = {split: torch.arange(n) % 4 for split, n in SIZES.items()}
    centres = torch.randn(4, 8, generator=g)
    parts = {
        Part(split, "image"): centres[y] + noise * torch.randn(len(y), 8, generator=g) for split, y in labels.items()
    }
    size = parts[Part("train", "image")].square().sum(1).mean().sqrt()
    hidden = {split: torch.where(torch.arange(len(y)) % 3 == 0, -1, y % 2) for split, y in labels.items()}
    tags = {split: torch.stack([y < 2, y == 3], 1) for split, y in labels.items()}
    sets = {
        "kind": LabelSet(tuple("abcd"), labels),
        "hidden": LabelSet(("even", "odd"), hidden),
        "tags": LabelSet(("low", "high"), tags, multilabel=True),
    }
    return EmbeddingSpace(DatasetInfo("toy", {}, sets), {part: x / size for part, x in parts.items()})


def probe(**more: Any) -> FederatedProbe:
    settings: dict[str, Any] = {"clients": 10, "clip": 3.0, "epsilon": 8.0, "rounds": 6, "local": LOCAL}
    return FederatedProbe(**({**settings, "label_sets": ["kind"], "modalities": ["image"]} | more))


def plain(**more: Any) -> FederatedProbe:
    return probe(**({"mechanism": {"name": "none"}, "epsilon": None, "clip": None} | more))


def value(result: ProbeResult, metric: str, label_set: str = "kind") -> float:
    return next(m.value for m in result.measurements if (m.metric, m.label_set) == (metric, label_set))


def weights(result: ProbeResult, name: str) -> Tensor:
    head = result.heads[f"{name}/image"]
    return torch.cat([head.weight, head.bias[:, None]], 1)  # type: ignore[list-item,index]


ONE_CLIENT: dict[str, Any] = {
    "clients": 1,
    "rounds": 4,
    "normalise": False,
    "local": LocalTraining(steps=800, batch_size=200, lr=2.0, momentum=0.9),
}
"""A client that has everything and trains on all of it at once until nothing moves."""


def test_without_a_mechanism_one_client_finds_the_solution_of_the_linear_probe() -> None:
    space = make_space(3.0)
    sets = ["kind", "tags"]
    found = plain(**ONE_CLIENT, label_sets=sets).evaluate(space, seed=0)
    exact = LinearProbe(grid=[1e7], refit=False, tol=1e-6, label_sets=sets).evaluate(space, seed=0)
    for name in sets:
        ours, theirs = weights(found, name), weights(exact, name)
        if name == "kind":  # scores of one class more for all classes change nothing
            ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
        assert float(theirs.abs().max()) > 1
        assert torch.allclose(ours.double(), theirs.double(), atol=2e-3 * float(theirs.abs().max())), name
    assert value(found, "accuracy") == value(exact, "accuracy")
    assert value(found, "mean_average_precision", "tags") == value(exact, "mean_average_precision", "tags")


def test_without_a_mechanism_one_client_finds_the_solution_of_the_sgd_probe() -> None:
    space = make_space(3.0)
    sgd = SGDProbe(
        learning_rates=[2.0], weight_decays=[0.0], momentum=0.9, epochs=1500, batch_size=200, label_sets=["kind"],
        accelerator="cpu",
    ).evaluate(space, seed=0)  # fmt: skip
    found = plain(**ONE_CLIENT).evaluate(space, seed=0)
    ours, theirs = weights(found, "kind"), weights(sgd, "kind")
    assert torch.allclose(ours, theirs, atol=5e-3 * float(theirs.abs().max()))
    assert value(found, "accuracy") == value(sgd, "accuracy")


def test_many_clients_that_step_once_on_all_they_have_are_gradient_descent() -> None:
    """The mean of clients' gradients, all of one size, is the gradient: 10 clients find what one does."""
    space = make_space()
    once = LocalTraining(steps=1, batch_size=200, lr=2.0)
    one = plain(clients=1, rounds=40, local=once, normalise=False).evaluate(space, seed=0)
    ten = plain(clients=10, rounds=40, local=replace(once, batch_size=20), normalise=False).evaluate(space, seed=0)
    assert torch.allclose(weights(one, "kind"), weights(ten, "kind"), atol=1e-5)


def test_the_record_says_what_was_done() -> None:
    result = probe(dropout=0.1).evaluate(make_space(), seed=0)
    by_metric = {m.metric: m for m in result.measurements}
    assert {
        "accuracy",
        "mean_per_class_accuracy",
        "total_bits",
        "bits_per_round",
        "bits_per_coordinate",
        "epsilon",
    } == set(by_metric)
    protocol = {**result.protocol, **by_metric["accuracy"].protocol}
    assert json.loads(json.dumps(protocol, allow_nan=False)) == protocol
    d = 4 * 9
    assert protocol["sigma"] == pytest.approx(sigma_for(8.0, 1e-5, clip=3.0, clients=10, rounds=6))
    assert 7.9 < protocol["epsilon"] <= 8.0
    assert value(result, "epsilon") == protocol["epsilon"]
    assert (protocol["clients"], protocol["rounds"], protocol["clip"], protocol["mechanism"]) == (10, 6, 3.0, "cepam")
    assert (protocol["unit"], protocol["delta"], protocol["parameters"], protocol["n_train"]) == (
        "client",
        1e-5,
        d,
        200,
    )
    assert protocol["federation"] == "cepam, ε=8, 10 clients"
    assert value(result, "total_bits") == protocol["history"]["total_bits"][-1] == 6 * value(result, "bits_per_round")
    assert value(result, "bits_per_coordinate") == pytest.approx(protocol["total_bits"] / (60 * d))
    assert protocol["messages_lost"] > 0
    assert "(8, 1e-05)-differential privacy" in protocol["statement"].replace("7.999", "8").replace("7.998", "8")
    assert protocol["history"]["accuracy"][-1] == pytest.approx(by_metric["accuracy"].value)
    assert by_metric["accuracy"].per_item is not None
    assert len(by_metric["accuracy"].per_item) == SIZES["test"]
    assert result.seeded


@pytest.mark.parametrize(
    ("mechanism", "more", "bits"),
    [
        ({"name": "none"}, {"epsilon": None}, 32),
        ({"name": "gaussian"}, {}, 32),
        ({"name": "laplace"}, {}, 32),
        ({"name": "sdq", "step": 0.1}, {"epsilon": None}, 4),
        ({"name": "gaussian_sdq"}, {}, 3),
        ({"name": "cepam"}, {}, 1),
        ({"name": "cepam", "law": "laplace", "lattice": "Z1"}, {}, 1),
        ({"name": "cepam", "lattice": "E8"}, {"epsilon": None, "sigma": 0.5}, 2),
        ({"name": "released"}, {"epsilon": None, "sigma": 0.01}, 32),
    ],
    ids=lambda value: value.get("name") if isinstance(value, dict) and "name" in value else None,
)
def test_every_mechanism_trains(mechanism: dict[str, Any], more: dict[str, Any], bits: float) -> None:
    result = probe(mechanism=mechanism, **more).evaluate(make_space(), seed=0)
    private = mechanism["name"] not in ("none", "sdq", "released")
    protocol = result.measurements[0].protocol
    assert (protocol["epsilon"] is not None) == private
    assert ("Nothing is protected" in protocol["statement"]) != private
    header = 8 * 40 / 36
    assert value(result, "bits_per_coordinate") < bits + header
    if not private:
        assert value(result, "accuracy") > 0.5


def test_every_option_is_used() -> None:
    """Each changes the head, or what is said of it."""
    space = make_space()
    base = probe(rounds=3)
    before = base.evaluate(space, seed=0)
    changes: dict[str, Any] = {
        "clients": 20,
        "partition": Partition(kind="by_class", classes_per_client=1),
        "epsilon": 1.0,
        "delta": 1e-3,
        "clip": 1.0,
        "unit": "client_replace",
        "accounting": "rdp",
        "rounds": 4,
        "local": replace(LOCAL, steps=1),
        "server": make_server("fedadam"),
        "sampling": ClientSampling("poisson", 0.5),
        "dropout": 0.5,
        "normalise": False,
        "mechanism": {"name": "gaussian"},
    }
    for name, changed in changes.items():
        after = probe(**({"rounds": 3} | {name: changed})).evaluate(space, seed=0)
        assert not torch.equal(weights(before, "kind"), weights(after, "kind")), name
        assert after.protocol != before.protocol, name
    split = probe(rounds=3, split="val", extra_splits=["test"]).evaluate(space, seed=0)
    assert [m.protocol["split"] for m in split.measurements if m.metric == "accuracy"] == ["val", "test"]
    curve = probe(rounds=3, evaluate_every=2).evaluate(space, seed=0).measurements[0].protocol["history"]
    assert curve["round"] == [2, 3]
    laplace = probe(rounds=3, mechanism={"name": "laplace"}, clip_norm="l2").evaluate(space, seed=0)
    assert laplace.protocol["clip_norm"] == "l2"
    assert laplace.measurements[0].protocol["epsilon"] == pytest.approx(8.0, rel=2e-3)


def test_the_seed_decides_everything() -> None:
    space = make_space()
    one, again, other = (probe().evaluate(space, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(weights(one, "kind"), weights(again, "kind"))
    assert not torch.equal(weights(one, "kind"), weights(other, "kind"))


def test_items_without_a_label_are_nobodys_and_heads_have_streams_of_their_own() -> None:
    result = probe(label_sets=["kind", "hidden", "tags"]).evaluate(make_space(), seed=0)
    protocols = {
        m.label_set: m.protocol for m in result.measurements if m.metric in ("accuracy", "mean_average_precision")
    }
    assert protocols["hidden"]["n_train"] == int((make_space().info.label_sets["hidden"].labels["train"] >= 0).sum())
    assert protocols["tags"]["parameters"] == protocols["hidden"]["parameters"] == 2 * 9
    assert not torch.equal(weights(result, "tags"), weights(result, "hidden"))


def test_budgets_and_clips_by_client_are_kept() -> None:
    epsilons = [8.0] * 5 + [2.0] * 5
    result = probe(epsilon=epsilons, clip=[1.0] * 5 + [0.5] * 5).evaluate(make_space(), seed=0)
    protocol = result.measurements[0].protocol
    assert protocol["epsilon"] <= 8.0
    assert protocol["epsilon_least"] <= 2.0
    assert result.protocol["federation"] == "cepam, ε=2–8, 10 clients"


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the federation end in the middle of a round."""

    def at(round: int) -> None:
        play = Federation._play

        def interrupted(self: Federation) -> None:
            if self.round == round:
                raise KeyboardInterrupt
            play(self)

        monkeypatch.setattr(Federation, "_play", interrupted)

    return at


def test_a_killed_training_goes_on_with_the_same_bits_and_account(
    tmp_path: Path, interrupt: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space()
    whole = probe().evaluate(space, seed=0)
    interrupt(4)
    with pytest.raises(KeyboardInterrupt):
        probe(checkpoint=str(tmp_path)).evaluate(space, seed=0)
    (file,) = tmp_path.iterdir()
    monkeypatch.undo()
    resumed = probe(checkpoint=str(tmp_path)).evaluate(space, seed=0)
    assert torch.equal(weights(whole, "kind"), weights(resumed, "kind"))
    assert [m.value for m in whole.measurements] == [m.value for m in resumed.measurements]
    assert [*tmp_path.iterdir()] == [file]
    # Another federation, or one of fewer rounds, has a file of its own.
    fewer = probe(checkpoint=str(tmp_path), rounds=2).evaluate(space, seed=0)
    assert fewer.measurements[0].protocol["rounds_done"] == 2
    probe(checkpoint=str(tmp_path)).evaluate(space, seed=1)
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0}, "epsilon=0 must be a positive"),
        ({"epsilon": -1.0}, "epsilon=-1.0 must be a positive"),
        ({"epsilon": "eight"}, "epsilon='eight' must be a positive"),
        ({"epsilon": [1.0, 2.0]}, "epsilon has 2 values; there are clients=10"),
        ({"delta": 0.0}, "delta=0.0 must be a positive"),
        ({"delta": 1.0}, "delta=1.0 must be below 1"),
        ({"delta": None}, "says nothing without its delta"),
        ({"sigma": 0.0, "epsilon": None}, "sigma=0.0 must be a positive"),
        ({"sigma": 1.0}, "not both"),
        ({"epsilon": None}, "not neither"),
        ({"clip": 0}, "clip=0 must be a positive"),
        ({"clip": None}, "needs clip=C"),
        ({"clip": [1.0]}, "clip has 1 values"),
        ({"clients": 0}, "clients=0 must be a positive integer"),
        ({"rounds": 0}, "rounds=0"),
        ({"dropout": 1.0}, "dropout rate 1.0"),
        ({"unit": "clients"}, "did you mean 'client'"),
        ({"accounting": "pdl"}, "did you mean 'pld'"),
        ({"mechanism": {"name": "cepan"}}, "did you mean 'cepam'"),
        ({"mechanism": {}}, "mechanism.name"),
        ({"mechanism": "cepam"}, "mechanism='cepam' must have a name"),
        ({"mechanism": {"name": "cepam", "lattice": "E9"}}, "E9"),
        ({"mechanism": {"name": "cepam", "sigma": 1.0}}, "mechanism.sigma: say sigma="),
        ({"mechanism": {"name": "cepam", "latice": "E8"}}, "latice"),
        ({"mechanism": {"name": "none"}}, "cannot keep epsilon=8; say epsilon=null"),
        ({"mechanism": {"name": "none"}, "epsilon": None, "sigma": 1.0}, "draws no noise"),
        ({"mechanism": {"name": "released"}, "epsilon": None}, "needs sigma"),
        ({"partition": {"kind": "iid"}}, "partition="),
        ({"normalise": 1}, "normalise=1"),
        ({"evaluate_every": 0}, "evaluate_every=0"),
        ({"clip_norm": "l1"}, "clip_norm='l1'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        probe(**options)


def test_too_many_clients_are_seen_before_any_work() -> None:
    space = make_space()
    with pytest.raises(ConfigError, match=r"label set 'kind', clients=300: 300 clients for 200 records"):
        probe(clients=300).check(space.info)
    with pytest.raises(ConfigError, match="of 200 records"):
        probe(clients=300, partition=Partition(kind="resampled", records_per_client=201)).check(space.info)
    many = probe(clients=300, partition=Partition(kind="resampled", records_per_client=8), rounds=2)
    many.check(space.info)
    result = many.evaluate(space, seed=0)
    assert result.protocol["resampled"]
    assert result.protocol["federation"] == "cepam, ε=8, 300 clients, resampled"


def test_a_client_without_records_is_said() -> None:
    with pytest.raises(DataError, match="leaves clients without records"):
        probe(clients=100, partition=Partition(kind="dirichlet", alpha=0.01)).evaluate(make_space(), seed=0)


def test_bad_features_are_named() -> None:
    space = make_space()
    x = space.parts[Part("train", "image")].clone()
    x[7, 0] = math.nan
    with pytest.raises(DataError, match="row 7"):
        probe().evaluate(replace(space, parts={**space.parts, Part("train", "image"): x}), seed=0)


def test_a_delta_that_says_nothing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        probe(delta=0.2, rounds=2).evaluate(make_space(), seed=11)
    assert "'kind', image: delta=0.2 is not below 1/10" in caplog.text
