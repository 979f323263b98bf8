"""The kind of job that this project is about: features of a pair, fused, probed, recorded."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from omegaconf import OmegaConf
from torch import Tensor

from krossfuse.app.build import make
from krossfuse.app.kind import Kind, Plain, Session
from krossfuse.app.record import make_records
from krossfuse.app.snapshot import take_snapshot
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import (
    ConfigError,
    DataError,
    DimensionError,
    KrossFuseError,
    check_choice,
    check_positive,
)
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.parts import CROSS_MODAL, SPLITS, TEST, Part
from krossfuse.data.embeddings import EmbeddingsFile
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.pair import Pair
from krossfuse.features.extract import extract
from krossfuse.features.store import FeatureStore
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.io import save_fusion
from krossfuse.fusion.module import FusionModule
from krossfuse.fusion.stream import inputs_of
from krossfuse.probes.base import EmbeddingSpace, Probe

log = logging.getLogger(__name__)

NOMINAL_DIM = 64
"""Dimension that stands for an encoder's own while a configuration is checked and no encoder is loaded yet."""

FEATURE_KEYS = ("data", "pair", "trainer", "extraction", "paths")
"""Top keys of the configuration that decide the features."""


@dataclass(frozen=True)
class Job:
    """The components of one job, validated; no data and no weights are loaded. ``fusion`` is the option's name."""

    cfg: Plain
    fusion: str
    data: Any
    pair: Pair | None
    probes: dict[str, Probe]


class FuseAndProbe(Kind):
    """Fuse the features of a pair of encoders, and probe the fused embedding."""

    keys: ClassVar[Mapping[str | None, tuple[str, ...]]] = {
        None: ("extraction", "fuse", "save_fusion", "figures", "pair", "data", "store", "fusion", "probe"),
        "extraction": ("batch_size", "progress"),
        "fuse": ("label_set", "block_rows", "memory_limit"),
        "figures": ("label_set", "max_items"),
    }

    def build(self, cfg: Plain, choices: Mapping[str, str]) -> Job:
        """Build and so validate every component of a job; see :meth:`Kind.build`."""
        check_positive("extraction.batch_size", cfg["extraction"]["batch_size"], integer=True)
        check_positive("fuse.block_rows", cfg["fuse"]["block_rows"], integer=True)
        check_positive("fuse.memory_limit", cfg["fuse"]["memory_limit"])
        check_positive("figures.max_items", cfg["figures"]["max_items"], integer=True)
        flags = {"save_fusion": cfg["save_fusion"], "extraction.progress": cfg["extraction"]["progress"]}
        for flag, value in flags.items():
            if not isinstance(value, bool):
                raise ConfigError(f"{flag}={value!r} must be true or false")
        if not cfg.get("probe"):
            raise ConfigError("probe=[] measures nothing; choose at least one, e.g. probe=[linear_probe]")
        source = make_source(cfg, TrainerFactory(cfg["trainer"]))
        pair = source.pair if isinstance(source, Extraction) else None
        probes = {name: make(node, f"probe.{name}") for name, node in cfg["probe"].items()}
        if pair is not None:
            nominal = InputSpec(
                cross_modal=None if pair.cross_modal is None else NOMINAL_DIM,
                image_experts=dict.fromkeys(pair.image_experts, NOMINAL_DIM),
                text_experts=dict.fromkeys(pair.text_experts, NOMINAL_DIM),
            )
            # What depends on the encoders' true dimensions is checked once they are known.
            with contextlib.suppress(DimensionError):
                make_method(cfg, nominal)
        return Job(cfg, choices.get("fusion", "fusion"), data, pair, probes)

    def check_data(self, built: Job) -> None:
        """List the data once for all jobs that share them, and check the names that only they know."""
        check_names(built, _data(_features_yaml(built.cfg)).info)

    def label(self, built: Job) -> str:
        """Return the method, its alignment and dimension, and the seed."""
        fusion = built.cfg["fusion"]
        parts = [str(fusion[key]) for key in ("alignment", "dim") if fusion.get(key) is not None]
        return "-".join([built.fusion, *parts, f"seed{built.cfg['seed']}"])

    def run(self, built: Job, session: Session) -> None:
        """Features, fusion, probes, records."""
        cfg, label = built.cfg, session.label
        bundle = features(cfg)
        check_names(built, bundle.info)
        start = time.perf_counter()
        module, space = fuse(cfg, bundle, session.folder)
        method = module.method
        log.info("%s: %d dimensions, fused in %.1f s", label, method.out_dim, time.perf_counter() - start)
        about = {**method.describe(), "fusion": built.fusion}
        take_snapshot(bundle, space, session.folder, about=about, **cfg["figures"])
        probe_all(built, bundle, method, space, session)
        if cfg["save_fusion"]:
            save_fusion(method, session.folder / "fusion.safetensors")


def make_method(cfg: Plain, inputs: InputSpec) -> FusionMethod:
    """Build the fusion method of a configuration for the given dimensions."""
    factory = make(cfg["fusion"], "fusion")
    try:
        method = factory(inputs=inputs)
    except KrossFuseError as error:
        raise type(error)(f"fusion: {error}") from None
    except TypeError as error:
        raise ConfigError(f"fusion: {error}") from None
    assert isinstance(method, FusionMethod)
    return method


@lru_cache(maxsize=4)
def _data(cfg_yaml: str) -> BaseDataModule | EmbeddingsFile:
    data: BaseDataModule | EmbeddingsFile = make(OmegaConf.to_container(OmegaConf.create(cfg_yaml).data), "data")
    return data


@lru_cache(maxsize=4)
def _features(cfg_yaml: str) -> FeatureBundle:
    cfg = OmegaConf.to_container(OmegaConf.create(cfg_yaml))
    assert isinstance(cfg, dict)
    data = _data(cfg_yaml)
    if isinstance(data, EmbeddingsFile):
        return data.bundle()
    return extract(
        data,
        make(cfg["pair"], "pair"),
        FeatureStore(cfg["paths"]["store"]),
        trainer=cfg["trainer"],
        batch_size=cfg["extraction"]["batch_size"],
        progress=cfg["extraction"]["progress"],
    )


def _features_yaml(cfg: Plain) -> str:
    return OmegaConf.to_yaml(OmegaConf.create({key: cfg[key] for key in FEATURE_KEYS}))


def features(cfg: Plain) -> FeatureBundle:
    """Return the features of a job: stored, extracted, or the user's own. The jobs of a sweep share them."""
    return _features(_features_yaml(cfg))


def fuse(cfg: Plain, bundle: FeatureBundle, folder: Path | None) -> tuple[FusionModule, EmbeddingSpace]:
    """Fit the fusion method of a job and fuse every part that it can encode.

    Parts larger than ``fuse.memory_limit`` go to memory-mapped files in ``folder``, or to temporary ones without it.
    """
    method = make_method(cfg, inputs_of(bundle))
    options = cfg["fuse"]
    module = FusionModule(method, block_rows=options["block_rows"])
    label_set = options["label_set"] or next(iter(bundle.info.label_sets), None)
    module.fit(bundle, label_set=label_set, seed=cfg["seed"])
    on_cpu = cfg["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available()
    parts = module.fuse(
        bundle,
        # On the CPU a plain loop gives the same bits and starts sooner.
        trainer_options=None if on_cpu else {**cfg["trainer"], "devices": 1, "enable_progress_bar": False},
        memory_limit=options["memory_limit"],
        folder=None if folder is None else folder / "fused",
    )

    def kernel(part_a: Part, rows_a: Tensor, part_b: Part, rows_b: Tensor) -> Tensor:
        a = {role: x[rows_a] for role, x in bundle[part_a].items()}
        b = {role: x[rows_b] for role, x in bundle[part_b].items()}
        gram = method.kernel(part_a.modality, a, part_b.modality, b)
        if gram is None:
            raise DataError(f"{type(method).__name__} has no exact kernel")
        return gram

    reference = {part: roles[CROSS_MODAL] for part, roles in bundle.features.items() if CROSS_MODAL in roles}
    has_kernel = type(method).kernel is not FusionMethod.kernel
    return module, EmbeddingSpace(bundle.info, parts, kernel if has_kernel else None, reference)


def check_names(job: Job, info: DatasetInfo) -> None:
    """Check the names in the configuration that only the dataset knows, before any work is done on it.

    Raises:
        ConfigError: a label set that the dataset does not have, or a split that is neither its own nor a usual one.
    """
    for option in ("fuse", "figures"):
        name = job.cfg[option]["label_set"]
        if name is not None:
            check_choice(f"{option}.label_set", name, info.label_sets)
    labelled = [split for label_set in info.label_sets.values() for split in label_set.labels]
    splits = list(dict.fromkeys([*SPLITS, *labelled, *info.caption_of]))
    for name, probe in job.probes.items():
        chosen = getattr(probe, "splits", None) or [getattr(probe, "split", TEST)]
        for split in chosen:
            check_choice(f"probe.{name}: split", split, splits)
        for label_set in getattr(probe, "label_sets", None) or []:
            check_choice(f"probe.{name}: label_sets", label_set, info.label_sets)


def probe_all(job: Job, bundle: FeatureBundle, method: FusionMethod, space: EmbeddingSpace, session: Session) -> None:
    """Run every probe that applies, and record each as soon as it is measured.

    Raises:
        DataError: no probe applies.
    """
    probed = False
    for name, probe in job.probes.items():
        if not probe.applies(space):
            log.info("%s: probe %s does not apply (it lacks a modality, labels, or enough items)", session.label, name)
            continue
        start = time.perf_counter()
        result = probe.evaluate(space, seed=job.cfg["seed"])
        made = make_records(
            job.cfg,
            data=bundle.info.name,
            pair=bundle.pair,
            fusion=job.fusion,
            dim=method.out_dim,
            described=method.describe(),
            deterministic=method.deterministic,
            probe=name,
            result=result,
            seconds=time.perf_counter() - start,
        )
        session.tracker.log_records([session.writer.append(record, scores) for record, scores in made])
        if result.drawn:
            session.writer.write_drawn(name, result.drawn)
        probed = True
    if not probed:
        raise DataError(
            f"none of the probes {list(job.probes)} applies to {session.label}: it encodes {method.modalities}"
        )
