"""A feature source that is drawn: two views of the same classes, with what encoders differ in as options."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, check_positive, check_range
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import CROSS_MODAL, TEST, TRAIN, VAL, Part
from krossfuse.core.seeds import derived_generator

EXPERT = "expert"
DIMS = {CROSS_MODAL: 256, EXPERT: 400}
SHARES = {TRAIN: 0.5, VAL: 0.1, TEST: 0.4}

_LATENT = 30
"""Directions in which the classes of a view differ."""


class SyntheticFeatures:
    """Features of a cross-modal encoder and of an image expert that know different things of the same classes.

    Each view has class centres of its own in a latent space, items around them, and noise in every coordinate, so that
    both views together know more than either. The statistics on which a fusion's constants may depend are options.
    Nothing is read, and the same options give the same bits.

    Args:
        items: in all splits together; half of them train, a tenth validate.
        classes: number of classes, equally frequent.
        spread: of the items about their class's centre, in units of the centres' own.
        cone: mean of k_ψ between different images, as far as a common direction makes it, in [0, 1).
        tail: power of each coordinate: 1 leaves it normal, 3 makes its tails heavy.
        decay: of the views' spectra: the i-th direction has i^(−decay) of the first one's size; 0 is isotropic.
        noise: share of the cross-modal view, and of the expert, that knows nothing of the classes.
        split_seed: of everything that is drawn (not the run's seed).

    Raises:
        ConfigError: an impossible value.
    """

    def __init__(
        self,
        *,
        name: str = "synthetic",
        items: int = 1500,
        classes: int = 20,
        spread: float = 1.6,
        cone: float = 0.0,
        tail: float = 1.0,
        decay: float = 0.0,
        noise: tuple[float, float] | list[float] = (0.0, 0.0),
        split_seed: int = 0,
    ) -> None:
        check_positive("data.items", items, integer=True)
        check_positive("data.classes", classes, integer=True)
        if items < 20 * classes:
            raise ConfigError(f"data.items={items} must be {20 * classes} or more: 20 for each of {classes} classes")
        check_positive("data.spread", spread)
        check_range("data.tail", tail, 0.2, 5.0, "it is the power of each coordinate")
        if isinstance(noise, str | float | int) or len(noise) != 2:
            raise ConfigError(f"data.noise={noise!r} must be two shares, of the cross-modal encoder and of the expert")
        for key, value, most in (
            ("cone", cone, 0.99),
            ("decay", decay, 3.0),
            ("noise[0]", noise[0], 1.0),
            ("noise[1]", noise[1], 1.0),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise ConfigError(f"data.{key}={value!r} must be a number from 0 to {most:g}")
        self.name, self.items, self.classes, self.spread = str(name), items, classes, float(spread)
        self.cone, self.tail, self.decay, self.noise = float(cone), float(tail), float(decay), tuple(map(float, noise))
        self.split_seed = split_seed

    def check(self) -> None:
        """Nothing to check: there is no file."""

    @property
    def info(self) -> DatasetInfo:
        """Classes, with one text each that is its centre in the cross-modal view."""
        names = tuple(f"class {i}" for i in range(self.classes))
        texts = Prompts(names, torch.arange(self.classes), ("{}",))
        labels, start = {}, 0
        for split, count in self._counts().items():
            labels[split] = self._labels()[start : start + count]
            start += count
        options = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return DatasetInfo(self.name, options, {"class": LabelSet(names, labels, {"centre": texts})})

    def bundle(self) -> FeatureBundle:
        """Draw the features, float32."""
        info, labels = self.info, self._labels()
        images, texts = {}, torch.empty(0)
        for (role, dim), noise in zip(DIMS.items(), self.noise, strict=True):
            x, centres = self._view(role, dim, labels, noise)
            images[role] = x
            if role == CROSS_MODAL:
                texts = centres
        features: dict[Part, dict[str, Tensor]] = {}
        start = 0
        for split, count in self._counts().items():
            features[Part(split, "image")] = {role: x[start : start + count].float() for role, x in images.items()}
            start += count
        features[Part.prompts("class", "centre")] = {CROSS_MODAL: texts.float()}
        return FeatureBundle(info, "synthetic", features)

    def _counts(self) -> dict[str, int]:
        train, val = (int(self.items * SHARES[split]) for split in (TRAIN, VAL))
        return {TRAIN: train, VAL: val, TEST: self.items - train - val}

    def _labels(self) -> Tensor:
        return torch.randperm(self.items, generator=derived_generator(self.split_seed, "labels")) % self.classes

    def _view(self, role: str, dim: int, labels: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        """Return one view of the items, and of the class centres, (n, dim) and (classes, dim), float64."""
        generator = derived_generator(self.split_seed, "view", role)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        centres, basis = normal(self.classes, _LATENT), normal(_LATENT, dim) / _LATENT**0.5
        items = centres[labels] + self.spread * normal(len(labels), _LATENT)
        rotation = torch.linalg.qr(normal(dim, dim))[0] if self.decay else None
        sizes = torch.arange(1, dim + 1).double() ** -self.decay
        scale = (1 + self.spread**2) ** 0.5
        common = normalize(normal(1, dim), dim=1)
        views = []
        for x, size in ((items @ basis, scale), (centres @ basis, 1.0)):
            x = (1 - noise) * x + max(noise, 0.4) * size * normal(len(x), dim)
            if rotation is not None:
                x = x @ rotation * sizes
            x = normalize(x.sign() * x.abs() ** self.tail, dim=1)
            views.append(x + (self.cone / (1 - self.cone)) ** 0.5 * common if role == CROSS_MODAL else x)
        return views[0], views[1]
