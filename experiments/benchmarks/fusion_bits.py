"""The bits of every fusion preset, to compare two versions of the code.

Encodes seeded random features with every option of ``conf/fusion``, and RP-KrossFuse with every alignment, sketch and
kernel that go together, fitted on them; writes all embeddings to a safetensors file, or compares them with one. Only
the configuration and ``krossfuse.fusion.base.InputSpec`` are used, so that a checkout of any version runs it::

    PYTHONPATH=OTHER_CHECKOUT python experiments/benchmarks/fusion_bits.py --out before.safetensors
    PYTHONPATH=.              python experiments/benchmarks/fusion_bits.py --against before.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from torch import Tensor

import krossfuse
from krossfuse.fusion.base import InputSpec

ONE_SIDE = InputSpec(cross_modal=24, image_experts={"dino": 40})
TEXT_SIDE = InputSpec(cross_modal=24, text_experts={"minilm": 18})
BOTH = InputSpec(cross_modal=24, image_experts={"dino": 40}, text_experts={"minilm": 18})
SEVERAL = InputSpec(cross_modal=24, image_experts={"dino": 40, "unicom": 16})
DIM = {"rp_krossfuse": 96, "spectral_krossfuse": 96, "unimodal_krossfuse": 96, "pca_concatenation": 20}
TRAINED = ("gate", "attn", "comm")
FOURIER = ("gaussian", "laplace", "cauchy", "matern")
FITTED = ("spectral", "nystrom")


def cases() -> Iterator[tuple[str, InputSpec, list[str]]]:
    """Yield name, dimensions and overrides of everything that is encoded."""
    conf = Path(krossfuse.__file__).resolve().parents[1] / "conf" / "fusion"
    for preset in sorted(file.stem for file in conf.glob("*.yaml")):
        overrides = [f"fusion={preset}"]
        if preset in DIM:
            overrides.append(f"fusion.dim={DIM[preset]}")
        if preset == "postprocessed":
            overrides += ["fusion.method.dim=96", "fusion.pca_dim=20"]
        if preset in TRAINED:
            overrides.append("fusion.epochs=2")
        yield preset, TEXT_SIDE if preset == "text_expert" else ONE_SIDE, overrides
    sketches = sorted(file.stem for file in (conf / "sketch").glob("*.yaml"))
    for alignment in ("published", "offset", "exact"):
        for sketch in sketches:
            if sketch in ("joint_fourier", "kronecker") or (sketch in FITTED and alignment != "exact"):
                continue
            base = [f"fusion.alignment={alignment}", f"fusion/sketch={sketch}", "fusion.dim=96", "fusion.C=0.3"]
            for inputs in (ONE_SIDE, TEXT_SIDE, BOTH, SEVERAL):
                if inputs is SEVERAL and alignment == "published":
                    continue
                both = ["fusion.C_text=2.0"] if inputs is BOTH else []
                sides = f"{len(inputs.image_experts)}+{len(inputs.text_experts)}"
                yield f"{alignment}/{sketch}/{sides}", inputs, ["fusion=rp_krossfuse", *base, *both]
    for kernel in sorted(file.stem for file in (conf / "kernel").glob("*.yaml")):
        more = [f"fusion/kernel={kernel}", "fusion.dim=400", "fusion.alignment=exact"]
        if kernel in (*FOURIER, "polynomial"):
            more.append("fusion.kernel.features=128")
        yield f"kernel/{kernel}", BOTH, ["fusion=rp_krossfuse", *more]
    for rule in ("cv", "auto"):
        yield f"C={rule}", ONE_SIDE, ["fusion=rp_krossfuse", "fusion.dim=96", f"fusion.C={rule}"]
    weight = ["fusion.alignment=exact", "fusion.dim=96", "fusion.expert_weight=0.7"]
    yield "expert_weight", BOTH, ["fusion=rp_krossfuse", *weight]
    yield "exact_both", BOTH, ["fusion=exact_krossfuse", "fusion.C_text=0.4", "fusion.expert_weight=0.2"]
    joint = ["fusion/kernel=gaussian", "fusion/sketch=joint_fourier", "fusion.kernel.features=64", "fusion.dim=64"]
    yield "unimodal/joint_fourier", ONE_SIDE, ["fusion=unimodal_krossfuse", *joint]


def features(inputs: InputSpec, modality: str, n: int, labels: Tensor) -> dict[str, Tensor]:
    """Draw features with class structure, by role."""
    experts = inputs.image_experts if modality == "image" else inputs.text_experts
    out = {}
    for i, (role, dim) in enumerate({"cross_modal": inputs.cross_modal or 0, **experts}.items()):
        generator = torch.Generator().manual_seed(100 * n + 10 * i + len(modality))
        noise = torch.randn(n, dim, generator=generator)
        out[role] = noise + torch.randn(10, dim, generator=generator)[labels]
    return out


def embeddings() -> dict[str, Tensor]:
    """Encode every case; kernels beside the embeddings."""
    torch.manual_seed(0)
    conf = Path(krossfuse.__file__).resolve().parents[1] / "conf"
    out: dict[str, Tensor] = {}
    labels, test = torch.arange(300) % 10, torch.arange(700) % 10
    with initialize_config_dir(str(conf), version_base=None):
        for name, inputs, overrides in cases():
            node: Any = compose("config", overrides=overrides).fusion
            method = instantiate(node, _convert_="all")(inputs=inputs)
            train = {m: features(inputs, m, 300, labels) for m in ("image", "text")}
            method.fit(image=train["image"], text=train["text"], labels=labels)
            method.eval()
            for modality in method.modalities:
                x = features(inputs, modality, 700, test)
                with torch.no_grad():
                    out[f"{name}/{modality}"] = method.encode(modality, x).contiguous()
                    few = {role: rows[:20] for role, rows in x.items()}
                    kernel = method.kernel(modality, few, modality, few)
                if kernel is not None:
                    out[f"{name}/{modality}/kernel"] = kernel.contiguous()
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--against", type=Path, help="file to compare with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = embeddings()
    if options.out:
        save_file(found, options.out)
    if options.against:
        before = load_file(options.against)
        differ = [n for n in before if n not in found or not torch.equal(before[n], found[n])]
        print(f"{len(before) - len(differ)} of {len(before)} tensors are equal to the bit; {len(found)} are here")
        print(*differ, sep="\n")
        return 1 if differ else 0
    print(f"{len(found)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
