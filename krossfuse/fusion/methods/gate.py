"""GATE: a sigmoid gate between the projected parents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from krossfuse.fusion.methods.trained import TrainedFusion


class Gate(TrainedFusion):
    """GATE: a sigmoid gate chooses, coordinate by coordinate, between the projected parents (Arevalo et al. 2017).

    h_i = tanh(W_i φ_i); g = σ(MLP([φ_1; ...; φ_m])), one gate vector a parent; with two parents the gates are g and
    1 − g, with more the sigmoids are scaled to sum to one. The embedding is Σ g_i ⊙ h_i.
    """

    name = "gate"
    title = "GATE"

    def build(self) -> None:
        """Make a projection for each parent and the gating network."""
        self.project = nn.ModuleList(nn.Linear(d, self.dim) for d in self.roles.values())
        gates = 1 if len(self.roles) == 2 else len(self.roles)
        self.gating = nn.Sequential(
            nn.Linear(sum(self.roles.values()), self.dim), nn.ReLU(), nn.Linear(self.dim, gates * self.dim)
        )

    def fuse(self, units: dict[str, Tensor]) -> Tensor:
        """Return Σ g_i ⊙ h_i."""
        hidden = [torch.tanh(layer(x)) for layer, x in zip(self.project, units.values(), strict=True)]
        gates = torch.sigmoid(self.gating(torch.cat(list(units.values()), dim=1)))
        if len(hidden) == 2:
            chosen: Tensor = gates * hidden[0] + (1 - gates) * hidden[1]
            return chosen
        several = gates.view(len(gates), len(hidden), self.dim)
        weighted: Tensor = (several / several.sum(1, keepdim=True) * torch.stack(hidden, dim=1)).sum(1)
        return weighted
