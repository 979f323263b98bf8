"""Error and speed of every sketch against the published formula: ``python -m experiments.benchmarks.fusion``.

Features: OpenMoji under the bundled pair, from the feature store (extracted on the first run). Data-dependent sketches
are fitted on the training images; all errors are measured on the test split, which they have not seen.

* The published formula (arXiv 2506.08645, algorithms 1 and 2; docs/mathematics.md, sections 3 and 4), as it is written:
  float32, features normalised, the symmetrised expert [√(C/d)·1 + φ, √(C/d)·1 − φ]/√2 built 2d wide, two dense matrix
  products, elementwise product, 1/√l once. It runs in chunks of the same number of rows as ours, and whole; the faster
  counts.
* Ours: ``FusionMethod.encode``, input checks included, on the same rows.

Both encode the same rows (the test images, repeated). In every round each sketch is timed right after the published
formula of its dimension; ``speed_ratio`` is the median over rounds of the ratio of the two, ``samples_per_second`` is
from the median. ``error_ratio`` divides the mean ``rmse_image_image`` over the seeds by the published formula's over
the same seeds at the same dimension. Errors are over the exact kernel's root mean square; image-image ones over pairs
of different images. ``*_to_3000`` compare with the published formula at 3000 dimensions whatever the row's own (speed:
data-dependent sketches only, timed in the same way). ``dim`` is the total dimension. ``published`` is the alignment of
the published formula, and of sketches that fold its symmetrisation.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.benchmarks.common import write_json
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import KrossFuseError
from krossfuse.core.parts import CROSS_MODAL, TEST, TRAIN, Part
from krossfuse.fusion.base import Features, FusionMethod, InputSpec
from krossfuse.fusion.methods import CHUNK_ROWS, RPKrossFuse
from krossfuse.fusion.named import SKETCHES
from krossfuse.fusion.sketches import RandomSketch

PUBLISHED = "published_formula"
REFERENCE_DIM = 3000
NOT_FOR_COSINE = ("joint_fourier", "kronecker")
"""Sketches of random Fourier features only, and the product itself."""


class PublishedFormula:
    """The published map, dense and unfolded."""

    def __init__(self, *, inputs: InputSpec, dim: int, C: float = 1.0, seed: int = 0) -> None:
        assert inputs.cross_modal is not None
        (self.expert,) = inputs.image_experts
        self.dim, self.C, self.width = dim, C, inputs.image_experts[self.expert]
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = (
            (torch.rand(dim, d, generator=generator) * 2 - 1) * math.sqrt(3)
            for d in (inputs.cross_modal, 2 * self.width)
        )

    def __call__(self, features: Features, chunk: int | None = None) -> Tensor:
        """Encode images, or texts where there is no expert."""
        rows = len(features[CROSS_MODAL])
        if chunk is None or rows <= chunk:
            return self._encode(features)
        out = torch.empty(rows, self.dim)
        for start in range(0, rows, chunk):
            out[start : start + chunk] = self._encode({r: x[start : start + chunk] for r, x in features.items()})
        return out

    def _encode(self, features: Features) -> Tensor:
        cross = torch.nn.functional.normalize(features[CROSS_MODAL], dim=1)
        offset = math.sqrt(self.C / self.width)
        if self.expert in features:
            phi = torch.nn.functional.normalize(features[self.expert], dim=1)
            symmetric = torch.cat([offset + phi, offset - phi], dim=1) / math.sqrt(2)
        else:
            symmetric = torch.full((len(cross), 2 * self.width), offset / math.sqrt(2))
        return (cross @ self.first.T) * (symmetric @ self.second.T) / math.sqrt(self.dim)

    @property
    def bytes(self) -> int:
        """Bytes of both matrices."""
        return (self.first.numel() + self.second.numel()) * 4


@dataclass(frozen=True)
class Data:
    """What is encoded: images to fit on, images and texts to measure on."""

    inputs: InputSpec
    fit: Features
    image: Features
    text: Features


@dataclass
class Entry:
    """One row in the making: an encoder of one dimension, its errors and its seconds a round."""

    sketch: str
    alignment: str
    dim: int
    encode: Callable[[Features], Tensor]
    bytes: int
    errors: tuple[float, float]
    seconds: list[float] = field(default_factory=list)
    beside: dict[int, list[float]] = field(default_factory=dict)
    """By dimension of the published formula, its seconds right before each of ``seconds``."""


def openmoji(limit: int | None) -> FeatureBundle:
    """Return OpenMoji's features under the bundled image pair, from the store."""
    from krossfuse.core.trainers import TrainerFactory
    from krossfuse.data.openmoji import OpenMoji
    from krossfuse.encoders.bundled import EfficientNetLite0, OpenMojiCLIP
    from krossfuse.encoders.pair import Pair
    from krossfuse.features.extract import extract
    from krossfuse.features.stores import default_store_root, open_store

    experts = {"efficientnet_lite0": EfficientNetLite0()}
    pair = Pair(name="openmoji_image", cross_modal=OpenMojiCLIP(), image_experts=experts)
    store = open_store(default_store_root())
    return extract(OpenMoji(limit=limit), pair, store, trainers=TrainerFactory(), progress=False)


def data_of(bundle: FeatureBundle) -> Data:
    """Return the parts of a bundle that are fitted and measured on, in memory."""
    image, text = bundle[Part(TEST, "image")], bundle[Part(TEST, "text")]
    experts = {role: x.shape[1] for role, x in image.items() if role != CROSS_MODAL}
    return Data(
        InputSpec(image[CROSS_MODAL].shape[1], experts),
        *({role: x.clone() for role, x in part.items()} for part in (bundle[Part(TRAIN, "image")], image)),
        {CROSS_MODAL: text[CROSS_MODAL].clone()},
    )


def relative_rmse(approximate: Tensor, exact: Tensor, *, off_diagonal: bool) -> float:
    """Return the root mean square error over the exact kernel's root mean square."""
    keep = ~torch.eye(len(exact), dtype=torch.bool) if off_diagonal else torch.ones_like(exact, dtype=torch.bool)
    error, scale = (approximate - exact)[keep].double(), exact[keep].double()
    return float(error.square().mean().sqrt() / scale.square().mean().sqrt())


def errors_of(data: Data, image: Tensor, text: Tensor, exact: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Return the image-image and the image-text error."""
    return (
        relative_rmse(image @ image.T, exact[0], off_diagonal=True),
        relative_rmse(image @ text.T, exact[1], off_diagonal=False),
    )


def mean_errors(draws: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the means over the draws."""
    return statistics.fmean(d[0] for d in draws), statistics.fmean(d[1] for d in draws)


def published_entry(data: Data, dim: int, seeds: int, exact: tuple[Tensor, Tensor], timed: Features) -> Entry:
    """Return the published formula's row, in the faster of its two chunkings."""
    draws = [PublishedFormula(inputs=data.inputs, dim=dim, seed=seed) for seed in range(seeds)]
    errors = mean_errors([errors_of(data, draw(data.image), draw(data.text), exact) for draw in draws])
    first = draws[0]
    trials = {chunk: min(clock(partial(first, chunk=chunk), timed) for _ in range(3)) for chunk in (CHUNK_ROWS, None)}
    best = min(trials, key=lambda chunk: trials[chunk])
    return Entry(PUBLISHED, "published", dim, partial(first, chunk=best), first.bytes, errors)


def sketch_entry(data: Data, sketch: str, alignment: str, dim: int, seeds: int, exact: tuple[Tensor, Tensor]) -> Entry:
    """Return a sketch's row, fitted, with its errors."""

    def make(seed: int) -> FusionMethod:
        method = RPKrossFuse(inputs=data.inputs, dim=dim, alignment=alignment, sketch=SKETCHES[sketch], seed=seed)
        return method.fit(image=data.fit)

    first = make(0)
    methods = [first] if first.deterministic else [first, *(make(seed) for seed in range(1, seeds))]
    errors = mean_errors(
        [errors_of(data, m.encode("image", data.image), m.encode("text", data.text), exact) for m in methods]
    )
    size = sum(tensor.numel() * tensor.element_size() for tensor in first.state_dict().values())
    return Entry(sketch, alignment, dim, partial(first.encode, "image"), size, errors)


def clock(encode: Callable[[Features], Tensor], rows: Features) -> float:
    """Return the seconds that one encoding takes."""
    start = time.perf_counter()
    encode(rows)
    return time.perf_counter() - start


@torch.no_grad()
def measure(
    data: Data,
    *,
    dims: Sequence[int],
    spectral_dim: int,
    seeds: int,
    repeats: int,
    rows: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure every sketch at every dimension; return the rows of the report.

    Args:
        data: features.
        dims: total dimensions.
        spectral_dim: a further dimension, for the spectral sketch and the published formula.
        seeds: draws over which errors of random sketches are averaged.
        repeats: rounds of the timing.
        rows: how many rows are encoded in a timing.
        say: called with what is being done or left out.
    """
    reference = RPKrossFuse(inputs=data.inputs, dim=data.inputs.cross_modal + 1, alignment="exact")  # type: ignore[operator]
    exact = tuple(reference.kernel("image", data.image, m, f) for m, f in (("image", data.image), ("text", data.text)))
    n = len(data.image[CROSS_MODAL])
    timed = {role: x.repeat(math.ceil(rows / n), 1)[:rows].contiguous() for role, x in data.image.items()}
    entries: list[Entry] = []
    for dim in sorted({*dims, spectral_dim}):
        say(f"{dim} dimensions")
        entries.append(published_entry(data, dim, seeds, exact, timed))
        for sketch, cls in SKETCHES.items():
            if sketch in NOT_FOR_COSINE or (dim not in dims and sketch != "spectral"):
                continue
            alignments = ("published", "offset", "exact") if issubclass(cls, RandomSketch) else ("exact",)
            for alignment in alignments:
                try:
                    entries.append(sketch_entry(data, sketch, alignment, dim, seeds, exact))
                except KrossFuseError as error:
                    say(f"left out: {sketch}, {alignment}, {dim}: {error}")
    say(f"timing {len(entries)} encoders, {repeats} rounds of {rows} rows")
    published = {entry.dim: entry for entry in entries if entry.sketch == PUBLISHED}
    for entry in entries:
        fitted = entry.sketch in SKETCHES and SKETCHES[entry.sketch].needs_fit
        partners = {entry.dim, REFERENCE_DIM} & set(published) if fitted else {entry.dim}
        entry.beside = {} if entry.sketch == PUBLISHED else {dim: [] for dim in sorted(partners)}
    for round_ in range(-1, repeats):
        for entry in entries:
            before = {dim: clock(published[dim].encode, timed) for dim in entry.beside}
            seconds = clock(entry.encode, timed)
            if round_ >= 0:  # the first round warms up
                entry.seconds.append(seconds)
                for dim, value in before.items():
                    entry.beside[dim].append(value)
    return [report(entry, published, rows) for entry in entries]


def report(entry: Entry, published: Mapping[int, Entry], rows: int) -> dict[str, Any]:
    """Return the row of one encoder."""
    row: dict[str, Any] = {
        "sketch": entry.sketch,
        "alignment": entry.alignment,
        "dim": entry.dim,
        "rmse_image_image": entry.errors[0],
        "rmse_image_text": entry.errors[1],
        "samples_per_second": rows / statistics.median(entry.seconds),
        "bytes": entry.bytes,
    }
    for suffix, dim in (("", entry.dim), ("_to_3000", REFERENCE_DIM)):
        if dim in published:
            row[f"error_ratio{suffix}"] = entry.errors[0] / published[dim].errors[0]
        if entry is published.get(dim):
            row[f"speed_ratio{suffix}"] = 1.0
        if dim in entry.beside:
            ratios = [b / a for a, b in zip(entry.seconds, entry.beside[dim], strict=True)]
            row[f"speed_ratio{suffix}"] = statistics.median(ratios)
    return row


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the rows as a table."""
    table = Table(title="Sketches against the published formula at the same dimension")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for key in keys:
        table.add_column(key.replace("_", " "), justify="left" if key in ("sketch", "alignment") else "right")
    for row in rows:
        table.add_row(*(_text(row.get(key)) for key in keys))
    console.print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON list")
    parser.add_argument("--dims", type=int, nargs="+", default=[500, 1000, REFERENCE_DIM])
    parser.add_argument("--spectral-dim", type=int, default=768)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1024, help="rows encoded in a timing")
    parser.add_argument("--limit", type=int, help="items a split, for a trial")
    options = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 180)
    rows = measure(
        data_of(openmoji(options.limit)),
        dims=options.dims,
        spectral_dim=options.spectral_dim,
        seeds=options.seeds,
        repeats=options.repeats,
        rows=options.rows,
        say=console.print,
    )
    console.print(f"threads: {torch.get_num_threads()}, torch {torch.__version__}")
    show(rows, console)
    write_json(rows, options.out)


if __name__ == "__main__":
    main()
