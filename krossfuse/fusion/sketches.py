"""Sketches of a product of feature maps: m ≥ 2 factors (n, d_i) in, (n, l) out.

The Kronecker product φ_1 ⊗ ... ⊗ φ_m has Π d_i dimensions and the product kernel Π⟨φ_i, φ_i⟩. A sketch S has l, and
keeps that kernel in the mean (random sketches) or as well as l directions can (data-dependent ones). The scale 1/√l
stands once, for the whole product. Section 4 of docs/mathematics.md has the identity, variance and cost of each.

A new sketch is one class here (or anywhere) and one YAML file in conf/fusion/sketch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, DataError, DimensionError, NotFittedError, check_choice, check_positive
from krossfuse.core.seeds import derived_generator
from krossfuse.fusion.draws import hadamard, orthogonal_rows, quarter_turns, rademacher


class Sketch(nn.Module, ABC):
    """A sketch of a product of feature maps.

    Args:
        dims: dimensions d_1 ... d_m of the factors.
        out_dim: l.
        seed: of every draw; ignored by deterministic sketches.

    Attributes:
        name: as in the configuration and in results.
        deterministic: no seed changes it.
        needs_fit: whether :meth:`fit` must run first.

    Raises:
        ConfigError: a value is impossible.
        DimensionError: ``out_dim`` does not suit ``dims``.
    """

    name: ClassVar[str]
    deterministic: ClassVar[bool] = False
    needs_fit: ClassVar[bool] = False

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__()
        if len(dims) < 2:
            raise ConfigError(f"a product sketch needs two factors or more, got dims={list(dims)}")
        for dim in dims:
            check_positive("dims", dim, integer=True)
        check_positive("out_dim", out_dim, integer=True)
        self.dims, self.out_dim, self.seed = tuple(dims), out_dim, seed

    def fit(self, factors: Sequence[Tensor]) -> Self:
        """Fit on unlabelled factors (n, d_i); nothing to do for random sketches."""
        return self.fit_blocks([factors])

    def fit_blocks(self, blocks: Iterable[Sequence[Tensor]]) -> Self:
        """Fit on factors that come in blocks of rows, read once.

        Raises:
            DataError: fewer samples than the components need.
        """
        return self

    @abstractmethod
    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the sketch (n, l) of the product of factors (n, d_i).

        Raises:
            NotFittedError: it needs a fit first.
        """

    def describe(self) -> dict[str, Any]:
        """Return the sketch's configuration, flat and JSON-able."""
        return {"sketch": self.name}


class RandomSketch(Sketch):
    """A sketch that projects each factor linearly and multiplies the projections: S(φ_1 ⊗ φ_2) = U_1φ_1 ⊙ U_2φ_2.

    What a subclass gives: :meth:`_project`, a linear map of one factor with mean-zero entries into its own space of
    projections; :meth:`multiply`, the product in that space; :meth:`finish`, from there to l real coordinates. The
    published symmetrisation and the constant offset then are an ``offset`` added to an expert's projection.
    """

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        self._mirrored: set[int] = set()

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the sketch (n, l) of the product of factors (n, d_i)."""
        return self.finish(self.multiply([self.project(i, x) for i, x in enumerate(factors)]))

    def project(self, factor: int, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return the projection of factor number ``factor``, plus ``offset`` if given."""
        projection = self._project(factor, x)
        return projection if offset is None else projection + offset

    @abstractmethod
    def _project(self, factor: int, x: Tensor) -> Tensor: ...

    def multiply(self, projections: Sequence[Tensor]) -> Tensor:
        """Return the product of projections; one of a single row goes with every row of the others.

        The first one's memory may be used for the result.
        """
        return _multiply(projections)

    def finish(self, product: Tensor) -> Tensor:
        """Return the sketch (n, l) of the product of projections of all factors."""
        return product

    @abstractmethod
    def unit(self, factor: int) -> Tensor:
        """Return the constant projection which, in an expert's place, leaves an unbiased sketch of the others."""

    def mirror(self, factor: int) -> Tensor:
        """Fold the symmetrisation of an expert φ of d = dims[factor] / 2 dimensions into its projection.

        From then on ``project(factor, φ)`` takes (n, d) and gives U[φ ; −φ]/√2 = Wφ, W = (A − B)/√2 for U = [A B].

        Returns:
            U·1: times √(C/2d) it is the constant c with Uφ̃_X = c + Wφ and Uφ̃_T = c.
        """
        ones = torch.ones(1, self.dims[factor], dtype=torch.get_default_dtype())
        constant = self._project(factor, ones)
        self.dims = (*self.dims[:factor], self.dims[factor] // 2, *self.dims[factor + 1 :])
        self._fold(factor)
        return constant

    def _fold(self, factor: int) -> None:
        self._mirrored.add(factor)

    def _unfolded(self, factor: int, x: Tensor) -> Tensor:
        return torch.cat([x, -x], 1) / math.sqrt(2) if factor in self._mirrored else x


def _multiply(projections: Sequence[Tensor]) -> Tensor:
    """Return the elementwise product; in the first one's memory where no gradient needs it."""
    first, *others = projections
    if torch.is_grad_enabled() and any(p.requires_grad for p in projections):
        for other in others:
            first = first * other
    else:
        for other in others:
            first.mul_(other)
    return first


class DenseSketch(RandomSketch):
    """(1/√l)·(U_1φ_1) ⊙ ... ⊙ (U_mφ_m) with dense U_i of mean 0, variance 1 and independent of one another.

    Unbiased: E⟨S(x), S(y)⟩ = Π k_i. With i.i.d. entries of fourth moment κ the variance for unit vectors is
    (Π E_i − Π k_i²)/l, E_i = 1 + 2k_i² + (κ − 3)·Σ_j x_j²y_j². O(l·Σd_i) a sample.
    """

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        for i, dim in enumerate(dims):
            matrix = self._matrix(dim, derived_generator(seed, self.name, "factor", i))
            if i == 0:
                matrix = matrix / math.sqrt(out_dim)
            self.register_buffer(f"matrix_{i}", matrix.to(torch.get_default_dtype()).contiguous())

    @abstractmethod
    def _matrix(self, dim: int, generator: torch.Generator) -> Tensor:
        """Draw U transposed, (dim, l), of variance 1."""

    def project(self, factor: int, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return U_i x + offset, (n, l)."""
        matrix = self.get_buffer(f"matrix_{factor}")
        return x @ matrix if offset is None else torch.addmm(offset, x, matrix)

    def _project(self, factor: int, x: Tensor) -> Tensor:
        return x @ self.get_buffer(f"matrix_{factor}")

    def unit(self, factor: int) -> Tensor:
        """Return ones, (1, l)."""
        return torch.ones(1, self.out_dim)

    def _fold(self, factor: int) -> None:
        above, below = self.get_buffer(f"matrix_{factor}").chunk(2)
        setattr(self, f"matrix_{factor}", (above - below) / math.sqrt(2))


class UniformSketch(DenseSketch):
    """Entries uniform on [−√3, √3], the paper's choice (arXiv 2506.08645, section 4): κ = 1.8.

    Example:
        >>> sketch = UniformSketch([3, 4], 5, seed=1)
        >>> sketch([torch.ones(2, 3), torch.ones(2, 4)]).shape
        torch.Size([2, 5])
    """

    name = "uniform"

    def _matrix(self, dim: int, generator: torch.Generator) -> Tensor:
        return (torch.rand(dim, self.out_dim, generator=generator) * 2 - 1) * math.sqrt(3)


class GaussianSketch(DenseSketch):
    """Entries N(0, 1): κ = 3."""

    name = "gaussian"

    def _matrix(self, dim: int, generator: torch.Generator) -> Tensor:
        return torch.randn(dim, self.out_dim, generator=generator)


class RademacherSketch(DenseSketch):
    """Entries ±1: κ = 1, the lowest variance that i.i.d. entries can have."""

    name = "rademacher"

    def _matrix(self, dim: int, generator: torch.Generator) -> Tensor:
        return rademacher(dim, self.out_dim, generator=generator)


class BlockOrthogonalSketch(DenseSketch):
    """Rows of length √d, orthogonal within blocks of d rows (Haar): negatively correlated errors, lower variance."""

    name = "block_orthogonal"

    def _matrix(self, dim: int, generator: torch.Generator) -> Tensor:
        return (orthogonal_rows(self.out_dim, dim, generator) * math.sqrt(dim)).T


class ComplexToRealSketch(DenseSketch):
    """Complex entries {1, i, −1, −i}, the projections multiplied as complex numbers, real and imaginary parts stacked.

    With z(x) = Π_i u_iᵀφ_i, E[z(x)·conj z(y)] = Π k_i, which is real, and E[z(x)·z(y)] = 0, so each real coordinate
    has half of it; the scale is √(2/l). Lower variance than real entries (Wacker, Kanagawa, Filippone 2022,
    "Complex-to-real sketches for tensor products"). O(l·Σd_i) a sample.
    """

    name = "complex_to_real"

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        self.get_buffer("matrix_0").mul_(math.sqrt(2))

    def _matrix(self, dim: int, generator: torch.Generator) -> Tensor:
        # Real and imaginary parts lie side by side, so that a projection is a complex number in memory.
        return quarter_turns(dim, -(-self.out_dim // 2), generator=generator).flatten(1)

    def multiply(self, projections: Sequence[Tensor]) -> Tensor:
        """Return the complex product."""
        return _multiply_complex(projections)

    def finish(self, product: Tensor) -> Tensor:
        """Return the first l of the real coordinates."""
        return product[:, : self.out_dim]

    def unit(self, factor: int) -> Tensor:
        """Return complex ones."""
        return torch.tensor([[1.0, 0.0]]).repeat(1, -(-self.out_dim // 2))


def _multiply_complex(projections: Sequence[Tensor]) -> Tensor:
    """Return the elementwise product of complex numbers that lie as pairs in the last axis."""
    pairs = [torch.view_as_complex(p.view(*p.shape[:-1], p.shape[-1] // 2, 2)) for p in projections]
    return torch.view_as_real(_multiply(pairs)).flatten(-2)


class SRHTSketch(RandomSketch):
    """Subsampled randomised Hadamard transform: rows of H·D of unit entries, by small matrix products.

    The d entries of a factor are laid out as A × b, A = 8. Signs D, then a Hadamard matrix over A, then for each of its
    A outputs further signs and rows of a b-order Hadamard matrix, sampled without replacement. Every row of U_i has
    entries ±1, which the signs D alone make unbiased, and rows of one set of signs are orthogonal but for the padding.
    Rows that share an output of the first stage are positively correlated, which adds about A·l/(T·Π d_i) of the i.i.d.
    variance with T independent sets of signs. T makes that 5%, or is l/A, where no two rows share an output.
    O(l·d/A + T·A·d) a sample in place of the dense O(l·d).

    Source: Ailon and Chazelle 2009; for products, Hamid et al. 2014.
    """

    name = "srht"
    GROUPS: ClassVar[int] = 8
    INFLATION: ClassVar[float] = 0.05
    scale: ClassVar[float] = 1.0
    parts: ClassVar[int] = 1
    """Real numbers a projection consists of."""
    mix: Tensor

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        rows = -(-out_dim // self.parts)
        wanted = math.ceil(self.GROUPS * out_dim / (self.INFLATION * math.prod(dims)))
        self._sets = min(wanted, -(-rows // self.GROUPS))
        self._columns = -(-rows // (self._sets * self.GROUPS)) * self.parts
        self.register_buffer("mix", hadamard(self.GROUPS))
        for i, dim in enumerate(dims):
            generator = derived_generator(seed, self.name, "factor", i)
            width = -(-dim // self.GROUPS)
            signs = rademacher(self._sets, self.GROUPS, 1, width, generator=generator)
            second = self._rows(width, generator)
            if i == 0:
                second = second * (self.scale / math.sqrt(out_dim))
            self.register_buffer(f"signs_{i}", signs.to(torch.get_default_dtype()))
            self.register_buffer(f"rows_{i}", second.to(torch.get_default_dtype()).contiguous())

    def _rows(self, width: int, generator: torch.Generator) -> Tensor:
        """Draw the second stage, (T·A, width, columns): signed Hadamard rows as columns."""
        order = 1 << (width - 1).bit_length()
        full, needed, batches = hadamard(order)[:, :width], self._columns // self.parts, []
        groups = self._sets * self.GROUPS
        for _ in range(-(-needed // order)):
            chosen = torch.rand(groups, order, generator=generator).argsort(1)[:, :needed]
            batches.append(self._signed(full[chosen].transpose(1, 2), generator))
        return torch.cat(batches, 2)[:, :, : self._columns]

    def _signed(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        return rows * rademacher(*rows.shape[:2], 1, generator=generator)

    def _project(self, factor: int, x: Tensor) -> Tensor:
        signs, rows = self.get_buffer(f"signs_{factor}"), self.get_buffer(f"rows_{factor}")
        sets, groups, _, width = signs.shape
        x = self._unfolded(factor, x)
        x = F.pad(x, (0, groups * width - x.shape[1])) if x.shape[1] < groups * width else x
        flipped = x.reshape(len(x), groups, width).transpose(0, 1) * signs  # (T, A, n, width)
        mixed = self.mix @ flipped.reshape(sets, groups, len(x) * width)
        return torch.bmm(mixed.view(sets * groups, len(x), width), rows)  # (T·A, n, columns)

    def finish(self, product: Tensor) -> Tensor:
        """Return the groups side by side, (n, l)."""
        return product.transpose(0, 1).flatten(1)[:, : self.out_dim]

    def unit(self, factor: int) -> Tensor:
        """Return ones, (T·A, 1, columns)."""
        return torch.ones(self._sets * self.GROUPS, 1, self._columns)


class ComplexToRealSRHTSketch(SRHTSketch):
    """SRHT whose second signs are fourth roots of unity; real and imaginary parts stacked.

    Unbiased as :class:`ComplexToRealSketch`, at the cost of :class:`SRHTSketch` (Wacker et al. 2022). The d/8 groups'
    phases are one for all 8 entries, so the gain over real signs needs factors of more than a few dozen dimensions.
    """

    name = "complex_to_real_srht"
    scale = math.sqrt(2)
    parts = 2

    def _signed(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        turns = quarter_turns(*rows.shape[:2], generator=generator)
        return (rows.unsqueeze(-1) * turns.unsqueeze(2)).flatten(2)

    def multiply(self, projections: Sequence[Tensor]) -> Tensor:
        """Return the complex product."""
        return _multiply_complex(projections)

    def unit(self, factor: int) -> Tensor:
        """Return complex ones, (T·A, 1, columns)."""
        return torch.tensor([1.0, 0.0]).repeat(self._sets * self.GROUPS, 1, self._columns // 2)


class TensorSketch(RandomSketch):
    """Convolution of count sketches by FFT (Pham and Pagh 2013): each coordinate of φ_i is added with a sign to one of
    l buckets, and the buckets of the Kronecker product are the circular convolution. O(Σd_i + m·l·log l) a sample.

    A projection is a count sketch, (n, l).
    """

    name = "tensor_sketch"

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        for i, dim in enumerate(dims):
            generator = derived_generator(seed, self.name, "factor", i)
            self.register_buffer(f"buckets_{i}", torch.randint(0, out_dim, (dim,), generator=generator))
            signs = rademacher(dim, 1, generator=generator).to(torch.get_default_dtype())
            self.register_buffer(f"signs_{i}", signs)

    def _project(self, factor: int, x: Tensor) -> Tensor:
        # Columns become rows, which are added in one go each.
        signed = self._unfolded(factor, x).T * self.get_buffer(f"signs_{factor}")
        counts = signed.new_zeros(self.out_dim, len(x)).index_add(0, self.get_buffer(f"buckets_{factor}"), signed)
        return counts.T.contiguous()

    def multiply(self, projections: Sequence[Tensor]) -> Tensor:
        """Return the circular convolution."""
        product: Tensor = torch.fft.irfft(_multiply([torch.fft.rfft(p) for p in projections]), n=self.out_dim)
        return product

    def unit(self, factor: int) -> Tensor:
        """Return the unit of convolution, (1, l)."""
        return F.one_hot(torch.zeros(1, dtype=torch.int64), self.out_dim).to(torch.get_default_dtype())


class KPoMRPSketch(RandomSketch):
    """Kronecker product of marginal random projections: each factor to ⌈l^(1/m)⌉ dims, then their Kronecker product.

    The paper's baseline: unbiased, but few random rows shared by many coordinates give it a much higher variance.
    Where l is not a perfect power, the product's first l coordinates are kept. O(l^(1/m)·Σd_i + l) a sample.

    Args:
        dims: dimensions of the factors.
        out_dim: l.
        distribution: of the entries: uniform, gaussian or rademacher.
        seed: of the draw.
    """

    name = "kpomrp"

    def __init__(
        self,
        dims: Sequence[int],
        out_dim: int,
        *,
        distribution: Literal["uniform", "gaussian", "rademacher"] = "uniform",
        seed: int = 0,
    ) -> None:
        super().__init__(dims, out_dim, seed=seed)
        dense: dict[str, Callable[..., DenseSketch]] = {
            "uniform": UniformSketch,
            "gaussian": GaussianSketch,
            "rademacher": RademacherSketch,
        }
        side = round(out_dim ** (1 / len(dims)))
        side += side ** len(dims) < out_dim
        self.distribution = check_choice("distribution", distribution, dense)
        self.marginals = dense[distribution](dims, side, seed=seed)
        # The marginals' own scale is for their elementwise product; here it is the whole Kronecker product's.
        self.marginals.get_buffer("matrix_0").mul_(math.sqrt(side / out_dim))

    def project(self, factor: int, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return the marginal projection, (n, ⌈l^(1/m)⌉)."""
        return self.marginals.project(factor, x, offset)

    def _project(self, factor: int, x: Tensor) -> Tensor:
        return self.marginals.project(factor, x)

    def multiply(self, projections: Sequence[Tensor]) -> Tensor:
        """Return the Kronecker product."""
        return _kronecker(projections)

    def finish(self, product: Tensor) -> Tensor:
        """Return its first l coordinates."""
        return product[:, : self.out_dim]

    def unit(self, factor: int) -> Tensor:
        """Return ones."""
        return self.marginals.unit(factor)

    def _fold(self, factor: int) -> None:
        self.marginals._fold(factor)

    def describe(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().describe(), "distribution": self.distribution}


def _kronecker(factors: Sequence[Tensor]) -> Tensor:
    """Return the Kronecker product of rows; a factor of one row goes with every row of the others."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(2) * factor.unsqueeze(1)).flatten(1)
    return product


class KroneckerSketch(Sketch):
    """The Kronecker product itself: no error, Π d_i dimensions.

    Raises:
        DimensionError: ``out_dim`` is not Π d_i.

    Example:
        >>> KroneckerSketch([2, 2], 4)([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])])
        tensor([[ 3.,  5.,  6., 10.]])
    """

    name = "kronecker"
    deterministic = True

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        if out_dim != math.prod(dims):
            raise DimensionError(f"the Kronecker product of dimensions {list(self.dims)} has {math.prod(dims)}, "
                                 f"not {out_dim}")  # fmt: skip

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the Kronecker product of rows."""
        return _kronecker(factors)


class JointFourierSketch(Sketch):
    """Joint random Fourier features of a product of shift-invariant kernels (section 5; arXiv 2506.08645, section 4).

    Each factor is [cos(ω_iᵀx_i), sin(ω_iᵀx_i)]/√r with the same number r of its own frequencies; the product of the
    unit complex numbers has the phase Σ_i ω_iᵀx_i, so it is a random feature of the product kernel itself, with no
    projection at all. l = 2r. Its pointwise error is √(2·log(2/δ)/r) at most, with probability 1 − δ. O(m·r) a sample.

    Raises:
        DimensionError: the factors' dimensions and ``out_dim`` are not one even number.
    """

    name = "joint_fourier"

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        if len({*dims, out_dim}) > 1 or out_dim % 2:
            raise DimensionError(f"joint Fourier features need one even number of features throughout, got factors of "
                                 f"{list(dims)} and an output of {out_dim}; set kernel.features to the "
                                 f"output's")  # fmt: skip

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the joint features, (n, 2r)."""
        product = torch.complex(*factors[0].chunk(2, 1))
        for factor in factors[1:]:
            product = product * torch.complex(*factor.chunk(2, 1))
        scale = (self.out_dim / 2) ** ((len(factors) - 1) / 2)
        joint: Tensor = torch.cat([product.real, product.imag], 1) * scale
        return joint


class FittedSketch(Sketch):
    """A sketch that is fitted on unlabelled factors; its buffers are empty before, and take any shape when loaded."""

    needs_fit = True

    def _declare(self, *names: str) -> None:
        for name in names:
            self.register_buffer(name, torch.empty(0))
        self._fitted_names = names

    def _store(self, **values: Tensor) -> None:
        like = self.get_buffer(self._fitted_names[0])
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        for name, value in values.items():
            kind = dtype if value.is_floating_point() else value.dtype
            setattr(self, name, value.to(device=like.device, dtype=kind).contiguous())

    def _require_fit(self) -> None:
        if self.get_buffer(self._fitted_names[0]).numel() == 0:
            raise NotFittedError(f"the {self.name} sketch needs a fit on unlabelled features first: call fit")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._fitted_names:
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.get_buffer(name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SpectralSketch(FittedSketch):
    """The l products of singular directions with the largest products of singular values. Deterministic, label-free.

    With Φ_i = P_i·diag(s_i)·V_iᵀ over the fit set, the product's coordinates in the basis ⊗V_i are the products of the
    factors' own, and (a_1, ..., a_m) has the marginal energy Π s_i[a_i]². Keeping l of them is an orthogonal
    projection: ⟨S(x), S(x)⟩ ≤ ⟨x, x⟩, and the product itself at l = Π d_i. O(Σ d_i·r_i + m·l) a sample, where r_i
    directions are used.

    Raises:
        DimensionError: l is larger than Π d_i.
    """

    name = "spectral"
    deterministic = True

    def __init__(self, dims: Sequence[int], out_dim: int, *, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        if out_dim > math.prod(dims):
            raise DimensionError(f"{out_dim} components are more than the {math.prod(dims)} dimensions of the product "
                                 f"of {list(dims)}; lower dim")  # fmt: skip
        self._declare(*(f"directions_{i}" for i in range(len(dims))), *(f"chosen_{i}" for i in range(len(dims))))

    def fit_blocks(self, blocks: Iterable[Sequence[Tensor]]) -> Self:
        """Find each factor's singular directions from its second moments, summed in float64.

        Raises:
            DataError: the samples span fewer product directions than ``out_dim``.
        """
        moments = [torch.zeros(dim, dim, dtype=torch.float64) for dim in self.dims]
        samples = 0
        for block in blocks:
            samples += len(block[0])
            for moment, x in zip(moments, block, strict=True):
                x = x.detach().double()
                moment += (x.T @ x).cpu()
        directions, values = [], []
        for moment in moments:
            squares, vectors = torch.linalg.eigh(moment)
            squares, vectors = squares.flip(0), vectors.flip(1)
            rank = int((squares > squares[0] * len(squares) * torch.finfo(torch.float32).eps ** 2).sum())
            rank = min(rank, samples)
            largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
            directions.append((vectors * largest.sign())[:, :rank])  # the sign of a direction is free: fix it
            values.append(squares[:rank])
        available = math.prod(len(v) for v in values)
        if available < self.out_dim:
            raise DataError(
                f"{samples} fit samples span {' × '.join(str(len(v)) for v in values)} = {available} product "
                f"directions, fewer than the {self.out_dim} components; give more samples or lower dim"
            )
        chosen = largest_products(values, self.out_dim)
        used = [int(column.max()) + 1 for column in chosen.T]
        self._store(
            **{f"directions_{i}": v[:, :r] for i, (v, r) in enumerate(zip(directions, used, strict=True))},
            **{f"chosen_{i}": column for i, column in enumerate(chosen.T)},
        )
        return self

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the chosen coordinates, (n, l)."""
        self._require_fit()
        return _multiply(
            [
                (x @ self.get_buffer(f"directions_{i}")).index_select(1, self.get_buffer(f"chosen_{i}"))
                for i, x in enumerate(factors)
            ]
        )


def largest_products(values: Sequence[Tensor], count: int) -> Tensor:
    """Return the indices (count, m) of the ``count`` largest products of one value from each list, in index order.

    Lists are sorted downwards and positive. The best prefixes are enough at each step: a tuple among the largest has
    a prefix among the largest.

    Example:
        >>> largest_products([torch.tensor([4.0, 1.0]), torch.tensor([3.0, 2.0])], 3).tolist()
        [[0, 0], [0, 1], [1, 0]]
    """
    products, indices = values[0], torch.arange(len(values[0])).unsqueeze(1)
    for value in values[1:]:
        table = torch.outer(products, value).flatten()
        best = table.sort(descending=True, stable=True).indices[:count]
        indices = torch.cat([indices[best // len(value)], (best % len(value)).unsqueeze(1)], 1)
        products = table[best]
    radix = torch.zeros(len(indices), dtype=torch.int64)
    for column, value in zip(indices.T, values, strict=True):
        radix = radix * len(value) + column
    return indices[radix.argsort()]


class NystromSketch(FittedSketch):
    """Nyström features of the product kernel: S(x) = Λ^(−1/2)·Vᵀ·k(x, landmarks), K = VΛVᵀ over the landmarks.

    Exact between landmarks when all l = landmarks directions are kept. Label-free; O(landmarks·(Σd_i + l)) a sample.
    Source: Williams and Seeger 2001.

    Args:
        dims: dimensions of the factors.
        out_dim: l.
        landmarks: how many rows of the fit set are landmarks, l or more; None = l.
        seed: of their choice, uniform without replacement.

    Raises:
        ConfigError: fewer landmarks than l.
        DimensionError: l is larger than Π d_i.
    """

    name = "nystrom"

    def __init__(self, dims: Sequence[int], out_dim: int, *, landmarks: int | None = None, seed: int = 0) -> None:
        super().__init__(dims, out_dim, seed=seed)
        self.landmarks = out_dim if landmarks is None else landmarks
        check_positive("landmarks", self.landmarks, integer=True)
        if self.landmarks < out_dim:
            raise ConfigError(f"landmarks={landmarks} are fewer than the {out_dim} components; give as many or more")
        if out_dim > math.prod(dims):
            raise DimensionError(f"{out_dim} components are more than the {math.prod(dims)} dimensions of the product "
                                 f"of {list(dims)}; lower dim")  # fmt: skip
        self._declare("whitening", *(f"landmarks_{i}" for i in range(len(dims))))

    def fit_blocks(self, blocks: Iterable[Sequence[Tensor]]) -> Self:
        """Choose the landmarks (the rows with the smallest random keys) and whiten their kernel.

        Raises:
            DataError: fewer samples than landmarks.
        """
        generator = derived_generator(self.seed, self.name)
        keys, kept, samples = torch.empty(0, dtype=torch.float64), [torch.empty(0, dim) for dim in self.dims], 0
        for block in blocks:
            samples += len(block[0])
            keys = torch.cat([keys, torch.rand(len(block[0]), generator=generator, dtype=torch.float64)])
            best = keys.argsort(stable=True)[: self.landmarks].sort().values
            pool = [torch.cat([old.to(x), x.detach()]) for old, x in zip(kept, block, strict=True)]
            keys, kept = keys[best], [x[best.to(x.device)] for x in pool]
        if samples < self.landmarks:
            raise DataError(f"{samples} fit samples are fewer than the {self.landmarks} landmarks; "
                            f"give more samples or lower dim")  # fmt: skip
        kernel = torch.ones(self.landmarks, self.landmarks, dtype=torch.float64)
        for x in kept:
            kernel *= (x.double() @ x.double().T).cpu()
        values, vectors = torch.linalg.eigh(kernel)
        values, vectors = values.flip(0)[: self.out_dim], vectors.flip(1)[:, : self.out_dim]
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        # Directions without energy in the precision of the features are noise: their coordinate is zero.
        floor = values[0] * len(kernel) * torch.finfo(kept[0].dtype).eps
        scale = torch.where(values > floor, values.clamp_min(1e-300).rsqrt(), torch.zeros_like(values))
        self._store(whitening=vectors * scale, **{f"landmarks_{i}": x for i, x in enumerate(kept)})
        return self

    def forward(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the whitened kernel values, (n, l)."""
        self._require_fit()
        return (
            _multiply([x @ self.get_buffer(f"landmarks_{i}").T for i, x in enumerate(factors)])
            @ self.get_buffer("whitening")
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().describe(), "landmarks": self.landmarks}
