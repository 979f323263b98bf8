"""Sketches of a product of feature maps, one a file: m ≥ 2 factors (n, d_i) in, (n, l) out.

The Kronecker product φ_1 ⊗ ... ⊗ φ_m has Π d_i dimensions and the product kernel Π⟨φ_i, φ_i⟩. A sketch S has l, and
keeps that kernel in the mean (random sketches) or as well as l directions can (data-dependent ones). The scale 1/√l
stands once, for the whole product. Section 4 of docs/mathematics.md has the identity, variance and cost of each.

A new sketch is one file here (or anywhere) and one YAML file in conf/fusion/sketch.
"""

from krossfuse.fusion.sketches.base import Sketch
from krossfuse.fusion.sketches.block_orthogonal import BlockOrthogonalSketch
from krossfuse.fusion.sketches.complex_to_real import ComplexToRealSketch
from krossfuse.fusion.sketches.dense import DenseSketch, GaussianSketch, RademacherSketch, UniformSketch
from krossfuse.fusion.sketches.fitted import FittedSketch
from krossfuse.fusion.sketches.joint_fourier import JointFourierSketch
from krossfuse.fusion.sketches.kpomrp import KPoMRPSketch
from krossfuse.fusion.sketches.kronecker import KroneckerSketch
from krossfuse.fusion.sketches.nystrom import NystromSketch
from krossfuse.fusion.sketches.random import RandomSketch
from krossfuse.fusion.sketches.spectral import SpectralSketch, largest_products
from krossfuse.fusion.sketches.srht import ComplexToRealSRHTSketch, SRHTSketch
from krossfuse.fusion.sketches.tensor_sketch import TensorSketch

__all__ = [
    "BlockOrthogonalSketch",
    "ComplexToRealSRHTSketch",
    "ComplexToRealSketch",
    "DenseSketch",
    "FittedSketch",
    "GaussianSketch",
    "JointFourierSketch",
    "KPoMRPSketch",
    "KroneckerSketch",
    "NystromSketch",
    "RademacherSketch",
    "RandomSketch",
    "SRHTSketch",
    "Sketch",
    "SpectralSketch",
    "TensorSketch",
    "UniformSketch",
    "largest_products",
]
