"""KrossFuse as a scikit-learn transformer: two embeddings side by side in, one fused embedding out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from krossfuse.core.errors import ConfigError
from krossfuse.core.parts import CROSS_MODAL
from krossfuse.fusion.base import InputSpec
from krossfuse.fusion.factories import KernelFactory, SketchFactory
from krossfuse.fusion.kernels import CosineKernel
from krossfuse.fusion.methods import RPKrossFuse
from krossfuse.fusion.named import kernel_named, sketch_named

EXPERT = "expert"


class KrossFuseTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Fuse columns [cross-modal | expert] into RP-KrossFuse embeddings (arXiv 2506.08645, section 4).

    With the cosine kernel a zero vector has no direction. As scikit-learn's transformers accept any finite row, a row
    without expert (all its columns zero) is embedded as the modality that the expert does not see, and a row without
    cross-modal part as zero, the value that every kernel with it has; both are left out of the fit.

    Args:
        dim: total dimension; None = twice the cross-modal dimension.
        C: constant similarity of the modality that the expert does not see: a positive number, ``cv`` (needs y) or
            ``auto``.
        expert_weight: weight of the expert's own kernel beside the product; above 0 needs alignment ``exact``.
        alignment: ``exact`` (direct sum), ``offset`` or ``published``.
        sketch: name or factory of a sketch of the product, e.g. ``uniform``, ``srht``, ``spectral``, ``nystrom``.
        kernel: name or factory of the parents' kernel, e.g. ``cosine``, ``gaussian``.
        split: how many columns, from the left, are cross-modal; None = half of them, rounded down.
        random_state: of random features, of the sketch and of the folds.

    Attributes:
        method_: the fitted :class:`RPKrossFuse`.
        split_: number of cross-modal columns.
        n_features_in_: number of columns.

    Examples:
        >>> X = np.random.default_rng(0).normal(size=(20, 10))  # 4 cross-modal columns, 6 of the expert
        >>> KrossFuseTransformer(dim=16, split=4).fit_transform(X).shape
        (20, 16)
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        C: float | str = 1.0,
        expert_weight: float = 0.0,
        alignment: str = "exact",
        sketch: str | SketchFactory = "uniform",
        kernel: str | KernelFactory = "cosine",
        split: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.dim = dim
        self.C = C
        self.expert_weight = expert_weight
        self.alignment = alignment
        self.sketch = sketch
        self.kernel = kernel
        self.split = split
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> KrossFuseTransformer:
        """Draw (and, where they need it, fit) the kernels and the sketch.

        Args:
            X: (n, columns).
            y: (n,) labels; read only with ``C="cv"``.

        Raises:
            ConfigError: an impossible parameter (a ValueError).
            DataError: too few samples for the sketch (a ValueError).
        """
        rows: NDArray[Any] = validate_data(
            self, X, dtype=[np.float64, np.float32], ensure_min_features=2, ensure_min_samples=2
        )
        columns = rows.shape[1]
        split = columns // 2 if self.split is None else self.split
        if isinstance(split, bool) or not isinstance(split, int | np.integer) or not 0 < split < columns:
            raise ConfigError(f"split={split!r} must be an integer from 1 to {columns - 1}, of {columns} columns")
        self.split_ = int(split)
        labels = None
        if y is not None and self.C == "cv":
            labels = torch.from_numpy(np.unique(np.asarray(y), return_inverse=True)[1].astype(np.int64))
        dim: Any = 2 * self.split_ if self.dim is None else self.dim  # a search may give NumPy's integers
        method = RPKrossFuse(
            inputs=InputSpec(cross_modal=self.split_, image_experts={EXPERT: columns - self.split_}),
            dim=int(dim) if isinstance(dim, np.integer) else dim,
            C=self.C,
            expert_weight=self.expert_weight,
            alignment=self.alignment,
            kernel=kernel_named(self.kernel),
            sketch=sketch_named(self.sketch),
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
        )
        method.to(torch.float64 if rows.dtype == np.float64 else torch.float32)
        features, cross, expert = self._features(rows), *self._present(method, rows)
        kept = torch.from_numpy(cross & expert)
        with torch.no_grad():
            method.fit(
                image={role: x[kept] for role, x in features.items()}, labels=None if labels is None else labels[kept]
            )
        self.method_ = method.eval()
        self._n_features_out = method.out_dim
        return self

    def _features(self, X: NDArray[Any]) -> dict[str, torch.Tensor]:
        # A copy where the array is read-only (a memory map of joblib's), which torch cannot wrap.
        rows = torch.from_numpy(np.require(X, requirements=["C", "W"]))
        return {CROSS_MODAL: rows[:, : self.split_], EXPERT: rows[:, self.split_ :]}

    def _present(self, method: RPKrossFuse, X: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which rows have a cross-modal part, and which an expert's."""
        parts = {CROSS_MODAL: X[:, : self.split_], EXPERT: X[:, self.split_ :]}
        directional = {role: isinstance(kernel, CosineKernel) for role, kernel in method.kernels.items()}
        cross, expert = (np.logical_or(x.any(axis=1), not directional[role]) for role, x in parts.items())
        return np.asarray(cross), np.asarray(expert)

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return the fused embeddings of the expert's modality, (n, dim), in the precision of X."""
        check_is_fitted(self)
        rows: NDArray[Any] = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        features, cross, expert = self._features(rows), *self._present(self.method_, rows)
        both, one = torch.from_numpy(cross & expert), torch.from_numpy(cross & ~expert)
        fused = torch.zeros(len(rows), self._n_features_out, dtype=features[EXPERT].dtype)
        with torch.no_grad():
            if both.any():
                fused[both] = self.method_.encode("image", {role: x[both] for role, x in features.items()}).to(fused)
            if one.any():
                fused[one] = self.method_.encode("text", {CROSS_MODAL: features[CROSS_MODAL][one]}).to(fused)
        return fused.numpy()

    def transform_missing(self, X: ArrayLike) -> NDArray[Any]:
        """Return the embeddings of the modality that the expert does not see (texts, for an image expert).

        Args:
            X: (n, split_), the cross-modal columns alone.
        """
        check_is_fitted(self)
        rows = np.require(check_array(X, dtype=[np.float64, np.float32]), requirements=["C", "W"])
        if rows.shape[1] != self.split_:
            raise ConfigError(f"X has {rows.shape[1]} columns, the cross-modal part has {self.split_}")
        with torch.no_grad():
            fused: NDArray[Any] = self.method_.encode("text", {CROSS_MODAL: torch.from_numpy(rows)}).numpy()
        return fused.astype(rows.dtype, copy=False)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
