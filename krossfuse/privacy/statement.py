"""What a result may claim, in words: no ε without its δ, its rounds and its unit."""

from __future__ import annotations

import math

from krossfuse.privacy.accountant import Method, Unit

_UNITS = {
    "client": "whether a client's update enters the sum or is zero",
    "client_replace": "which of any two updates a client contributes",
    "record": "which of any two values one record of a client has",
}


def privacy_statement(
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    clients: int,
    unit: Unit = "client",
    method: Method = "pld",
    law: str = "gaussian",
    sigma: float = 0.0,
    clip: float | None = None,
    rate: float = 1.0,
    mechanism: str = "cepam",
) -> str:
    """Return the statement that goes with a result.

    Args:
        epsilon: the largest of any client, over all rounds; infinite where nothing is protected.
        delta: its δ.
        rounds: T.
        clients: K.
        unit: of privacy.
        method: of accounting.
        law: of the noise; ``none`` for none.
        sigma: standard deviation of one client's noise.
        clip: bound on the whole update, if any.
        rate: chance to be drawn in a round, if it is secret.
        mechanism: by name.
    """
    if law == "none" or not math.isfinite(epsilon):
        return (
            f"Nothing is protected: mechanism {mechanism!r} adds no noise that hides an update"
            + ("" if law == "none" else " in every round")
            + f" ({clients} clients, {rounds} rounds)."
        )
    norm = "L1" if law == "laplace" else "L2"
    noise = (
        f"each client's own Laplace noise (standard deviation {sigma:g})"
        if law == "laplace"
        else f"the Gaussian noise of the sum (standard deviation {sigma:g} a client)"
    )
    sampled = f" Each unit is drawn with chance {rate:.4g} a round; who is drawn must stay secret." if rate < 1 else ""
    codeword = (
        " NOT covered: the messages themselves and their LENGTHS, which depend on the update (pad them to fixed sizes "
        "where traffic can be seen), and the seed shared by a client and the server, which must stay secret: whoever "
        "has it reads more than the noisy update. Philox is a statistical generator, no cipher."
        if mechanism in ("cepam", "gaussian_sdq")
        else " NOT covered: the single messages, which carry one client's noise alone."
    )
    return (
        f"({epsilon:.4g}, {delta:g})-differential privacy over all {rounds} rounds together, at "
        f"{unit.split('_')[0]} level: it hides {_UNITS[unit]}, with {noise}, whole updates of "
        f"{clients} clients clipped to {norm} norm "
        f"{clip if clip is not None else '?'}, uniform weights; accounted by {method.upper()}.{sampled} It protects "
        "against whoever sees the global model after every round, and all that is computed from it; the server that "
        f"decodes is trusted.{codeword} Noise is drawn in floating point, which approximates the ideal law. Choosing "
        "hyper-parameters on the same data is not accounted."
    )
