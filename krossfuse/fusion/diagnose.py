"""What an approximation costs on your own features: kernel error, zero-shot agreement, the dimension that you need.

The command ``krossfuse diagnose FILE`` does it for a file of embeddings (:mod:`krossfuse.app.diagnose`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, DimensionError, check_positive
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, TEST, Modality, Part
from krossfuse.fusion.base import Features, FusionMethod, InputSpec
from krossfuse.fusion.fit import fit_method
from krossfuse.fusion.stream import inputs_of, select_roles

LEVEL = 0.95
MEASUREMENTS = 24
"""Dimensions measured at most in the search for the smallest one."""


class Interval(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found.

    Errors are relative: root mean square error over the exact kernel's root mean square.

    Attributes:
        config: the method's description.
        rmse_image_image: over pairs of different images; None where the method has no image side.
        rmse_text_text: over pairs of different texts; None where it has no text side.
        rmse_image_text: over all pairs of an image and a text; None unless it has both sides.
        zero_shot_agreement: share of images whose nearest text is the cross-modal encoder's; 1 less this is the loss.
        interval_over: what the intervals are over: ``seeds`` or, for a deterministic method, ``items``.
        n_images, n_texts: how many items were compared.
        target: the error asked for, of the modality that has an expert.
        smallest_dim: the smallest total dimension found that meets it, within 1%; None where none was found.
        smallest_dim_error: the error measured there.
    """

    config: dict[str, Any]
    rmse_image_image: Interval | None
    rmse_text_text: Interval | None
    rmse_image_text: Interval | None
    zero_shot_agreement: Interval | None
    interval_over: str
    n_images: int
    n_texts: int
    target: float | None = None
    smallest_dim: int | None = None
    smallest_dim_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values; an interval is ``[mean, low, high]``."""
        return {key: list(v) if isinstance(v, Interval) else v for key, v in asdict(self).items()}

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of every figure, for a table."""
        figures = [
            ("relative RMSE, image-image", self.rmse_image_image),
            ("relative RMSE, text-text", self.rmse_text_text),
            ("relative RMSE, image-text", self.rmse_image_text),
            ("zero-shot agreement", self.zero_shot_agreement),
        ]
        rows = [(name, str(value)) for name, value in figures if value is not None]
        if self.target is not None:
            found = f"{self.smallest_dim} ({self.smallest_dim_error:.4g})" if self.smallest_dim else "none found"
            rows.append((f"smallest dim for error {self.target:g}", found))
        return rows


def diagnose(
    features: FeatureBundle | Mapping[Modality, Features],
    method: Callable[..., FusionMethod],
    *,
    seeds: int = 5,
    target: float | None = None,
    max_rows: int = 1000,
    max_dim: int = 16_384,
    label_set: str | None = None,
) -> Diagnosis:
    """Measure a configuration against its exact kernel on given features.

    Args:
        features: a bundle (fitted on its training split, measured on its test split and, where that has no texts, on
            its class texts), or features by modality and role (every other row is fitted on, the rest measured).
        method: makes the method from ``inputs=``, ``seed=`` and, in the search, ``dim=``: a class or a partial.
        seeds: number of draws, from seed 0 on; a deterministic method needs one.
        target: relative kernel error, of the modality with an expert, whose smallest dimension is searched for.
        max_rows: items of each modality compared at most.
        max_dim: largest dimension tried in the search.
        label_set: of a bundle, for ``C="cv"``.

    Raises:
        ConfigError: a bad value, or the method has no exact kernel.
        DataError: the features do not fit the method, or there are too few.

    Examples:
        >>> from functools import partial
        >>> from krossfuse.fusion.methods import RPKrossFuse
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = {r: torch.randn(60, d, generator=generator) for r, d in {"cross_modal": 8, "dino": 10}.items()}
        >>> report = diagnose({"image": x}, partial(RPKrossFuse, dim=40, alignment="exact"), seeds=3)
        >>> report.config["dim"], 0 < report.rmse_image_image.mean < 1
        (40, True)
    """
    check_positive("seeds", seeds, integer=True)
    check_positive("max_rows", max_rows, integer=True)
    check_positive("max_dim", max_dim, integer=True)
    if target is not None:
        check_positive("target", target)
    if not isinstance(features, FeatureBundle) and not any(features.values()):
        raise DataError("there are no features to measure on; give them by modality and role")
    trial = _Trial(features, method, max_rows, label_set)
    runs = [trial.run(0, None)]
    if not runs[0].deterministic:
        runs += [trial.run(seed, None) for seed in range(1, seeds)]
    first = runs[0]
    found: tuple[int, float] | None = None
    if target is not None:
        found = _search(trial, first, seeds, target, max_dim)
    return Diagnosis(
        config=first.config,
        rmse_image_image=_interval([r.errors.get(("image", "image")) for r in runs]),
        rmse_text_text=_interval([r.errors.get(("text", "text")) for r in runs]),
        rmse_image_text=_interval([r.errors.get(("image", "text")) for r in runs]),
        zero_shot_agreement=_interval([r.agreement for r in runs]),
        interval_over="seeds" if len(runs) > 1 else "items",
        n_images=trial.count("image"),
        n_texts=trial.count("text"),
        target=target,
        smallest_dim=found[0] if found else None,
        smallest_dim_error=found[1] if found else None,
    )


class _Ratio(NamedTuple):
    """Mean squares, item by item, whose overall ratio (and its root) is a figure."""

    above: Tensor
    below: Tensor
    root: bool

    def value(self, rows: Tensor | None = None) -> float:
        above, below = (x if rows is None else x[rows] for x in (self.above, self.below))
        ratio = float(above.sum() / below.sum())
        return math.sqrt(ratio) if self.root else ratio


@dataclass(frozen=True)
class _Run:
    """What one draw of the method gave."""

    config: dict[str, Any]
    deterministic: bool
    modalities: tuple[Modality, ...]
    errors: dict[tuple[Modality, Modality], _Ratio]
    agreement: _Ratio | None


class _Trial:
    """Features to fit and to measure on, and the exact kernels, which no draw changes."""

    def __init__(
        self,
        features: FeatureBundle | Mapping[Modality, Features],
        method: Callable[..., FusionMethod],
        max_rows: int,
        label_set: str | None,
    ) -> None:
        self.features, self.method, self.label_set = features, method, label_set
        if isinstance(features, FeatureBundle):
            self.inputs = inputs_of(features)
            given = {m: _measured(features, m) for m in MODALITIES}
        else:
            self.inputs = _inputs_of_features(features)
            given = {m: {r: x[::2] for r, x in f.items()} for m, f in features.items()}
        self.measured: dict[Modality, Features] = {m: _sample(f, max_rows) for m, f in given.items() if f}

    def count(self, modality: Modality) -> int:
        """Return how many items of a modality are compared."""
        return len(next(iter(self.measured[modality].values()))) if modality in self.measured else 0

    def run(self, seed: int, dim: int | None) -> _Run:
        """Draw, fit and measure once."""
        method = self.method(inputs=self.inputs, seed=seed, **({} if dim is None else {"dim": dim}))
        if isinstance(self.features, FeatureBundle):
            fit_method(method, self.features, label_set=self.label_set)
        else:
            rest = {m: {r: x[1::2] for r, x in f.items()} for m, f in self.features.items() if m in method.modalities}
            method.fit(image=rest.get("image"), text=rest.get("text"))
        sides = [m for m in method.modalities if m in self.measured]
        given = {m: select_roles(method, m, self.measured[m], f"{m} features") for m in sides}
        with torch.no_grad():
            fused = {m: method.encode(m, given[m]).double().cpu() for m in sides}
        errors = {}
        for i, a in enumerate(sides):
            for b in sides[i:]:
                with torch.no_grad():
                    exact = method.kernel(a, given[a], b, given[b])
                if exact is None:
                    raise ConfigError(f"{type(method).__name__} has no exact kernel to be compared with")
                errors[a, b] = _errors(fused[a] @ fused[b].T, exact.double().cpu(), off_diagonal=a == b)
        agreement = None
        if len(sides) == 2 and self.inputs.cross_modal is not None:
            own = {m: torch.nn.functional.normalize(given[m][CROSS_MODAL].double(), dim=1).cpu() for m in sides}
            same = (fused["image"] @ fused["text"].T).argmax(1) == (own["image"] @ own["text"].T).argmax(1)
            agreement = _Ratio(same.double(), torch.ones_like(same, dtype=torch.float64), root=False)
        return _Run(method.describe(), method.deterministic, tuple(sides), errors, agreement)


def _errors(approximate: Tensor, exact: Tensor, *, off_diagonal: bool) -> _Ratio:
    squares = [(approximate - exact).square(), exact.square()]
    if off_diagonal:
        if len(exact) < 2:
            raise DataError("a kernel error needs two samples or more to compare")
        for square in squares:
            square.fill_diagonal_(0)
    return _Ratio(squares[0].sum(1), squares[1].sum(1), root=True)


def _interval(ratios: Sequence[_Ratio | None]) -> Interval | None:
    """Return the mean with Student's interval over draws or, of one draw, the bootstrap's over items."""
    present = [ratio for ratio in ratios if ratio is not None]
    if not present:
        return None
    if len(present) == 1:
        generator = torch.Generator().manual_seed(0)
        n = len(present[0].above)
        draws = [present[0].value(torch.randint(0, n, (n,), generator=generator)) for _ in range(400)]
        low, high = torch.tensor(draws, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        return Interval(present[0].value(), low, high)
    from scipy.stats import t

    values = torch.tensor([ratio.value() for ratio in present], dtype=torch.float64)
    half = float(t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * float(values.std()) / math.sqrt(len(values))
    return Interval(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half)


def _search(trial: _Trial, first: _Run, seeds: int, target: float, max_dim: int) -> tuple[int, float] | None:
    """Find the smallest dimension whose mean error meets the target.

    The squared error of a random sketch of l dimensions is a constant over l, which gives the first guesses; each is
    measured, and bisection closes the bracket to 1%. Dimensions that the method refuses are outside it.
    """
    side: Modality = "image" if ("image", "image") in first.errors and trial.inputs.image_experts else "text"
    if (side, side) not in first.errors:
        side = first.modalities[0]
    runs = 1 if first.deterministic else seeds
    # With exact alignment the cross-modal map takes its own dimensions, which have no error.
    exact = first.config.get("alignment") == "exact"
    base = (trial.inputs.cross_modal or 0) if exact else 0
    sides = bool(trial.inputs.image_experts) + bool(trial.inputs.text_experts)

    def error(dim: int) -> float:
        ratios = [trial.run(seed, dim).errors[side, side] for seed in range(runs)]
        return sum(ratio.value() for ratio in ratios) / runs

    failing, meeting, best = base + (sides - 1 if exact else 0), max_dim + 1, None
    dim = min(int(first.config["dim"]), max_dim)
    for _ in range(MEASUREMENTS):
        try:
            found = error(dim)
        except (DimensionError, DataError):
            # Above the smallest dimension, so larger than the product space, or than the directions of the samples.
            meeting, found = dim, math.nan
        if found <= target:
            meeting, best = dim, (dim, found)
        elif found > target:
            failing = dim
        if meeting - failing <= max(1, meeting // 100):
            break
        middle = base + math.isqrt(max(1, failing - base) * (meeting - base))
        guess = base + math.ceil((dim - base) * (found / target) ** 2) if math.isfinite(found) else middle
        dim = guess if failing < guess < meeting else middle
        dim = min(max(dim, failing + 1), meeting - 1)
    return best


def _measured(bundle: FeatureBundle, modality: Modality) -> Features:
    part = Part(TEST, modality)
    if part in bundle:
        return bundle[part]
    prompts = sorted(p for p in bundle.features if p.split.startswith("prompts/") and p.modality == modality)
    return bundle[prompts[0]] if prompts else {}


def _inputs_of_features(features: Mapping[Modality, Features]) -> InputSpec:
    experts = {m: {r: x.shape[1] for r, x in f.items() if r != CROSS_MODAL} for m, f in features.items()}
    cross = {x.shape[1] for f in features.values() for r, x in f.items() if r == CROSS_MODAL}
    if len(cross) > 1:
        raise DataError(f"the cross-modal features have {sorted(cross)} dimensions; they must share one space")
    return InputSpec(cross.pop() if cross else None, experts.get("image", {}), experts.get("text", {}))


def _sample(features: Features, max_rows: int) -> Features:
    n = len(next(iter(features.values())))
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:max_rows].sort().values
    return {role: x[rows] for role, x in features.items()}
