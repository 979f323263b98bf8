"""The table of what is exportable: every method, sketch, kernel, alignment; torch.export, one compiled graph, ONNX."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import krossfuse.fusion as room
from krossfuse.core.errors import ConfigError, DataError, NotFittedError
from krossfuse.core.parts import Modality
from krossfuse.fusion import (
    AverageKernel,
    CentredKernel,
    ExactKrossFuse,
    FusionMethod,
    GaussianKernel,
    InputSpec,
    RPKrossFuse,
    SpectralSketch,
)
from krossfuse.fusion.export import FusionFunction, check_batch, compiled, export_onnx, export_program, in_precision
from krossfuse.fusion.named import ALIGNMENTS, KERNELS, SKETCHES

INPUTS = InputSpec(cross_modal=12, image_experts={"dino": 16})
BATCHES = (1, 7, 512)
TOLERANCE = 1e-6

Make = Callable[[], FusionMethod]


def rp(**options: Any) -> Make:
    return partial(RPKrossFuse, inputs=INPUTS, **{"dim": 40, "alignment": "exact", **options})


def of(name: str, **options: Any) -> Make:
    return partial(getattr(room, name), inputs=INPUTS, **options)


MAKE: dict[str, Make] = {
    **{f"sketch {name}": rp(sketch=factory) for name, factory in SKETCHES.items()},
    "sketch kronecker": rp(sketch=SKETCHES["kronecker"], dim=None),
    "sketch joint_fourier": rp(sketch=SKETCHES["joint_fourier"], dim=64, kernel=partial(GaussianKernel, features=32)),
    **{f"kernel {name}": rp(expert_kernel=factory, dim=64) for name, factory in KERNELS.items()},
    **{f"alignment {name}": rp(alignment=factory) for name, factory in ALIGNMENTS.items()},
    "preset": rp(sketch=SpectralSketch, expert_kernel=CentredKernel, product_kernel=CentredKernel, C="variance",
                 expert_weight=4.0, dim=60),
    "Alone": of("Alone"),
    "Attention": of("Attention", dim=16, epochs=2),
    "AverageKernel": of("AverageKernel"),
    "CCA": of("CCA"),
    "Comm": of("Comm", dim=16, epochs=2),
    "Concatenation": of("Concatenation", missing="zeros"),
    "ExactKrossFuse": of("ExactKrossFuse"),
    "ExactKrossFuse, fit span": of("ExactKrossFuse", max_dim=10),
    "Gate": of("Gate", dim=16, epochs=2),
    "PCAConcatenation": of("PCAConcatenation", dim=5, missing="zeros"),
    "PostProcess": of("PostProcess", method=AverageKernel, pca_dim=5, normalise=True),
    "RFFConcatenation": of("RFFConcatenation"),
    "ReleasedCode": of("ReleasedCode", dim=40),
    "UnimodalKrossFuse": partial(
        room.UnimodalKrossFuse, inputs=InputSpec(image_experts={"one": 12, "other": 16}), dim=40
    ),
}  # fmt: skip

IN_ONNXRUNTIME = {"sketch tensor_sketch": 1e-5}
"""Of whom more is allowed in ONNX: its runtime's Fourier transform in float32 has larger errors than torch's."""


def test_the_table_has_everything_that_there_is() -> None:
    classes = {name: getattr(room, name) for name in room.__all__}
    methods = {name for name, cls in classes.items() if isinstance(cls, type) and issubclass(cls, FusionMethod)}
    tried = {type(make()).__name__ for make in MAKE.values()}
    assert {m for m in methods if m not in ("FusionMethod", "TrainedFusion")} == tried
    assert {f"sketch {name}" for name in SKETCHES} | {f"kernel {name}" for name in KERNELS} <= set(MAKE)


def features(n: int, roles: dict[str, int], seed: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, dim, generator=generator) for dim in roles.values())


@pytest.fixture(scope="module")
def fitted() -> Callable[[str], FusionMethod]:
    made: dict[str, FusionMethod] = {}

    def make(name: str) -> FusionMethod:
        if name not in made:
            method = MAKE[name]()
            given = {
                m: dict(
                    zip(FusionFunction(method, m).roles, features(90, FusionFunction(method, m).roles), strict=True)
                )
                for m in method.modalities
            }
            labels = torch.arange(90) % 3 if method.trained else None
            made[name] = method.fit(image=given.get("image"), text=given.get("text"), labels=labels)
        return made[name]

    return make


def rows(*, slow: bool = False) -> list[Any]:
    """Every method on every side; with ``slow`` the text side, whose form is the image side's, is marked so."""
    sides = [(name, m) for name, make in MAKE.items() for m in make().modalities]
    return [
        pytest.param(name, m, id=f"{name}-{m}", marks=pytest.mark.slow if slow and (name, "image") in sides[:i] else ())
        for i, (name, m) in enumerate(sides)
    ]


def farthest(method: FusionMethod, modality: Modality, run: Callable[..., torch.Tensor]) -> float:
    """Return the largest difference from eager over all batch sizes, relative to the largest magnitude, or 1."""
    worst = 0.0
    for n in BATCHES:
        function = FusionFunction(method, modality)
        given = features(n, dict(function.roles), seed=n)
        eager = method.encode(modality, dict(zip(function.roles, given, strict=True)))
        assert eager.shape == (n, method.out_dim)
        worst = max(worst, float((run(*given) - eager).abs().max() / eager.abs().max().clamp_min(1)))
    return worst


OLD = torch.__version__.startswith("2.6.")


@pytest.mark.parametrize(("name", "modality"), rows(slow=True))
def test_torch_export(name: str, modality: Modality, fitted: Callable[[str], FusionMethod], tmp_path: Path) -> None:
    if OLD and name == "sketch tensor_sketch":
        pytest.skip("torch 2.6 does not export Fourier transforms")
    method = fitted(name)
    torch.export.save(export_program(method, modality), tmp_path / "fusion.pt2")
    assert farthest(method, modality, torch.export.load(tmp_path / "fusion.pt2").module()) <= TOLERANCE


@pytest.mark.skipif(OLD, reason="torch 2.6 does not trace context managers of contextlib")
@pytest.mark.parametrize(("name", "modality"), rows(slow=True))
def test_one_compiled_graph(name: str, modality: Modality, fitted: Callable[[str], FusionMethod]) -> None:
    torch._dynamo.reset()
    assert farthest(fitted(name), modality, compiled(fitted(name), modality, backend="aot_eager")) <= TOLERANCE


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs krossfuse[onnx]: make test-extras")
@pytest.mark.parametrize(("name", "modality"), rows())
def test_onnx(name: str, modality: Modality, fitted: Callable[[str], FusionMethod], tmp_path: Path) -> None:
    import onnxruntime

    method, path = fitted(name), tmp_path / "fusion.onnx"
    export_onnx(method, modality, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    roles = list(FusionFunction(method, modality).roles)

    def run(*given: torch.Tensor) -> torch.Tensor:
        fed = {role: x.numpy() for role, x in zip(roles, given, strict=True) if role in names}
        (fused,) = session.run(["fused"], fed)
        return torch.from_numpy(fused)

    assert farthest(method, modality, run) <= IN_ONNXRUNTIME.get(name, TOLERANCE)


HALF = {"float16": 4e-3, "bfloat16": 3e-2}
"""By precision, how far an embedding may be from float32's over its norm: a few units of rounding (2^-11, 2^-8)."""

NOT_IN_HALF = {"sketch tensor_sketch", "sketch complex_to_real", "sketch complex_to_real_srht", "sketch joint_fourier"}
"""Who multiplies complex numbers, for which torch has no bfloat16, and on a CPU no Fourier transform of float16."""

PLAIN_HALF = ("sketch uniform", "sketch srht", "sketch spectral", "preset", "Concatenation", "PCAConcatenation", "CCA",
              "Gate", "Attention", "AverageKernel", "Alone", "ReleasedCode", "kernel gaussian")  # fmt: skip


def in_half(method: FusionMethod, precision: str, run: Callable[..., torch.Tensor]) -> float:
    """Return the largest distance of an embedding from that of float32, over the latter's norm."""
    function = FusionFunction(method, "image")
    worst = 0.0
    for n in BATCHES:
        given = features(n, dict(function.roles), seed=n)
        full = method.encode("image", dict(zip(function.roles, given, strict=True)))
        fused = run(*(x.to(getattr(torch, precision)) for x in given))
        assert (full.dtype, fused.dtype) == (torch.float32, getattr(torch, precision))
        worst = max(worst, float(((fused.float() - full).norm(dim=1) / full.norm(dim=1)).max()))
    return worst


@pytest.mark.parametrize("precision", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PLAIN_HALF)
def test_half_precision_export(
    name: str, precision: str, fitted: Callable[[str], FusionMethod], tmp_path: Path
) -> None:
    method = fitted(name)
    half = in_precision(method, getattr(torch, precision))
    torch.export.save(export_program(half, "image"), tmp_path / "fusion.pt2")
    off = in_half(method, precision, torch.export.load(tmp_path / "fusion.pt2").module())
    assert 0 < off <= HALF[precision]


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs krossfuse[onnx]: make test-extras")
@pytest.mark.parametrize("name", PLAIN_HALF[:4])
def test_half_precision_onnx(name: str, fitted: Callable[[str], FusionMethod], tmp_path: Path) -> None:
    import onnxruntime

    method, path = fitted(name), tmp_path / "fusion.onnx"
    export_onnx(in_precision(method, torch.float16), "image", path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names, roles = [i.name for i in session.get_inputs()], list(FusionFunction(method, "image").roles)

    def run(*given: torch.Tensor) -> torch.Tensor:
        fed = {role: x.numpy() for role, x in zip(roles, given, strict=True) if role in names}
        return torch.from_numpy(session.run(["fused"], fed)[0])

    assert 0 < in_half(method, "float16", run) <= HALF["float16"]


def test_who_has_no_half_precision_says_so(fitted: Callable[[str], FusionMethod]) -> None:
    for name in sorted(NOT_IN_HALF):
        with pytest.raises(ConfigError, match="RPKrossFuse has no form in bfloat16 on cpu.*export it in float32"):
            in_precision(fitted(name), torch.bfloat16)
    with pytest.raises(ConfigError, match=r"dtype=torch\.int8"):
        in_precision(fitted("Alone"), torch.int8)


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match="fit"):
        export_program(MAKE["sketch spectral"](), "image")
    with pytest.raises(ConfigError, match="explicit"):
        export_program(ExactKrossFuse(inputs=INPUTS, explicit=False), "image")
    with pytest.raises(ConfigError, match="modality='text'"):
        export_program(AverageKernel(inputs=INPUTS), "text")

    class Looks(AverageKernel):
        def encode(self, modality: Modality, features: Any) -> torch.Tensor:
            fused = super().encode(modality, features)
            return fused * 2 if float(fused.sum()) > 0 else fused

    with pytest.raises(ConfigError, match=r"Looks cannot be written by torch\.export"):
        export_program(Looks(inputs=INPUTS), "image")


def test_checks_stay_outside() -> None:
    """What the method refuses, ``check_batch`` refuses; the traced function gives NaN."""
    method = MAKE["sketch uniform"]()
    program = export_program(method, "image").module()
    bad = {"cross_modal": torch.zeros(2, 12), "dino": torch.ones(2, 16)}
    with pytest.raises(DataError, match="zero vectors"):
        check_batch(method, "image", bad)
    assert program(*bad.values()).isnan().any()
