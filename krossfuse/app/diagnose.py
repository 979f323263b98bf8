"""``krossfuse diagnose FILE``: what an approximation costs on your own embeddings (docs/embeddings.md).

krossfuse diagnose FILE                                                  the preset
krossfuse diagnose FILE fusion=spectral_krossfuse fusion.dim=600         any configuration of a fusion method
krossfuse diagnose FILE --dim 600 --sketch srht --C 0.1                  RP-KrossFuse by a few flags
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from krossfuse.app.build import job_config
from krossfuse.app.fuse_and_probe import make_method
from krossfuse.app.paths import CONFIG_DIR
from krossfuse.core.errors import ConfigError
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.diagnose import diagnose
from krossfuse.fusion.methods import RPKrossFuse
from krossfuse.fusion.named import KERNELS, SKETCHES, kernel_named, sketch_named

PRESET = "spectral_krossfuse"

FLAGS: dict[str, Any] = {
    "dim": 768,
    "alignment": "exact",
    "sketch": "spectral",
    "kernel": "cosine",
    "C": "1.0",
    "expert_weight": 0.0,
}
"""The flags of RP-KrossFuse, with what they are where another of them is given."""


def main(arguments: Iterable[str] | None = None) -> int:
    """Run ``krossfuse diagnose``; returns the exit status.

    Raises:
        ConfigError: an impossible configuration, or one in both ways.
        DataError: the features do not suit it.
    """
    options = _parser().parse_args(None if arguments is None else list(arguments))

    from rich.console import Console
    from rich.table import Table

    from krossfuse.features.embeddings import EmbeddingsFile

    method = _method(options)
    bundle = EmbeddingsFile(path=str(options.file)).bundle()
    report = diagnose(
        bundle,
        method,
        seeds=options.seeds,
        target=options.target,
        max_rows=options.rows,
        label_set=next(iter(bundle.info.label_sets), None),
    )
    table = Table(title=f"{bundle.info.name}: {report.n_images} images, {report.n_texts} texts")
    table.add_column("figure")
    table.add_column(f"mean [95% interval over {report.interval_over}]")
    shown = ("method", "dim", "alignment", "sketch", "kernel", "C", "expert_weight", "product_kernel")
    for name, value in [(key, str(report.config[key])) for key in shown if key in report.config] + report.rows():
        table.add_row(name, value)
    Console().print(table)
    if options.out is not None:
        options.out.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="krossfuse diagnose", description="Kernel error, zero-shot agreement and the dimension that you need."
    )
    parser.add_argument("file", type=Path, help="embeddings, .safetensors or .npz (docs/embeddings.md)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="fusion=...",
        help=f"configuration of the method, as for a run (default: fusion={PRESET})",
    )
    flags = parser.add_argument_group("RP-KrossFuse without a configuration")
    flags.add_argument("--dim", type=int, help=f"total dimension (default: {FLAGS['dim']})")
    flags.add_argument("--alignment", help=f"published, offset or exact (default: {FLAGS['alignment']})")
    flags.add_argument("--sketch", help=f"{', '.join(SKETCHES)} (default: {FLAGS['sketch']})")
    flags.add_argument("--kernel", help=f"{', '.join(KERNELS)} (default: {FLAGS['kernel']})")
    flags.add_argument("--C", help=f"positive number, cv, variance or auto (default: {FLAGS['C']})")
    flags.add_argument(
        "--expert-weight", type=float, help=f"of the expert's own kernel (default: {FLAGS['expert_weight']})"
    )
    parser.add_argument("--target", type=float, help="relative kernel error whose smallest dimension is searched for")
    parser.add_argument("--seeds", type=int, default=5, help="draws (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1000, help="items compared at most (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser


def _method(options: argparse.Namespace) -> Callable[..., FusionMethod]:
    """Return what makes the method, from flags or from a configuration."""
    given = {flag: value for flag in FLAGS if (value := getattr(options, flag)) is not None}
    if not given:
        return _configured(options.overrides or [f"fusion={PRESET}"])
    if options.overrides:
        flag = next(iter(given)).replace("_", "-")
        raise ConfigError(
            f"--{flag} and {options.overrides[0]!r} both configure the method; say it all in one way, "
            f"e.g. fusion.{flag.replace('-', '_')}=..."
        )
    flags = FLAGS | given
    return partial(
        RPKrossFuse,
        dim=flags["dim"],
        alignment=flags["alignment"],
        sketch=sketch_named(str(flags["sketch"])),
        kernel=kernel_named(str(flags["kernel"])),
        C=_number_or_rule(str(flags["C"])),
        expert_weight=flags["expert_weight"],
    )


def _configured(overrides: Sequence[str]) -> Callable[..., FusionMethod]:
    """Return what makes the method of a configuration for given dimensions, a seed and a total dimension."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    others = [word for word in overrides if not word.lstrip("+~").startswith(("fusion", "seed="))]
    if others:
        raise ConfigError(f"{others[0]!r} does not configure a fusion method; say fusion=NAME or fusion.KEY=VALUE")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides))

    def method(*, inputs: InputSpec, seed: int, dim: int | None = None) -> FusionMethod:
        cfg.seed = seed
        if dim is not None:
            cfg.fusion.dim = dim
        return make_method(job_config(cfg), inputs)

    return method


def _number_or_rule(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
