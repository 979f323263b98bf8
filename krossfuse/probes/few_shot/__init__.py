"""Few-shot classification: heads on the shots, texts as a residual or as samples, and cache models."""

from krossfuse.probes.few_shot.probe import FewShot

__all__ = ["FewShot"]
