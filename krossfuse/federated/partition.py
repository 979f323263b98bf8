"""Who holds which records: partitions of a training set over clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.seeds import derive_seed

Rows = NDArray[np.int64]
PARTITIONS = ("iid", "dirichlet", "by_class", "resampled")
_OPTIONS = {
    "iid": ("records_per_client",),
    "dirichlet": ("alpha",),
    "by_class": ("classes_per_client",),
    "resampled": ("records_per_client",),
}
_REDRAWS = 200


@dataclass(frozen=True, kw_only=True)
class Partition:
    """How records are shared out, without the records: :func:`partition`'s options.

    Attributes:
        kind: of :data:`PARTITIONS`.
        alpha: of ``dirichlet``; None is .5.
        classes_per_client: of ``by_class``; None is 2.
        records_per_client: of ``iid`` and ``resampled``.

    Raises:
        ConfigError: an unknown kind, an impossible number, or an option that the kind does not have.
    """

    kind: str = "iid"
    alpha: float | None = None
    classes_per_client: int | None = None
    records_per_client: int | None = None

    def __post_init__(self) -> None:
        check_choice("partition.kind", self.kind, PARTITIONS)
        for name, value in self.options.items():
            if name not in _OPTIONS[self.kind]:
                raise ConfigError(
                    f"partition.{name}={value!r}: partition.kind={self.kind!r} has no such option; it has "
                    f"{list(_OPTIONS[self.kind])}"
                )
            check_positive(f"partition.{name}", value, integer=name != "alpha")

    @property
    def options(self) -> dict[str, Any]:
        """The options that are set."""
        names = ("alpha", "classes_per_client", "records_per_client")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def check(self, records: int, clients: int) -> None:
        """Check, before anything is drawn, that there are records for all clients.

        Raises:
            DataError: there are not.
        """
        if records == 0:
            raise DataError("there are no records to share out")
        each = self.records_per_client
        if self.kind == "resampled":
            if each is not None and each > records:
                raise DataError(f"records_per_client={each} of {records} records: a client draws without replacement")
            return
        if clients > records:
            raise DataError(
                f"{clients} clients for {records} records: somebody would have none; fewer clients, or "
                "partition='resampled'"
            )
        if each is not None and each * clients > records:
            raise DataError(
                f"{clients} clients with {each} records each need {each * clients} records; there are {records}"
            )

    def __call__(self, labels: ArrayLike, clients: int, *, seed: int = 0) -> list[Rows]:
        """Return the rows of every client: see :func:`partition`."""
        return partition(labels, clients, kind=self.kind, seed=seed, **self.options)


def partition(
    labels: ArrayLike,
    clients: int,
    *,
    kind: str = "iid",
    seed: int = 0,
    alpha: float = 0.5,
    classes_per_client: int = 2,
    records_per_client: int | None = None,
) -> list[Rows]:
    """Return the rows of every client.

    Args:
        labels: (n,) class of each record; for ``iid`` and ``resampled`` only its length counts.
        clients: K.
        kind: ``iid``: random rows, as many for each (±1). ``dirichlet``: every class is shared out in proportions drawn
            from Dirichlet(alpha) (Hsu, Qi and Brown, arXiv 1909.06335). ``by_class``: rows sorted by class are dealt
            out in ``classes_per_client`` pieces to each client (McMahan et al., arXiv 1602.05629). ``resampled``: every
            client draws its own rows, so that clients share records; privacy figures for records are then void.
        seed: of the draws.
        alpha: of ``dirichlet``; small is uneven.
        classes_per_client: pieces a client, of ``by_class``.
        records_per_client: of ``iid``, at most so many each (the rest is unused); of ``resampled``, exactly so many.

    Returns:
        K sorted arrays of rows.

    Raises:
        ConfigError: an unknown kind or an impossible number.
        DataError: more clients than records, a client without records, or too few records.
    """
    check_choice("partition", kind, PARTITIONS)
    check_positive("clients", clients, integer=True)
    targets = np.asarray(labels)
    n = len(targets)
    if records_per_client is not None:
        check_positive("records_per_client", records_per_client, integer=True)
    Partition(kind=kind, records_per_client=records_per_client if kind in ("iid", "resampled") else None).check(
        n, clients
    )
    rng = np.random.Generator(np.random.Philox(derive_seed(seed, "partition", kind)))
    if kind == "resampled":
        size = records_per_client or max(1, n // clients)
        return [np.sort(rng.choice(n, size, replace=False)) for _ in range(clients)]
    if kind == "iid":
        return _iid(rng, n, clients, records_per_client)
    if targets.ndim != 1:
        raise ConfigError(f"partition={kind!r} needs one class a record; these are multilabel: choose partition='iid'")
    if (targets < 0).any():
        raise DataError(f"{int((targets < 0).sum())} records have no class; partition={kind!r} needs one each")
    if kind == "dirichlet":
        check_positive("alpha", alpha)
        return _dirichlet(rng, targets, clients, alpha)
    check_positive("classes_per_client", classes_per_client, integer=True)
    return _by_class(rng, targets, clients, classes_per_client)


def _iid(rng: np.random.Generator, n: int, clients: int, most: int | None) -> list[Rows]:
    rows = rng.permutation(n)
    return [np.sort(part[:most]) for part in np.array_split(rows, clients)]


def _dirichlet(rng: np.random.Generator, targets: NDArray, clients: int, alpha: float) -> list[Rows]:
    for _ in range(_REDRAWS):
        parts: list[list[Rows]] = [[] for _ in range(clients)]
        for label in np.unique(targets):
            rows = rng.permutation(np.flatnonzero(targets == label))
            shares = rng.dirichlet(np.full(clients, alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        joined = [np.sort(np.concatenate(part)) for part in parts]
        if all(len(part) for part in joined):
            return joined
    empty = sum(not len(part) for part in joined)
    raise DataError(
        f"partition='dirichlet' with alpha={alpha:g} leaves clients without records ({empty} of {clients} in the last "
        f"of {_REDRAWS} draws, {len(targets)} records); a larger alpha, or fewer clients"
    )


def _by_class(rng: np.random.Generator, targets: NDArray, clients: int, pieces: int) -> list[Rows]:
    if clients * pieces > len(targets):
        raise DataError(f"{clients} clients with {pieces} pieces each need as many records; there are {len(targets)}")
    rows = rng.permutation(len(targets))
    rows = rows[np.argsort(targets[rows], kind="stable")]
    shards = np.array_split(rows, clients * pieces)
    dealt = rng.permutation(len(shards)).reshape(clients, pieces)
    return [np.sort(np.concatenate([shards[i] for i in hand])) for hand in dealt]


def check_parts(parts: Sequence[Rows], n: int) -> None:
    """Check that every client has records and every row exists.

    Raises:
        DataError: there is no client, a client has no record, or a row is beyond the data.
    """
    if not parts:
        raise DataError("there are no clients")
    for client, rows in enumerate(parts):
        if not len(rows):
            raise DataError(f"client {client} of {len(parts)} has no records")
        if rows.min() < 0 or rows.max() >= n:
            raise DataError(f"client {client} has row {int(rows.max())}; there are {n} records")
