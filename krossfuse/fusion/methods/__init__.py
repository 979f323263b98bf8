"""Fusion methods, one a file: KrossFuse, the parents alone, their concatenation, and the baselines.

A method maps the features of a pair's encoders to one embedding (:class:`~krossfuse.fusion.base.FusionMethod`).
Sections
2 to 4 of docs/mathematics.md. A new method is one file here (or anywhere) and one YAML file in conf/fusion.
"""

from krossfuse.fusion.methods.alone import Alone
from krossfuse.fusion.methods.attention import Attention
from krossfuse.fusion.methods.average_kernel import AverageKernel
from krossfuse.fusion.methods.cca import CCA
from krossfuse.fusion.methods.comm import Comm
from krossfuse.fusion.methods.concatenation import Concatenation
from krossfuse.fusion.methods.exact import ExactKrossFuse
from krossfuse.fusion.methods.gate import Gate
from krossfuse.fusion.methods.gram import gram
from krossfuse.fusion.methods.kernel_method import CHUNK_ROWS, KernelMethod
from krossfuse.fusion.methods.pca_concatenation import PCAConcatenation
from krossfuse.fusion.methods.postprocess import PostProcess
from krossfuse.fusion.methods.released_code import ReleasedCode
from krossfuse.fusion.methods.rff_concatenation import RFFConcatenation
from krossfuse.fusion.methods.rp_krossfuse import RPKrossFuse
from krossfuse.fusion.methods.trained import TrainedFusion
from krossfuse.fusion.methods.unimodal import UnimodalKrossFuse

__all__ = [
    "CCA",
    "CHUNK_ROWS",
    "Alone",
    "Attention",
    "AverageKernel",
    "Comm",
    "Concatenation",
    "ExactKrossFuse",
    "Gate",
    "KernelMethod",
    "PCAConcatenation",
    "PostProcess",
    "RFFConcatenation",
    "RPKrossFuse",
    "ReleasedCode",
    "TrainedFusion",
    "UnimodalKrossFuse",
    "gram",
]
