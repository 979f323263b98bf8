"""C by cross-validation against brute force: ``python -m experiments.benchmarks.selection --data FILE --out FILE``.

Both choose C (and with ``joint`` the experts' weight) on the same exact kernels of the same samples, one after the
other in the same process, with as many threads as torch takes by itself or ``--threads`` says. The peer is brute force
for each candidate, as ``C=cv`` was before: an eigendecomposition of the (n, n) kernel, and with it every penalty and
each of five folds; its best accuracy wins, and of equal ones the lower squared error.

Written for each number of samples: the seconds of both (medians), ``ratio``, what each chose, and how good the choices
are, both by the same measure and without a basis: ``loss`` and ``accuracy`` leaving one out, at each choice's best
penalty, and where samples are left that no one chose on, the ``held_out_accuracy`` on them. ``floor_seconds`` is that
of ours: the operations of its matrix products over the fastest float32 product, and those of its eigendecompositions
over the fastest of their size, both measured in the same run.

Without ``--data``, features are drawn (:class:`~krossfuse.features.synthetic.SyntheticFeatures`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.common import timed, write_json
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.parts import Part
from krossfuse.features.embeddings import EmbeddingsFile
from krossfuse.features.synthetic import SyntheticFeatures
from krossfuse.fusion.choice import Terms
from krossfuse.fusion.cross_validation import BASIS, GRID, RIDGES, WEIGHTS, cross_validate
from krossfuse.fusion.kernels import CosineKernel

FOLDS = 5


def samples(bundle: FeatureBundle) -> tuple[Tensor, Tensor, Tensor]:
    """Return ψ, γ and the labels of all splits' images, the training split first."""
    parts = [Part(split, "image") for split in ("train", "val", "test") if Part(split, "image") in bundle]
    name = next(iter(bundle.info.label_sets))
    cross, expert = (torch.cat([list(bundle[part].values())[role].float() for part in parts]) for role in (0, 1))
    return cross, expert, torch.cat([bundle.info.labels(name, part) for part in parts])


def terms_of(cross: Tensor, expert: Tensor) -> Terms:
    """Return the exact cosine kernels of some samples."""
    of_cross, of_expert = (CosineKernel(x.shape[1]).kernel(x, x) for x in (cross, expert))
    return Terms(of_cross, of_expert, of_cross)


def brute_force(terms: Terms, labels: Tensor, weights: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the C and a of the best five-fold accuracy, every candidate decomposed by itself."""
    _, targets = torch.unique(labels, return_inverse=True)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    fold_of = torch.empty_like(order)
    fold_of[order[targets[order].sort(stable=True).indices]] = torch.arange(len(targets)) % FOLDS
    held = [torch.nonzero(fold_of == fold).flatten() for fold in range(FOLDS)]
    y = torch.nn.functional.one_hot(targets).double()
    y = y - y.mean(0)
    cross, expert, within = (k.double() for k in terms)
    scores: dict[tuple[float, float], tuple[float, float]] = {}
    for C in GRID:
        for a in weights:
            values, vectors = torch.linalg.eigh((C * cross + (a + within) * expert) / (C + a + 1))
            rotated, scale = vectors.T @ y, float(values.mean())
            for ridge in RIDGES:
                w = 1 / (values.clamp_min(0) + ridge * scale).unsqueeze(1)
                solved, error = vectors @ (w * rotated), torch.empty_like(y)
                for rows in held:
                    error[rows] = torch.linalg.solve(vectors[rows] @ (w * vectors[rows].T), solved[rows])
                accuracy = float(((y - error).argmax(1) == targets).double().mean())
                score = (accuracy, -float(error.square().mean()))
                scores[C, a] = max(scores.get((C, a), score), score)
    return max(scores, key=scores.__getitem__)


def ours(terms: Terms, labels: Tensor, weights: Sequence[float]) -> tuple[float, float]:
    """Return the C and a of :func:`~krossfuse.fusion.cross_validation.cross_validate`."""
    choice = cross_validate(terms, labels, weights=weights)
    return choice.C, choice.expert_weight


def quality(cross: Tensor, expert: Tensor, labels: Tensor, n: int, C: float, a: float) -> dict[str, float]:
    """Return how good a choice on the first n samples is: leaving one out, and on the other samples."""
    choice = cross_validate(terms_of(cross[:n], expert[:n]), labels[:n], grid=(C,), weights=(a,), basis=n)
    key = f"{C:g}"
    found = {"C": C, "a": a, "loss": choice.record["C_loss"][key], "accuracy": choice.record["C_accuracy"][key]}
    if n < len(labels):
        k_cross, k_expert, _ = (k.double() for k in terms_of(cross, expert))
        kernel = C * k_cross + (a + k_cross) * k_expert
        y = torch.nn.functional.one_hot(labels).double()
        y = y[:n] - y[:n].mean(0)
        noise = choice.record["C_ridge"] * kernel.diagonal()[:n].mean()
        scores = kernel[n:, :n] @ torch.linalg.solve(kernel[:n, :n] + noise * torch.eye(n), y)
        found["held_out_accuracy"] = float((scores.argmax(1) == labels[n:]).double().mean())
    return found


def floor_seconds(n: int, classes: int, candidates: int) -> float:
    """Return the least seconds that our operations need, at speeds measured now."""
    q = min(n, BASIS)
    square = torch.randn(1024, 1024)
    product = min(timed(lambda: square @ square, 1)[0] for _ in range(5)) / (2 * 1024**3)
    small = torch.randn(q, 3 * q, dtype=torch.float64)
    small = small @ small.T
    decomposition = min(timed(lambda: torch.linalg.eigh(small), 1)[0] for _ in range(5))
    of_basis = 5 * 2 * n * n * q + 3 * 2 * n * q * q + 2 * 4 * n * q * q
    of_candidate = 2 * n * q * q + 2 * n * q * classes * len(RIDGES)
    return (of_basis + candidates * of_candidate) * product + candidates * decomposition


def measure(bundle: FeatureBundle, sizes: Sequence[int], *, repeats: int) -> list[dict[str, Any]]:
    """Return a row for each number of samples, with C alone and jointly with the experts' weight."""
    cross, expert, labels = samples(bundle)
    rows = []
    for n in sizes:
        terms, own = terms_of(cross[:n], expert[:n]), labels[:n]
        for joint, weights in ((False, (0.0,)), (True, WEIGHTS)):
            ours(terms, own, weights)  # What is done once a process is no one's time
            seconds, chosen = timed(lambda: ours(terms, own, weights), repeats)  # noqa: B023
            peer_seconds, peer = timed(lambda: brute_force(terms, own, weights), max(1, repeats // 2))  # noqa: B023
            candidates, classes = len(GRID) * len(weights), len(torch.unique(own))
            rows.append(
                {
                    "rows": n,
                    "joint": joint,
                    "classes": classes,
                    "candidates": candidates,
                    "basis": min(n, BASIS),
                    "threads": torch.get_num_threads(),
                    "seconds": seconds,
                    "peer_seconds": peer_seconds,
                    "ratio": peer_seconds / seconds,
                    "floor_seconds": floor_seconds(n, classes, candidates),
                    "ours": quality(cross, expert, labels, n, *chosen),
                    "peer": quality(cross, expert, labels, n, *peer),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="embeddings of an image pair (docs/embeddings.md)")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--rows", type=int, nargs="+", help="samples; default the training split's, and all")
    parser.add_argument("--repeats", type=int, default=5, help="of ours, the peer half as often; medians count")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    source = EmbeddingsFile(path=str(args.data)) if args.data else SyntheticFeatures()
    bundle = source.bundle()
    every = len(samples(bundle)[2])
    train = len(next(iter(bundle[Part("train", "image")].values())))
    sizes = [min(rows, every) for rows in args.rows or (train, every)]
    print(write_json(measure(bundle, sizes, repeats=args.repeats), args.out))


if __name__ == "__main__":
    main()
