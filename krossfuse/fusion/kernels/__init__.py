"""Kernels, one family a file: each is a feature map φ with its exact kernel function k(x, y) beside it.

A :class:`Kernel` maps one parent's features (n, in_dim) to (n, out_dim) so that ⟨φ(x), φ(y)⟩ is k(x, y), exactly or
in the mean over the random features' draw. Sections 1 and 5 of docs/mathematics.md. A new kernel is one file here (or
anywhere) and one YAML file in conf/fusion/kernel.
"""

from krossfuse.fusion.kernels.base import Kernel
from krossfuse.fusion.kernels.cauchy import CauchyKernel
from krossfuse.fusion.kernels.centred import CentredKernel
from krossfuse.fusion.kernels.cosine import CosineKernel
from krossfuse.fusion.kernels.gaussian import GaussianKernel
from krossfuse.fusion.kernels.laplace import LaplaceKernel
from krossfuse.fusion.kernels.linear import LinearKernel
from krossfuse.fusion.kernels.matern import MaternKernel
from krossfuse.fusion.kernels.paired import paired_kernels
from krossfuse.fusion.kernels.polynomial import PolynomialKernel
from krossfuse.fusion.kernels.shift_invariant import ShiftInvariantKernel

__all__ = [
    "CauchyKernel",
    "CentredKernel",
    "CosineKernel",
    "GaussianKernel",
    "Kernel",
    "LaplaceKernel",
    "LinearKernel",
    "MaternKernel",
    "PolynomialKernel",
    "ShiftInvariantKernel",
    "paired_kernels",
]
