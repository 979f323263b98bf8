"""Solvers of the linear probes: logistic regression and ridge, in torch alone, on CPU or GPU.

The logistic objective is scikit-learn's ``LogisticRegression``: ``C·Σᵢ sᵢ·lossᵢ + ½‖W‖²``, intercept unpenalised;
softmax for three classes or more, one logistic for two, a logistic a class where labels are multilabel. L-BFGS
minimises it in full batch in its mean form ``(1/S)·Σ sᵢ·lossᵢ + (λ/2)·‖W‖²`` with ``S = Σ sᵢ``, ``λ = 1/(C·S)``, whose
gradient scikit-learn's ``tol`` bounds too. What makes it fast:

* A preconditioner. The Hessian of class k is about ``c_k·Σ + λ``, with c_k the mean of p_k(1 − p_k) and Σ the
  features' covariance; the leading eigenpairs of Σ (a randomised Nyström sketch, arXiv 2110.02820) invert it for all
  classes and all C.
* Intercepts are eliminated: given the scores, their optimum costs no product with the features.
* One pass over the rows serves every label set and every C that is being solved: their weights stand side by side in
  one matrix product, 4·n·d·(columns) operations for objective and gradient.
* A path: C ascending, each solution extrapolated from the last two in log C. Curvature pairs are not carried over:
  the probabilities sharpen with C, and stale pairs cost more steps than they save.
* Few rows are rotated: L2 is invariant to rotation, so n ≤ d rows are n rows in n dimensions or fewer, in the
  eigenvectors of the Gram matrix, where the preconditioner is diagonal. A kernel matrix is solved by the same code.
"""

from __future__ import annotations

from krossfuse.probes.solvers.logistic import fit_kernel_logistic, fit_logistic, fit_logistic_batch
from krossfuse.probes.solvers.ridge import RidgeFit, fit_kernel_ridge, fit_ridge, fit_ridge_batch
from krossfuse.probes.solvers.targets import LogisticFit, Target

__all__ = [
    "LogisticFit",
    "RidgeFit",
    "Target",
    "fit_kernel_logistic",
    "fit_kernel_ridge",
    "fit_logistic",
    "fit_logistic_batch",
    "fit_ridge",
    "fit_ridge_batch",
]
