"""GATE: a sigmoid gate between the projected parents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from krossfuse.fusion.methods.trained import TrainedFusion, scaled, start_at_components, start_at_zero


class Gate(TrainedFusion):
    """GATE: a sigmoid gate chooses, coordinate by coordinate, between the projected parents (Arevalo et al. 2017).

    h_i = W_i φ_i; g = σ(MLP([φ_1; ...; φ_m])), one gate vector a parent; with two parents the gates are g and 1 − g,
    with more the sigmoids are scaled to sum to one. The embedding is Σ g_i ⊙ h_i, scaled to unit length. Arevalo et al.
    have h_i = tanh(W_i φ_i); linear ones can start at the principal components of the parents' concatenation, where all
    gates are equal.
    """

    name = "gate"
    title = "GATE"

    def build(self) -> None:
        """Make a projection for each parent and the gating network."""
        self.project = nn.ModuleList(nn.Linear(d, self.dim, bias=False) for d in self.roles.values())
        gates = 1 if len(self.roles) == 2 else len(self.roles)
        self.gating = nn.Sequential(
            nn.Linear(sum(self.roles.values()), self.dim), nn.ReLU(), nn.Linear(self.dim, gates * self.dim)
        )

    def start(self, centred: dict[str, Tensor]) -> None:
        """Start at the principal components, with equal gates."""
        start_at_components(list(self.project), list(centred.values()))  # type: ignore[arg-type]
        start_at_zero(self.gating[2])

    def fuse(self, units: dict[str, Tensor]) -> Tensor:
        """Return Σ g_i ⊙ h_i of unit length."""
        centred = self.centred(units)
        hidden = torch.stack([layer(x) for layer, x in zip(self.project, centred.values(), strict=True)], dim=1)
        gates = torch.sigmoid(self.gating(scaled(centred)))
        if len(self.roles) == 2:
            gates = torch.stack([gates, 1 - gates], dim=1)
        else:
            gates = gates.view(-1, len(self.roles), self.dim)
            gates = gates / gates.sum(1, keepdim=True)
        return nn.functional.normalize((gates * hidden).sum(1), dim=1)
