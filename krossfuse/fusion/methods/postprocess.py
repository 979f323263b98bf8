"""After fusion: principal components, normalisation, half precision, as a wrapper around any method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DimensionError, NotFittedError, check_choice, check_positive
from krossfuse.core.parts import MODALITIES, Modality
from krossfuse.fusion.base import Features, FusionMethod, InputSpec
from krossfuse.fusion.methods.principal import check_samples, principal_axes

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


class PostProcess(FusionMethod):
    """A fusion method followed by PCA to a stated dimension, L2 normalisation and a change of precision.

    The components are those of the fused training embeddings of all modalities, **uncentred** by default: with V
    orthonormal and no shift, ⟨xV, tV⟩ is the best approximation of ⟨x, t⟩ of that rank, image-text similarities
    included. ``centre`` subtracts the training mean first, as textbook PCA does; image-text similarities then lose
    their meaning unless the modalities share a mean.

    Args:
        inputs: dimensions of the parents.
        method: the fusion method, or what makes it from ``inputs=`` (a ``_partial_`` in YAML).
        pca_dim: components to keep, in order of variance; None = no PCA.
        centre: subtract the mean of the training embeddings before the PCA.
        normalise: scale every embedding to unit length.
        dtype: of the result: ``float16``, ``bfloat16``, ``float32``, ``float64``; None = the method's own.

    Raises:
        ConfigError: a bad value; ``DimensionError`` where ``pca_dim`` is larger than the method's dimension.
    """

    title = "Post-processed"
    fitted_buffers = ("mean", "axes")
    mean: Tensor
    axes: Tensor

    def __init__(
        self,
        *,
        inputs: InputSpec,
        method: FusionMethod | Callable[..., FusionMethod],
        pca_dim: int | None = None,
        centre: bool = False,
        normalise: bool = False,
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.method = method if isinstance(method, FusionMethod) else method(inputs=inputs)
        if self.method.inputs != inputs:
            raise ConfigError(f"the method was made for {self.method.inputs}, not for {inputs}")
        if pca_dim is not None:
            check_positive("pca_dim", pca_dim, integer=True)
            if pca_dim > self.method.out_dim:
                raise DimensionError(f"pca_dim={pca_dim} is larger than the fused dimension {self.method.out_dim}")
        if centre and pca_dim is None:
            raise ConfigError("centre=true needs pca_dim: without a PCA there is nothing to centre")
        if dtype is not None:
            check_choice("dtype", dtype, DTYPES)
        self.pca_dim, self.centre, self.normalise, self.dtype = pca_dim, centre, normalise, dtype
        self.deterministic, self.trained = self.method.deterministic, self.method.trained
        self.title = f"{self.method.title}, post-processed"
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("axes", torch.empty(0, 0))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those of the wrapped method."""
        return self.method.modalities

    @property
    def out_dim(self) -> int:
        """``pca_dim``, or the method's own dimension."""
        return self.pca_dim or self.method.out_dim

    def fit(
        self, image: Features | None = None, text: Features | None = None, *, labels: Tensor | None = None
    ) -> PostProcess:
        """Fit the method, then the principal components of what it makes of the same features.

        Raises:
            DataError: fewer samples than components.
        """
        self.method.fit(image=image, text=text, labels=labels)
        if self.pca_dim is not None:
            given = {m: f for m, f in zip(MODALITIES, (image, text), strict=True) if f and m in self.modalities}
            n = sum(len(next(iter(features.values()))) for features in given.values())
            self.mean, self.axes = principal_axes(
                lambda: (block for m, f in given.items() for block in self._encode_blocks(m, f)),
                n=n,
                k=self.pca_dim,
                centre=self.centre,
            )
        return self

    @torch.no_grad()
    def _encode_blocks(self, modality: Modality, features: Features, size: int = 4096) -> Iterator[Tensor]:
        for rows in blocks(len(next(iter(features.values()))), size):
            yield self.method.encode(modality, {role: x[rows] for role, x in features.items()})

    def encode(self, modality: Modality, features: Features) -> Tensor:
        """Fuse a batch, then reduce, normalise and convert it."""
        fused = self.method.encode(modality, features)
        if self.pca_dim is not None:
            if not self.axes.numel():
                raise NotFittedError(f"the PCA to {self.pca_dim} dimensions is not fitted; call fit() first")
            fused = (fused - self.mean) @ self.axes
        if self.normalise:
            fused = nn.functional.normalize(fused, dim=1)
        return fused if self.dtype is None else fused.to(DTYPES[self.dtype])

    @property
    def has_kernel(self) -> bool:
        """Whether the wrapped method has an exact kernel and no PCA changes what is approximated."""
        return self.pca_dim is None and self.method.has_kernel

    def check_rows(self, rows: Mapping[Modality, int]) -> None:
        """Check the wrapped method's rows and the components'; see :meth:`FusionMethod.check_rows`."""
        self.method.check_rows(rows)
        if self.pca_dim is not None and any(m in rows for m in self.modalities):
            check_samples(sum(rows.get(m, 0) for m in self.modalities), self.pca_dim, centre=self.centre)

    def kernel(self, modality_a: Modality, a: Features, modality_b: Modality, b: Features) -> Tensor | None:
        """Return the wrapped method's exact kernel, of unit vectors where ``normalise``: k(a, b)/√(k(a, a)·k(b, b)).

        None where a PCA changes what is approximated.
        """
        if not self.has_kernel:
            return None
        values = self.method.kernel(modality_a, a, modality_b, b)
        if values is None or not self.normalise:
            return values
        return values / (self._norms(modality_a, a)[:, None] * self._norms(modality_b, b))

    def _norms(self, modality: Modality, features: Features, size: int = 256) -> Tensor:
        """Return √k(x, x) of each row."""
        diagonals = []
        for rows in blocks(len(next(iter(features.values()))), size):
            few = {role: x[rows] for role, x in features.items()}
            values = self.method.kernel(modality, few, modality, few)
            assert values is not None
            diagonals.append(values.diagonal())
        return torch.cat(diagonals).clamp_min(0).sqrt()

    def describe(self) -> dict[str, Any]:
        """Return the method's description with the final ``dim`` and what was done after fusion."""
        return {
            **self.method.describe(),
            "title": self.title,
            "dim": self.out_dim,
            "fused_dim": self.method.out_dim,
            "pca_dim": self.pca_dim,
            "pca_centre": self.centre,
            "normalise": self.normalise,
            "dtype": self.dtype,
        }
