"""Alignments are objects: a name, a class or a partial; one's own is one class with its kernel."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from krossfuse.core.errors import ConfigError, DimensionError
from krossfuse.core.parts import Modality
from krossfuse.fusion import InputSpec, KroneckerSketch, RPKrossFuse, SpectralSketch, UniformSketch
from krossfuse.fusion.alignments import (
    Alignment,
    ExactAlignment,
    OffsetAlignment,
    PublishedAlignment,
    SharedAlignment,
)
from krossfuse.fusion.alignments.base import Constants
from krossfuse.fusion.factories import SketchFactory
from krossfuse.fusion.named import ALIGNMENTS, concrete

ONE = InputSpec(cross_modal=6, image_experts={"dino": 5})
BOTH = InputSpec(cross_modal=6, image_experts={"dino": 5}, text_experts={"e5": 4})


def features(inputs: InputSpec, modality: Modality, n: int = 9) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n + len(modality))
    dims = {"cross_modal": 6, **inputs.experts(modality)}
    return {role: torch.randn(n, dim, generator=generator, dtype=torch.float64) for role, dim in dims.items()}


@pytest.mark.parametrize("inputs", [ONE, BOTH])
@pytest.mark.parametrize("cls", [PublishedAlignment, OffsetAlignment, ExactAlignment])
def test_a_name_a_class_and_a_partial_are_the_same(cls: type[Alignment], inputs: InputSpec) -> None:
    assert ALIGNMENTS[cls.name] is cls
    ways = (cls.name, cls, partial(cls))
    methods = [RPKrossFuse(inputs=inputs, dim=20, alignment=way, seed=2).double() for way in ways]
    for modality in ("image", "text"):
        x = features(inputs, modality)
        first, *others = [method.encode(modality, x) for method in methods]
        assert all(torch.equal(first, other) for other in others)
    assert all(method.describe() == methods[0].describe() for method in methods)
    assert methods[0].describe()["alignment"] == cls.name
    names = set(methods[0].state_dict())
    assert all(name.startswith(("alignment.", "_extra_state")) for name in names)


class CrossModalTwice(Alignment):
    """The cross-modal map twice, scaled to the kernel of texts: of no use, but an alignment of one's own."""

    name = "twice"

    def build(self, dim: int | None, sketch: SketchFactory) -> None:
        if dim != 2 * self.parents.cross_modal.out_dim:
            raise DimensionError(f"dim={dim} must be {2 * self.parents.cross_modal.out_dim} with alignment='twice'")

    @property
    def out_dim(self) -> int:
        return 2 * self.parents.cross_modal.out_dim

    def encode(self, modality: Modality, maps: Mapping[str, Tensor], constants: Constants) -> Tensor:
        scale = (constants["image"] * constants["text"] / 2) ** 0.5
        return torch.cat([maps["cross_modal"] * scale] * 2, 1)

    def side_kernel(self, cross: Tensor, expert: Tensor, constant: float) -> Tensor:
        return cross * constant


def test_an_alignment_of_ones_own() -> None:
    method = RPKrossFuse(inputs=BOTH, dim=12, C=0.5, C_text=3.0, alignment=CrossModalTwice).double()
    for a in ("image", "text"):
        for b in ("image", "text"):
            x, y = features(BOTH, a), features(BOTH, b)
            kernel = method.kernel(a, x, b, y)
            assert torch.allclose(method.encode(a, x) @ method.encode(b, y).T, kernel, atol=1e-12)
    assert method.describe()["alignment"] == "twice"
    assert method.deterministic
    with pytest.raises(DimensionError, match="must be 12"):
        RPKrossFuse(inputs=BOTH, dim=13, alignment=CrossModalTwice)


def test_a_new_file_is_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_alignments"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(
        "from krossfuse.fusion.alignments import ExactAlignment\n\nclass Mine(ExactAlignment):\n    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_alignments  # type: ignore[import-not-found]

    try:
        assert set(concrete(my_alignments, Alignment)) == {"mine", "exact"}  # its own, and what it imports
        assert "shared" not in ALIGNMENTS, "a base that cannot be built has no name"
    finally:
        for name in [n for n in sys.modules if n.startswith("my_alignments")]:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alignment": "exakt"}, ConfigError, "did you mean 'exact'"),
        ({"alignment": 3}, ConfigError, "alignment=3 is not one of"),
        ({"alignment": lambda *_, **__: 3}, ConfigError, "does not build an Alignment; it built int"),
        ({"alignment": OffsetAlignment, "sketch": SpectralSketch}, ConfigError, "no linear projection"),
        ({"alignment": "exact", "dim": 6}, DimensionError, "must be 7 or more"),
        ({"alignment": partial(OffsetAlignment), "expert_weight": 1.0}, ConfigError, "got 'offset'"),
        ({"alignment": "exact", "dim": None}, None, ""),
        ({"alignment": "exact", "dim": None, "sketch": KroneckerSketch}, None, ""),
    ],
)
def test_what_does_not_go_together(options: dict[str, object], error: type[Exception] | None, message: str) -> None:
    def build() -> RPKrossFuse:
        return RPKrossFuse(inputs=ONE, **{"dim": 20, "sketch": UniformSketch, **options})  # type: ignore[arg-type]

    if error is None:
        assert build().out_dim == 6 + 30
    else:
        with pytest.raises(error, match=message):
            build()


def test_a_shared_alignment_needs_its_constant_alone() -> None:
    class Nothing(SharedAlignment):
        """No constant at all: what the expert does not see is zero."""

        name = "nothing"

        def constant(self, sketch: object, factor: int, experts: object) -> Tensor:
            return torch.zeros(1, self.sketch("shared").out_dim)

    method = RPKrossFuse(inputs=ONE, dim=30_000, alignment=Nothing).double()
    image, text = features(ONE, "image"), features(ONE, "text")
    assert not method.encode("text", text).any()
    fused = method.encode("image", image)
    product = method.kernels["cross_modal"].kernel(image["cross_modal"], image["cross_modal"])
    product = product * method.kernels["dino"].kernel(image["dino"], image["dino"])
    assert torch.allclose(fused @ fused.T, product, atol=0.05)
