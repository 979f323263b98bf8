"""One mechanism a file; all of them by name."""

from __future__ import annotations

from typing import Any

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.privacy.mechanism import Mechanism
from krossfuse.privacy.mechanisms.additive import Gaussian, Laplace
from krossfuse.privacy.mechanisms.cepam import Cepam
from krossfuse.privacy.mechanisms.none import Plain
from krossfuse.privacy.mechanisms.released import Released
from krossfuse.privacy.mechanisms.sdq import SDQ, GaussianSDQ

MECHANISMS: dict[str, type[Mechanism]] = {
    kind.name: kind for kind in (Plain, Gaussian, Laplace, SDQ, GaussianSDQ, Cepam, Released)
}


def make_mechanism(name: str, **options: Any) -> Mechanism:
    """Return the mechanism called ``name``.

    Args:
        name: one of :data:`MECHANISMS`.
        options: of its class (``sigma``, ``step``, ``law``, ``lattice``).

    Raises:
        ConfigError: an unknown name or option, or an impossible value.
    """
    kind = MECHANISMS[check_choice("mechanism", name, MECHANISMS)]
    try:
        return kind(**options)
    except TypeError as error:
        raise ConfigError(f"mechanism {name!r}: {error}") from error


__all__ = [
    "MECHANISMS",
    "SDQ",
    "Cepam",
    "Gaussian",
    "GaussianSDQ",
    "Laplace",
    "Mechanism",
    "Plain",
    "Released",
    "make_mechanism",
]
