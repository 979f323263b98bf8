"""A real SuperLink with two SuperNodes, as processes on the loopback, over TLS, by the commands of docs/cepam.md."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import re
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("flwr", reason="needs the package flwr (make test-flower)")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flower.toys import draw
from safetensors.torch import load_file
from scipy import stats

from experiments.benchmarks.deployment import Deployment, belonging, deployed, free_port, insecure
from krossfuse.federated import Federation, LocalTraining, Settings, UnitHead, partition
from krossfuse.privacy import make_mechanism

ROUNDS, DIM, CLASSES = 2, 120, 5


def certificates(folder: Path) -> None:
    """Write ca.crt, server.crt and server.key, for 127.0.0.1."""
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def certificate(name, key, issuer, by, authority):
        builder = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - day).not_valid_after(now + day)
        builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (builder if authority else builder.add_extension(here, critical=False)).sign(by, hashes.SHA256())

    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pem = serialization.Encoding.PEM
    root = certificate("ca", authority, "ca", authority, authority=True)
    (folder / "ca.crt").write_bytes(root.public_bytes(pem))
    leaf = certificate("server", server, "ca", authority, authority=False)
    (folder / "server.crt").write_bytes(leaf.public_bytes(pem))
    (folder / "server.key").write_bytes(
        server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def rows(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of a dimension that makes the law of the errors testable."""
    x, y = draw(n, seed)
    return torch.cat([x * (i + 1) ** -0.5 for i in range(DIM // x.shape[1])], 1), y


def documented(repository: Path) -> dict[str, str]:
    """Return the commands and the configuration of docs/cepam.md, by their first word."""
    text = (repository / "docs/cepam.md").read_text()
    section = text[text.index("## 7.") :]
    shell, toml = (re.search(rf"```{kind}\n(.*?)```", section, re.S).group(1) for kind in ("sh", "toml"))
    return {line.split()[0]: line for line in shell.splitlines() if not line.startswith("#")} | {"toml": toml}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployment")
    certificates(folder)
    arrays = {}
    for i, (split, n) in enumerate({"train": 120, "val": 20, "test": 100}.items()):
        x, y = rows(n, i)
        arrays |= {f"{split}/image/parent": x.numpy(), f"{split}/labels": y.numpy()}
    np.savez(folder / "public.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def deployment(files, repository):
    """The documented commands to the letter, but for address, ports, folder, and the file that both clients share."""
    said, port = documented(repository), free_port()

    def here(command: str) -> str:
        return command.replace("superlink.example.org:9092", f"127.0.0.1:{port}").replace("/etc/flower", str(files))

    superlink = here(said["flower-superlink"]).replace("--host 0.0.0.0 --port 9092", f"--host 127.0.0.1 --port {port}")
    node = here(said["flower-supernode"]).replace(' data="mine.npz"', "")
    nodes = [f"{node.replace('partition-id=0', f'partition-id={i}')} --port {free_port()}" for i in range(2)]
    assert superlink != said["flower-superlink"]
    assert "partition-id=1" in nodes[1]
    with deployed(files, superlink, nodes, here(said["toml"]), port=port) as running:
        yield running


def play(deployment: Deployment, repository: Path, **change: object) -> tuple[torch.Tensor, dict]:
    """Start the documented run with other options, and return head and record."""
    command = documented(repository)["flwr"].replace("experiments/flower", str(repository / "experiments/flower"))
    assert str(repository) in command
    assert command.endswith("'")
    options = " ".join(f"{key}={json.dumps(value)}" for key, value in change.items())
    told = re.sub(rf"\b({'|'.join(change)})=\S+(?=[ '])", "", command[:-1] + " '")[:-1] + options + "'"
    deployment.command(told)
    head = load_file(deployment.folder / "runs/flower/head.safetensors")
    record = json.loads((deployment.folder / "runs/flower/record.json").read_text())
    return torch.cat([head["weight"].flatten(), head["bias"]]), record


def simulated(rounds: int, **options) -> Federation:
    x, y = rows(120, 0)
    settings = {"local": LocalTraining(steps=5, batch_size=16, lr=10.0), "mechanism": make_mechanism("none"), **options}
    return Federation(UnitHead(DIM, CLASSES), x, y, partition(y, 2), Settings(rounds=rounds, **settings))


@pytest.mark.timeout(400)
def test_without_a_mechanism_it_equals_the_batched_simulation(deployment, repository):
    head, record = play(deployment, repository, rounds=ROUNDS, mechanism="none", epsilon="", clip="")
    expected = simulated(ROUNDS).run().parameters
    assert (head - expected).abs().max() < 1e-6
    assert expected.abs().max() > 0.1
    assert [entry["received"] for entry in record["history"]] == [2] * ROUNDS
    assert record["statement"].startswith("Nothing is protected")


@pytest.mark.timeout(400)
def test_with_cepam_it_equals_the_simulation_in_law(deployment, repository):
    head, record = play(deployment, repository, rounds=1)
    sigma = record["sigma"]
    plain = simulated(1, clip=3.0).run().parameters
    errors = (head - plain).numpy() * 2**0.5 / sigma
    assert stats.kstest(errors, "norm").pvalue > 1e-5
    assert abs(stats.spearmanr(errors, plain.numpy()).statistic) < 5 / len(errors) ** 0.5
    same = simulated(1, clip=3.0, mechanism=make_mechanism("cepam", sigma=sigma), delta=1e-5).run()
    assert record["epsilons"] == pytest.approx(same.epsilons)
    assert 7.9 < max(record["epsilons"]) <= 8
    assert abs(np.log(record["total_bits"] / same.total_bits)) < 0.2
    assert "(8, 1e-05)-differential privacy" in record["statement"]


@pytest.mark.timeout(400)
def test_all_processes_end_with_a_block_that_fails_in_the_middle_of_a_run(tmp_path, repository):
    names: set[str] = set()

    def fail():
        with insecure(tmp_path, ["partition-id=0"]) as running:
            running.start(f"flwr run {repository / 'experiments/flower'} --run-config 'data=\"x\" min-nodes=2'")
            end = time.monotonic() + 120
            while "flwr-serverapp" not in names and time.monotonic() < end:
                for process in belonging(tmp_path / "flwr"):
                    with contextlib.suppress(psutil.Error):
                        names.update(Path(word).name for word in process.cmdline()[:2])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {"flower-superlink", "flower-supernode", "flwr-serverapp"} <= names
    assert not belonging(tmp_path / "flwr")


def test_the_documented_lines_of_ones_own_app(repository):
    text = (repository / "docs/cepam.md").read_text()
    section = text[text.index("## 7.") :]
    names: dict[str, object] = {}
    exec(re.search(r"```python\n(.*?)```", section, re.S).group(1), names)
    assert names["strategy"].clients == 30
    assert names["strategy"].account.budgets == [8.0] * 30
