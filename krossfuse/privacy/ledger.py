"""Every client's account: what the noise of those who answered was worth to each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from krossfuse.core.errors import DataError, check_positive
from krossfuse.privacy.accountant import Accountant, Method, Unit


class Ledger:
    """One accountant a client.

    The sum of a round carries noise √(Σσ_k²) over the clients whose messages came; for client k it is worth
    √(Σσ_k²)/C_k. Dropouts lower it; what the server adds counts.

    Args:
        clips: C_k by client.
        unit: of privacy.
        method: ``pld`` or ``rdp``.
        rates: chance that a client's unit is drawn in a round, one a client (record sampling, or Poisson sampling of
            clients); 1 for none.
        population: clients, or records, for the warning on δ.
    """

    def __init__(
        self,
        clips: Sequence[float],
        *,
        unit: Unit = "client",
        method: Method = "pld",
        rates: Sequence[float] | None = None,
        population: int | None = None,
    ) -> None:
        for c in clips:
            check_positive("clip", float(c))
        self.clips = [float(c) for c in clips]
        self.rates = [1.0] * len(self.clips) if rates is None else [float(rate) for rate in rates]
        if len(self.rates) != len(self.clips):
            raise DataError(f"{len(self.rates)} sampling rates for {len(self.clips)} clients")
        self.unit, self.method = unit, method
        self.accounts = [Accountant(unit, method=method, population=population) for _ in self.clips]

    def step(
        self,
        stds: Mapping[int, float],
        *,
        law: str = "gaussian",
        server_std: float = 0.0,
        charged: Iterable[int] | None = None,
    ) -> None:
        """Charge one round.

        Args:
            stds: σ_k by client, of those whose messages are in the sum.
            law: of the noise; ``none`` protects nobody.
            server_std: standard deviation of Gaussian noise that the server adds to the sum.
            charged: whom; all whose data may be in the sum. Those in ``stds`` unless said: with secret (Poisson)
                sampling it is everybody, drawn or not.
        """
        variance = sum(std * std for std in stds.values()) + server_std**2
        for client in sorted(stds if charged is None else charged):
            own = stds.get(client, 0.0) if law == "laplace" else math.sqrt(variance)
            self.accounts[client].step(
                noise_std=0.0 if law == "none" else own,
                clip=self.clips[client],
                rate=self.rates[client],
                law="gaussian" if law == "none" else law,
            )

    def epsilons(self, delta: float, *, method: Method | None = None) -> list[float]:
        """Return every client's ε at δ so far."""
        return [account.epsilon(delta, method=method) for account in self.accounts]

    def state(self) -> list[dict[str, Any]]:
        """Return what has been spent as a JSON-able list."""
        return [account.state() for account in self.accounts]

    def load_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            DataError: it is of another number of clients or another unit.
        """
        if len(state) != len(self.accounts):
            raise DataError(f"the saved accounts are of {len(state)} clients; there are {len(self.accounts)}")
        for account, saved in zip(self.accounts, state, strict=True):
            account.load_state(saved)
