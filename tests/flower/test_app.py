"""The app that ``flwr run`` starts, in this process."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="needs the package flwr (make test-flower)")

from flower.toys import draw
from flwr.app import Context, RecordDict
from safetensors import safe_open

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.federated import Federation, LocalTraining, Settings, UnitHead, partition
from krossfuse.flower import LocalGrid, client_app, server_app
from krossfuse.privacy import make_mechanism

TWO = {11: {"partition-id": 0}, 12: {"partition-id": 1}}
BASE = {"clients": 2, "rounds": 3, "mechanism": "none", "epsilon": "", "clip": "", "out": "out"}


def save(path, seed=0, **extra):
    """Write a file of embeddings of five classes."""
    arrays = {}
    for i, (split, n) in enumerate({"train": 120, "val": 20, "test": 60}.items()):
        x, y = draw(n, 10 * seed + i)
        arrays |= {f"{split}/image/parent": x.numpy(), f"{split}/labels": y.numpy()}
        arrays |= {f"{split}/{key}": make(x.numpy()) for key, make in extra.items()}
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def data(tmp_path):
    return save(tmp_path / "toy.npz")


def run(config, nodes=TWO, **options):
    """Play the app, and return the grid."""
    config = {**BASE, **config}
    grid = LocalGrid(client_app(), nodes, run_config=config, **options)
    server_app()(grid, Context(1, 1, {}, RecordDict(), config))
    return grid


def read(folder):
    with safe_open(folder / "head.safetensors", "pt") as file:
        return file.get_tensor("weight"), file.get_tensor("bias"), file.metadata()


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "by_class"])
def test_it_is_the_batched_simulation_of_the_same_partition(kind, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run({"data": data, "partition": kind, "seed": 3})
    x, y = draw(120, 0)
    parts = partition(y, 2, kind=kind, seed=3)
    model = UnitHead(x.shape[1], 5)
    local = LocalTraining(steps=5, batch_size=16, lr=10.0)
    expected = Federation(
        model, x, y, parts, Settings(rounds=3, mechanism=make_mechanism("none"), local=local, seed=3)
    ).run()
    weight, bias, metadata = read(tmp_path / "out")
    np.testing.assert_allclose(torch.cat([weight.flatten(), bias]), expected.parameters, atol=1e-6)
    assert json.loads(metadata["normalise"]) is True
    record = json.loads((tmp_path / "out/record.json").read_text())
    test_x, test_y = draw(60, 2)
    assert record["accuracy"] == pytest.approx(model.evaluate(expected.parameters, test_x, test_y)["accuracy"])
    assert record["statement"].startswith("Nothing is protected")
    assert list(record["curve"]) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_it_keeps_its_budget_and_says_so(strategy, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run({"data": data, "mechanism": "cepam", "epsilon": "8", "clip": "3", "strategy": strategy, "pad": 64})
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert 7.9 < max(record["epsilons"]) <= 8
    assert record["rounds_done"] == 3
    assert record["statement"].startswith("(8, 1e-05)-differential privacy") or "(7.9" in record["statement"]
    assert record["total_bits"] < 3 * 2 * 32 * 125 / 3
    assert all("epsilon" in entry for entry in record["history"])


def test_a_client_may_have_a_file_of_its_own(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = save(tmp_path / "own.npz", seed=7)
    run({"data": data}, {11: {"partition-id": 0, "data": own}, 12: {"partition-id": 1, "data": data}})
    (x, y), (own_x, own_y) = draw(120, 0), draw(120, 70)
    parts = [np.arange(120), np.arange(120, 240)]
    local = LocalTraining(steps=5, batch_size=16, lr=10.0)
    expected = Federation(
        UnitHead(x.shape[1], 5),
        torch.cat([own_x, x]),
        torch.cat([own_y, y]),
        parts,
        Settings(rounds=3, mechanism=make_mechanism("none"), local=local),
    ).run()
    weight, bias, _ = read(tmp_path / "out")
    np.testing.assert_allclose(torch.cat([weight.flatten(), bias]), expected.parameters, atol=1e-6)


def test_a_fusion_is_applied_at_the_client(tmp_path, monkeypatch):
    import krossfuse

    monkeypatch.chdir(tmp_path)
    data = save(
        tmp_path / "two.npz",
        **{
            "image/clip": lambda x: x[:, :8],
            "text/clip": lambda x: x[:, :8],
        },
    )
    inputs = krossfuse.InputSpec(cross_modal=8, image_experts={"parent": 24})
    krossfuse.save_fusion(krossfuse.RPKrossFuse(inputs=inputs, dim=96, alignment="exact", seed=0), "f.safetensors")
    run({"data": data, "fusion": "f.safetensors"})
    assert read(tmp_path / "out")[0].shape == (5, 96)
    run({"data": data, "features": "parent"})
    assert read(tmp_path / "out")[0].shape == (5, 24)
    with pytest.raises(ConfigError, match=r"features='' must be one of \['cross_modal', 'parent'\].*fusion=FILE"):
        run({"data": data})
    with pytest.raises(ConfigError, match="fusion takes all encoders"):
        run({"data": data, "fusion": "f.safetensors", "features": "parent"})
    with pytest.raises(ConfigError, match=r"label-set='colour' must be one of \['class'\]"):
        run({"data": data, "features": "parent", "label-set": "colour"})


def test_clients_whose_head_is_another_are_named(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = dict(np.load(data))
    narrow = {key: value[:, :9] if "image" in key else value for key, value in arrays.items()}
    np.savez(tmp_path / "narrow.npz", **narrow)
    with pytest.raises(DataError, match="none of 2.*client 0.*head has 125 parameters, this client's features need 50"):
        run({"data": data}, {node: {**config, "data": "narrow.npz"} for node, config in TWO.items()})


def test_more_clients_than_records_of_a_shared_file(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="none of 2.*200 clients for 120 records"):
        run({"data": data, "clients": 200, "min-nodes": 2})


def test_nothing_is_asked_where_the_configuration_is_wrong(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    for change, words in (
        ({"rounds": 0}, "rounds=0"),
        ({"data": "absent.npz"}, "absent.npz.*no such file"),
    ):
        with pytest.raises((ConfigError, DataError), match=words):
            run({"data": data, **change}, deliver=lambda reply: asked.append(reply) or [reply])
    assert not asked


def test_a_stopped_server_goes_on(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"data": data, "mechanism": "cepam", "epsilon": "8", "clip": "3", "checkpoint": "c.safetensors"}
    trained = []

    def stop(reply):
        if reply.metadata.message_type == "train":
            trained.append(reply)
            if len(trained) == 3:
                raise KeyboardInterrupt
        return [reply]

    with pytest.raises(KeyboardInterrupt):
        run(config, deliver=stop)
    run(config)
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record["rounds_done"] == 3
    assert 7.9 < max(record["epsilons"]) <= 8
