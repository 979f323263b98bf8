"""CEPAM against the published per-coordinate loop: ``python -m experiments.benchmarks.cepam --out FILE``.

All times are CPU seconds of one process with one thread, each the best of ``--repeats``; speeds are coordinates a
second. Written, among others:

* ``quantise_ratio``: encode and decode of the Gaussian n = 1 quantiser over a million coordinates, against the loop
  over coordinates of the released code, in the same run;
* ``message_ratio``: the same with the range coder, the header and the checks, update to bytes and back;
* ``bits``: by s/σ and lattice, bits a coordinate of whole messages (header included, ``--coordinates`` of them), the
  information-theoretic ``floor`` I(X; X + Z), the ``gap`` above it, and ``theory``, the gap at high resolution;
* ``simulation_ratio``: seconds of a loop of modules over clients over those of the batched simulation, by model.

``--pictures FOLDER`` draws the rates beside their floor, and the quantiles of the error beside the law that it ought to
have, of ours and of what the released code computes.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import digamma, erfcx
from torch import Tensor, nn

from experiments.benchmarks.common import write_json
from krossfuse.federated import MLP, FlatModel, LinearHead, LocalTraining, ModuleModel, SmallCNN, partition
from krossfuse.privacy import Key, Quantiser, find_lattice, make_mechanism
from krossfuse.privacy.lattices import ball_volume

RATIOS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
LATTICES = ("Z1", "Z2", "Z3", "A2", "D3", "D4", "E8")


def cpu_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Return the least CPU seconds of some runs."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def published_loop(update: Tensor, sigma: float, seed: int) -> Tensor:
    """Quantise and dequantise one coordinate after the other, n = 1, as the released code does: a torch vector each."""
    generator = torch.Generator().manual_seed(seed)
    chi_square = torch.distributions.chi2.Chi2(torch.tensor(3.0))
    step = 1e-3
    blocks, out = update.view(1, -1), torch.zeros(1, len(update))
    for i in range(len(update)):
        radius = chi_square.sample().sqrt() * sigma
        dither = torch.rand(1, generator=generator) - 0.5
        point = torch.floor((blocks[:, i] / radius - dither) / step + 0.5)
        radius = chi_square.sample().sqrt() * sigma
        dither = torch.rand(1, generator=generator) - 0.5
        out[:, i] = radius * step * (point + dither)
    return out.view(-1)


def speeds(d: int, loop_d: int, repeats: int) -> dict[str, Any]:
    """Time the loop, the quantiser and whole messages at s/σ = 1."""
    u = np.random.default_rng(0).normal(size=d)
    key = Key.from_seed(0)
    out: dict[str, Any] = {"coordinates": d, "loop_coordinates": loop_d}
    vector = torch.from_numpy(u[:loop_d]).float()
    loop = cpu_seconds(lambda: published_loop(vector, 1.0, 0), repeats) / loop_d
    out["loop_per_second"] = 1 / loop
    for name, law in [("Z1", "gaussian"), ("Z1_laplace", "laplace"), ("Z3", "gaussian"), ("E8", "gaussian")]:
        quantiser = Quantiser(law, 1.0, find_lattice(name[:2]))  # type: ignore[arg-type]
        quantised = quantiser.encode(u, key)
        encode = cpu_seconds(lambda q=quantiser: q.encode(u, key), repeats) / d  # type: ignore[misc]
        decode = cpu_seconds(lambda q=quantiser, c=quantised: q.decode(c.tries, c.index, d, key), repeats) / d  # type: ignore[misc]
        out[f"quantise_{name}"] = {"encode_per_second": 1 / encode, "decode_per_second": 1 / decode}
        if name == "Z1":
            out["quantise_ratio"] = loop / (encode + decode)
    for name in ("Z1", "E8"):
        mechanism = make_mechanism("cepam", sigma=1.0, lattice=name)
        message = mechanism.encode(u, key)
        write = cpu_seconds(lambda m=mechanism: m.encode(u, key), repeats) / d  # type: ignore[misc]
        read = cpu_seconds(lambda m=mechanism, b=message: m.decode(b, key), repeats) / d  # type: ignore[misc]
        out[f"message_{name}"] = {"encode_per_second": 1 / write, "decode_per_second": 1 / read}
        if name == "Z1":
            out["message_ratio"] = loop / (write + read)
    return out


def loop_over_clients(
    module: nn.Module, local: LocalTraining, start: Tensor, x: Tensor, y: Tensor, parts: list[Any]
) -> Tensor:
    """Train one copy of a module and one SGD a client, one client after the other."""
    out = []
    for k, rows in enumerate(parts):
        client = copy.deepcopy(module)
        nn.utils.vector_to_parameters(start.clone(), client.parameters())
        optimiser = torch.optim.SGD(client.parameters(), lr=local.lr, momentum=local.momentum)
        for batch in local.draws(rows, 0, k, 0):
            optimiser.zero_grad()
            nn.functional.cross_entropy(client(x[batch]), y[batch]).backward()
            optimiser.step()
        out.append(nn.utils.parameters_to_vector(client.parameters()).detach() - start)
    return torch.stack(out)


def simulation(repeats: int) -> dict[str, Any]:
    """Time a round of the protocol (30 clients, 15 steps of batch 1, momentum .5) against the loop, by model."""
    clients, local = 30, LocalTraining(steps=15, batch_size=1, lr=0.01, momentum=0.5)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3000, 784, generator=generator), torch.randint(10, (3000,), generator=generator)
    parts = partition(y, clients)
    mlp = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
    cases: dict[str, tuple[FlatModel, nn.Module]] = {
        "head": (LinearHead(784, 10), nn.Linear(784, 10)),
        "mlp": (MLP((784, 32, 16, 10)), mlp),
        "mlp_vmap": (ModuleModel(copy.deepcopy(mlp), 10), mlp),
        "cnn_vmap": (ModuleModel(SmallCNN(), 10), SmallCNN()),
    }
    out: dict[str, Any] = {"simulation_ratio": {}, "simulation_seconds": {}, "simulation_difference": {}}
    for name, (model, module) in cases.items():
        start = model.initial(0)

        def batched(model: FlatModel = model, start: Tensor = start) -> Tensor:
            return local.updates(model, start, x, y, parts, range(clients), seed=0, round=0)

        def looped(module: nn.Module = module, start: Tensor = start) -> Tensor:
            return loop_over_clients(module, local, start, x, y, parts)

        out["simulation_difference"][name] = float((batched() - looped()).abs().max())
        seconds = cpu_seconds(batched, repeats)
        out["simulation_seconds"][name] = seconds
        out["simulation_ratio"][name] = cpu_seconds(looped, repeats) / seconds
    return out


def theory(name: str, law: str = "gaussian") -> float:
    """Return the bits a coordinate above the mutual information at high resolution."""
    lattice = find_lattice(name)
    n, p = lattice.dim, lattice.density
    if law == "laplace":  # h of the noise over E log₂ of the step 2r, r = b·Gamma(2, 1)
        return math.log2(math.e) - float(digamma(2)) / math.log(2)
    mean_log = (float(digamma((n + 2) / 2)) + math.log(2)) / math.log(2)
    layer = 0.5 * math.log2(2 * math.pi * math.e) - (math.log2(ball_volume(n)) + n / 2 * mean_log) / n
    return layer + (0.0 if n == 1 else (1 - p) / p * math.log2(1 / (1 - p)) / n)


def floor_bits(ratio: float, law: str = "gaussian") -> float:
    """Return I(X; X + Z) in bits, X ~ N(0, ratio²), Z of variance 1: no scheme with this error law sends less."""
    if law == "gaussian":
        return 0.5 * math.log2(1 + ratio**2)
    b = math.sqrt(0.5)
    y = np.linspace(-40 - 12 * ratio, 40 + 12 * ratio, 1 << 20)
    # Normal * Laplace in closed form, scaled complementary error functions for the tails.
    x, shift = y / ratio, ratio / b
    halves = [erfcx((shift + sign * x) / math.sqrt(2)) for sign in (1, -1)]
    density = np.exp(-x * x / 2) * np.where(np.isfinite(halves[0] + halves[1]), halves[0] + halves[1], 0) / (4 * b)
    far = ~np.isfinite(halves[0] + halves[1])
    density[far] = np.exp(-np.abs(y[far]) / b + shift**2 / 2) / (2 * b)
    positive = density > 0
    entropy = -float((density[positive] * np.log2(density[positive])).sum() * (y[1] - y[0]))
    return entropy - math.log2(2 * math.e * b)


def rates(d: int) -> list[dict[str, Any]]:
    """Return the bits a coordinate by s/σ and lattice."""
    key, rows = Key.from_seed(1), []
    normal = np.random.default_rng(1).normal(size=d)
    normal /= np.sqrt(np.square(normal).mean())
    for ratio in RATIOS:
        cases: list[tuple[str, dict[str, Any], float | None]] = [
            (name, {"mechanism": "cepam", "lattice": name}, theory(name)) for name in LATTICES
        ]
        cases.append(("Z1 laplace", {"mechanism": "cepam", "law": "laplace"}, theory("Z1", "laplace")))
        cases.append(("gaussian_sdq", {"mechanism": "gaussian_sdq"}, None))
        for label, options, expected in cases:
            mechanism = make_mechanism(
                options["mechanism"], sigma=1.0, **{k: v for k, v in options.items() if k != "mechanism"}
            )
            floor = floor_bits(ratio, options.get("law", "gaussian"))
            bits = 8 * len(mechanism.encode(normal * ratio, key)) / d
            rows.append(
                {
                    "s_over_sigma": ratio,
                    "lattice": label,
                    "bits": bits,
                    "floor": floor,
                    "gap": bits - floor,
                    "theory": expected,
                }
            )
    return rows


def errors(d: int, sigma: float = 0.01) -> dict[str, Any]:
    """Return, by name, (decoded − update)/σ of one update that is twice as large as the noise."""
    update = (2 * sigma * np.random.default_rng(2).normal(size=d)).astype(np.float32)
    mechanisms = {
        "CEPAM, Z1": make_mechanism("cepam", sigma=sigma, lattice="Z1"),
        "CEPAM, E8": make_mechanism("cepam", sigma=sigma, lattice="E8"),
        "Gaussian noise, then SDQ": make_mechanism("gaussian_sdq", sigma=sigma),
        "released, n = 1": make_mechanism("released", sigma=sigma),
        "released, n = 2": make_mechanism("released", sigma=sigma, dim=2),
        "SDQ": make_mechanism("sdq", step=sigma),
    }
    key = Key.from_seed(2)
    return {name: (m.decode(m.encode(update, key), key) - update) / sigma for name, m in mechanisms.items()}


def save_pictures(rows: list[dict[str, Any]], d: int, folder: Path) -> list[Path]:
    """Draw the rates and the laws of the error into a folder, and return the files."""
    import matplotlib as mpl

    from krossfuse.report.pictures.mechanisms import error_laws, rate_against_ratio
    from krossfuse.report.pictures.style import STYLE, settle

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        for name, figure in (("rate_against_ratio", rate_against_ratio(rows)), ("error_laws", error_laws(errors(d)))):
            settle(figure)
            figure.savefig(folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--coordinates", type=int, default=1 << 20)
    parser.add_argument("--loop-coordinates", type=int, default=3_000, help="that the published loop is timed on")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing; the best counts")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out: dict[str, Any] = {"cores": os.cpu_count(), "numpy": np.__version__}
    out |= speeds(args.coordinates, args.loop_coordinates, args.repeats)
    out |= simulation(args.repeats)
    out["bits"] = rates(args.coordinates)
    if args.pictures:
        save_pictures(out["bits"], min(args.coordinates, 100_000), args.pictures)
    print(write_json(out, args.out))


if __name__ == "__main__":
    main()
