"""What every method keeps to: its state, precision and errors, gradients, and arguments that cannot be."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from fusion_toys import INPUTS, C, features
from hypothesis import given, settings
from hypothesis import strategies as st

from krossfuse.core.errors import ConfigError, DataError, NotFittedError
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.kernels import GaussianKernel
from krossfuse.fusion.methods import (
    CHUNK_ROWS,
    Alone,
    Concatenation,
    ExactKrossFuse,
    ReleasedCode,
    RPKrossFuse,
    UnimodalKrossFuse,
)
from krossfuse.fusion.sketches import (
    ComplexToRealSRHTSketch,
    NystromSketch,
    SpectralSketch,
    TensorSketch,
)


def methods(inputs: InputSpec) -> list[FusionMethod]:
    return [
        Alone(inputs=inputs),
        Concatenation(inputs=inputs),
        ExactKrossFuse(inputs=inputs),
        ReleasedCode(inputs=inputs, dim=20),
        UnimodalKrossFuse(inputs=inputs, dim=20),
        *(RPKrossFuse(inputs=inputs, dim=20, alignment=a) for a in ("published", "offset", "exact")),
        RPKrossFuse(inputs=inputs, dim=20, sketch=ComplexToRealSRHTSketch),
        RPKrossFuse(inputs=inputs, dim=20, alignment="exact", sketch=SpectralSketch),
        RPKrossFuse(inputs=inputs, dim=20, alignment="exact", sketch=NystromSketch),
        RPKrossFuse(inputs=inputs, dim=20, kernel=partial(GaussianKernel, features=16), sketch=TensorSketch),
    ]


@pytest.mark.parametrize("index", range(len(methods(INPUTS["image"]))))
def test_contract_of_every_method(index: int) -> None:
    train, many = features(50, dtype=torch.float32), features(2 * CHUNK_ROWS + 3, seed=1, dtype=torch.float32)
    method, fresh = (methods(INPUTS["image"])[index] for _ in range(2))
    assert method.fit(image=train["image"], text=train["text"]) is method
    # The state holds everything, in a method that was never fitted.
    fresh.load_state_dict(method.state_dict())
    for modality in method.modalities:
        z = method.encode(modality, many[modality])
        assert z.shape == (2 * CHUNK_ROWS + 3, method.out_dim)
        assert z.dtype == torch.float32
        assert torch.equal(fresh.encode(modality, many[modality]), z)
        few = {role: x[:7] for role, x in many[modality].items()}
        assert torch.allclose(method.encode(modality, few), z[:7], atol=1e-5)
        half = {role: x.half() for role, x in few.items()}
        assert method.encode(modality, half).dtype == torch.float32
        assert method.encode(modality, {r: x[:0] for r, x in few.items()}).shape == (0, method.out_dim)
        with pytest.raises(DataError, match="missing"):
            method.encode(modality, {})
        for role in few:
            wrong = {**few, role: few[role][:, 1:]}
            nan = {**few, role: few[role] * math.nan}
            short = {**few, role: few[role][1:]}
            if role not in method.roles(modality):  # type: ignore[operator]
                continue
            with pytest.raises(DataError, match=f"features of '{role}'.*expected"):
                method.encode(modality, wrong)
            with pytest.raises(DataError, match=f"features of '{role}'.*NaN"):
                method.encode(modality, nan)
            if len(method.roles(modality)) > 1:  # type: ignore[operator]
                with pytest.raises(DataError, match="same number of rows"):
                    method.encode(modality, short)
    description = method.describe()
    assert description["dim"] == method.out_dim
    assert all(isinstance(v, str | int | float | bool | dict | None) for v in description.values())
    wide = methods(INPUTS["image"])[index].double()
    wide.fit(image=features(50)["image"], text=features(50)["text"])
    assert wide.encode("image", features()["image"]).dtype == torch.float64


def test_unfitted_sketch_and_missing_fit_data() -> None:
    for sketch in (SpectralSketch, NystromSketch):
        method = RPKrossFuse(inputs=INPUTS["image"], dim=20, alignment="exact", sketch=sketch)
        with pytest.raises(NotFittedError, match=sketch.name):
            method.encode("image", features(dtype=torch.float32)["image"])
        with pytest.raises(DataError, match="image features"):
            method.fit(text=features()["text"])
        with pytest.raises(DataError, match="fewer"):
            method.fit(image=features(2)["image"])


@pytest.mark.parametrize("index", range(len(methods(INPUTS["image"]))))
def test_gradients_through_the_features(index: int) -> None:
    method = methods(INPUTS["image"])[index].double()
    train, x = features(50), features(2, seed=3)["image"]
    method.fit(image=train["image"], text=train["text"])
    roles = method.roles("image")  # type: ignore[operator]
    inputs = [x[role].requires_grad_() for role in roles]
    assert torch.autograd.gradcheck(lambda *v: method.encode("image", dict(zip(roles, v, strict=True))), inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim=0"),
        ({"dim": 20, "C": 0.0}, "C=0.0"),
        ({"dim": 20, "C": math.nan}, "C=nan"),
        ({"dim": 20, "C_text": 1.0}, "experts on both sides"),
        ({"dim": 20, "alignment": "exakt"}, "did you mean 'exact'"),
        ({"dim": 20, "seed": 1.5}, "seed=1.5"),
        ({"dim": 20, "sketch": SpectralSketch}, "use alignment='exact'"),
        ({"dim": 20, "expert_weight": 1.0}, "expert_weight=1.0 needs alignment='exact'"),
        ({"dim": 20, "expert_weight": -1.0, "alignment": "exact"}, "expert_weight=-1.0"),
        ({"dim": 100, "sketch": SpectralSketch, "alignment": "exact"}, "94 components are more than the 48"),
        ({"dim": 20, "inputs": InputSpec(None, {"a": 3, "b": 4})}, "fusion=unimodal_krossfuse"),
        ({"dim": 20, "inputs": InputSpec(6)}, "needs an expert"),
    ],
)
def test_impossible_configurations(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RPKrossFuse(**{"inputs": INPUTS["image"], **arguments})


def test_the_constants_can_be_set_again() -> None:
    x = features(50)
    one = RPKrossFuse(inputs=INPUTS["both"], dim=30, alignment="exact", sketch=SpectralSketch, C=C).double()
    one.fit(image=x["image"], text=x["text"])
    for method in (one, RPKrossFuse(inputs=INPUTS["both"], dim=30, C=C).double()):
        method.set_C(2.0, 3.0)
        again = RPKrossFuse(**method.arguments).double()
        again.load_state_dict(method.state_dict())
        for m in ("image", "text"):
            assert torch.equal(again.encode(m, x[m]), method.encode(m, x[m]))
        assert (method.describe()["C"], method.describe()["C_text"]) == (2.0, 3.0)


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-2, 1e2))
@settings(max_examples=25, deadline=None)
def test_cosine_fusion_ignores_the_scale_of_features(seed: int, constant: float, scale: float) -> None:
    x = features(4, seed=seed)["image"]
    method = RPKrossFuse(inputs=INPUTS["image"], dim=16, C=constant, seed=seed).double()
    scaled = {role: value * scale for role, value in x.items()}
    assert torch.allclose(method.encode("image", x), method.encode("image", scaled), rtol=1e-9, atol=1e-12)
    exact = ExactKrossFuse(inputs=INPUTS["image"], C=constant).double()
    z = exact.encode("image", x)
    # A unit vector's similarity with itself, and the largest there is.
    assert torch.allclose(z.square().sum(1), torch.full((4,), 1 + constant).double())
