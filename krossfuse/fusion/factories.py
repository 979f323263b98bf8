"""What makes kernels and sketches, as methods and alignments take them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from krossfuse.core.errors import ConfigError
from krossfuse.fusion.kernels import Kernel, ShiftInvariantKernel
from krossfuse.fusion.sketches import Sketch

KernelFactory = Callable[..., Kernel]
"""``factory(in_dim, seed=...)``: a Kernel class, or a partial of one with its options."""

SketchFactory = Callable[..., Sketch]
"""``factory(dims, out_dim, seed=...)``: a Sketch class, or a partial of one with its options."""


def build_kernel(factory: KernelFactory, in_dim: int, *, seed: int) -> Kernel:
    """Build the kernel of a parent of ``in_dim`` dimensions.

    Raises:
        ConfigError: the factory builds something else, or refuses a value.
    """
    if not callable(factory):
        raise ConfigError(
            f"kernel={factory!r} is no kernel; give a class or its partial, in YAML an option such as cosine"
        )
    kernel = factory(in_dim=in_dim, seed=seed)
    if not isinstance(kernel, Kernel):
        raise ConfigError(f"kernel={factory!r} does not build a Kernel; it built {type(kernel).__name__}")
    return kernel


def build_sketch(
    factory: SketchFactory, kernels: Sequence[Kernel], out_dim: int | None, *, seed: int, constant: bool = False
) -> Sketch:
    """Build the sketch of a product of kernels.

    Args:
        factory: of the sketch.
        kernels: the factors.
        out_dim: l; None = that of the whole product.
        seed: of its draw.
        constant: whether the first factor's map has a constant coordinate more.

    Raises:
        ConfigError: the factory builds something else, refuses a value, or the sketch does not suit the kernels.
    """
    if not callable(factory):
        raise ConfigError(
            f"sketch={factory!r} is no sketch; give a class or its partial, in YAML an option such as uniform"
        )
    dims = [kernel.out_dim for kernel in kernels]
    dims[0] += constant
    sketch = factory(dims, math.prod(dims) if out_dim is None else out_dim, seed=seed)
    if not isinstance(sketch, Sketch):
        raise ConfigError(f"sketch={factory!r} does not build a Sketch; it built {type(sketch).__name__}")
    other = [kernel.name for kernel in kernels if not isinstance(kernel, ShiftInvariantKernel)]
    if sketch.fourier and other:
        raise ConfigError(
            f"sketch={sketch.name!r} multiplies random Fourier features, and the kernel {other[0]!r} has none; use a "
            f"shift-invariant kernel such as gaussian, or another sketch"
        )
    if sketch.fourier and constant:
        raise ConfigError(
            f"sketch={sketch.name!r} multiplies random Fourier features alone; set expert_weight=0 or another sketch"
        )
    return sketch
