"""A fusion method as a plain function of tensors: for ``torch.export``, ``torch.compile`` and ONNX.

Every method of this package is one once it is fitted (``tests/fusion/test_export.py`` is the table). What looks at
values (NaN, zero vectors, whether it was fitted) stays outside of the traced function: check a batch by
:func:`check_batch`, or by the method itself, where it may be bad; the traced function gives NaN for what the method
would refuse. Rows so large or small that their squares leave the range of the precision are not rescaled there.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, KrossFuseError, check_choice, require
from krossfuse.core.files import replacing
from krossfuse.core.logs import quieter
from krossfuse.core.parts import Modality
from krossfuse.fusion.base import FusionMethod
from krossfuse.fusion.stream import device_of, roles_of

OPSET = 18
"""Of the ONNX operators, unless another is asked for."""

ROWS = 3
"""Rows of the example that is traced; the function takes any number."""


class FusionFunction(nn.Module):
    """A method's encoding of one modality: features in the order of :attr:`roles`, (n, d) each, to (n, out_dim).

    Args:
        method: fitted; it is held in evaluation mode, without gradients.
        modality: that it encodes.

    Attributes:
        roles: by role, the dimension of each input; the cross-modal encoder first, then the experts.

    Raises:
        ConfigError: the method does not encode the modality.
    """

    def __init__(self, method: FusionMethod, modality: Modality) -> None:
        super().__init__()
        check_choice("modality", modality, method.modalities)
        self.method, self.modality = method.eval().requires_grad_(False), modality
        self.roles = roles_of(method.inputs, modality)

    def forward(self, *features: Tensor) -> Tensor:
        """Return the fused embeddings, (n, out_dim)."""
        return self.method.encode(self.modality, dict(zip(self.roles, features, strict=True)))

    def example(self) -> tuple[Tensor, ...]:
        """Return features of the right shapes, on the method's device, in its precision."""
        device, generator = device_of(self.method), torch.Generator().manual_seed(0)
        tensors = [*self.method.parameters(), *self.method.buffers()]
        dtype = next((x.dtype for x in tensors if x.is_floating_point()), torch.float32)
        return tuple(torch.randn(ROWS, dim, generator=generator).to(device, dtype) for dim in self.roles.values())


def in_precision(method: FusionMethod, dtype: torch.dtype) -> FusionMethod:
    """Return a copy of a fitted method whose tensors have another precision, to be exported in it.

    Features come in and embeddings go out in that precision; what it costs is for the user to measure
    (docs/model.md has an example).

    Args:
        method: fitted; it stays as it is.
        dtype: ``torch.float16``, ``torch.bfloat16``, ``torch.float32`` or ``torch.float64``.

    Raises:
        ConfigError: the dtype is none of floating-point numbers, or an operator of the method has no form in it.
    """
    if not dtype.is_floating_point:
        raise ConfigError(f"dtype={dtype} must be one of floating-point numbers, such as torch.float16")
    made = copy.deepcopy(method).to(dtype)
    for modality in made.modalities:
        function = FusionFunction(made, modality)
        try:
            fused = function(*function.example())
        except (RuntimeError, NotImplementedError) as error:
            raise ConfigError(
                f"{type(method).__name__} has no form in {str(dtype).removeprefix('torch.')} on "
                f"{device_of(method)}: {str(error).splitlines()[0]}; export it in float32"
            ) from error
        if not bool(torch.isfinite(fused).all()):
            raise ConfigError(
                f"{type(method).__name__} leaves the range of {str(dtype).removeprefix('torch.')}; export it in float32"
            )
    return made


def check_batch(method: FusionMethod, modality: Modality, features: Mapping[str, Tensor]) -> None:
    """Check what a traced function does not: raises as :meth:`FusionMethod.encode` would.

    Raises:
        DataError: a role is missing, has the wrong dimension, or holds NaN or a zero vector.
        NotFittedError: the method needs a fit first.
    """
    method.encode(modality, features)


def export_program(method: FusionMethod, modality: Modality) -> torch.export.ExportedProgram:
    """Return a method as an exported program of any number of rows; ``torch.export.save`` writes it.

    Args:
        method: fitted.
        modality: that it encodes.

    Raises:
        ConfigError: the method is no function of tensors alone; the message says where it is not.
        NotFittedError: it needs a fit first.
    """
    function = FusionFunction(method, modality)
    example = function.example()
    function(*example)  # says what a trace could not: that it is not fitted, that it has no map
    batch = torch.export.Dim("batch", min=1, max=2**31 - 1)
    with _as_ours(method, "torch.export"):
        return torch.export.export(
            function, example, dynamic_shapes=(tuple({0: batch} for _ in example),), strict=False
        )


def compiled(method: FusionMethod, modality: Modality, **options: Any) -> Any:
    """Return a method as ``torch.compile`` makes it: one graph, any number of rows.

    Args:
        method: fitted.
        modality: that it encodes.
        **options: of ``torch.compile`` (``backend``, ``mode``, ...).

    Raises:
        NotFittedError: it needs a fit first.
    """
    function = FusionFunction(method, modality)
    function(*function.example())
    return torch.compile(function, **{"dynamic": True, "fullgraph": True, **options})


def export_onnx(method: FusionMethod, modality: Modality, path: Path | str, *, opset: int = OPSET) -> Path:
    """Write a method as an ONNX file of any number of rows: inputs by role, output ``fused``.

    Needs ``krossfuse[onnx]``. The file is written whole or not at all; weights lie in it.

    Args:
        method: fitted.
        modality: that it encodes.
        path: of the file.
        opset: of the ONNX operators.

    Returns:
        ``path``.

    Raises:
        ConfigError: a package is not installed, or the method uses an operator that ONNX lacks.
        NotFittedError: it needs a fit first.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "an ONNX file", extra="onnx", instead="export_program")
    function, path = FusionFunction(method, modality), Path(path)
    program = export_program(method, modality)
    with _as_ours(method, "ONNX"):
        made = torch.onnx.export(
            program,
            function.example(),
            input_names=list(function.roles),
            output_names=["fused"],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        assert made is not None
        with replacing(path) as partial:
            made.save(str(partial))
    return path


@contextmanager
def _as_ours(method: FusionMethod, what: str) -> Iterator[None]:
    """Turn the errors of an exporter into one that names the method, and keep its remarks to itself."""
    try:
        with quieter("torch.onnx", level=logging.ERROR), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except KrossFuseError:
        raise
    except Exception as error:  # the exporters raise of all kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ConfigError(
            f"{type(method).__name__} cannot be written by {what}: {type(error).__name__}: {first}"
        ) from error
