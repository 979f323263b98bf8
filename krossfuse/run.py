"""One job: features of a pair, fused, probed, recorded. The only module that knows all the rooms."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import (
    ConfigError,
    DataError,
    DimensionError,
    KrossFuseError,
    check_choice,
    check_positive,
    did_you_mean,
)
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
from krossfuse.probes.base import EmbeddingSpace, Probe, ProbeResult
from krossfuse.report.page import report
from krossfuse.results.digest import config_digest, method_digest
from krossfuse.results.naming import group_name, run_name, run_tags
from krossfuse.results.records import Record
from krossfuse.results.snapshot import balanced_rows, make_snapshot, save_snapshot
from krossfuse.results.trackers import Tracker
from krossfuse.results.versions import versions
from krossfuse.results.writer import RunWriter

log = logging.getLogger(__name__)

NOMINAL_DIM = 64
"""Dimension that stands for an encoder's own while a configuration is checked and no encoder is loaded yet."""

Plain = dict[str, Any]

SECTIONS: dict[str | None, tuple[str, ...]] = {
    None: (
        *("name", "seed", "paths", "extraction", "fuse", "save_fusion", "figures"),
        *("pair", "data", "fusion", "probe", "trainer", "logger"),
    ),
    "paths": ("runs", "store"),
    "extraction": ("batch_size", "progress"),
    "fuse": ("label_set", "block_rows", "memory_limit"),
    "figures": ("label_set", "max_items"),
}
"""The keys that belong to no component; Hydra refuses unknown ones, but not those that are appended with ``+``."""


def job_config(cfg: DictConfig) -> Plain:
    """Return the resolved configuration of a job, as plain containers and without Hydra's own keys."""
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    plain = OmegaConf.to_container(kept, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def make(node: Any, name: str) -> Any:
    """Instantiate one node of a plain configuration.

    Raises:
        ConfigError: the component refuses a value, or has no such option; the message names the node.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KrossFuseError):
                raise type(cause)(f"{name}: {cause}") from None
            cause = cause.__cause__ or cause.__context__
        raise ConfigError(f"{name}: {error}") from None


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


@dataclass(frozen=True)
class Job:
    """The components of one job, validated; no data and no weights are loaded. ``fusion`` is the option's name."""

    cfg: Plain
    fusion: str
    data: BaseDataModule | EmbeddingsFile
    pair: Pair | None
    probes: dict[str, Probe]


def build(cfg: Plain, fusion: str) -> Job:
    """Build and so validate every component of a job.

    Raises:
        ConfigError: a value is impossible; the message names the group and the value.
    """
    for section, known in SECTIONS.items():
        for key in cfg if section is None else cfg[section]:
            if key not in known:
                name = key if section is None else f"{section}.{key}"
                raise ConfigError(f"the configuration has no key {name!r}{did_you_mean(key, known)}")
    seed = cfg["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed={seed!r} must be a whole number, 0 or more")
    check_positive("extraction.batch_size", cfg["extraction"]["batch_size"], integer=True)
    check_positive("fuse.block_rows", cfg["fuse"]["block_rows"], integer=True)
    check_positive("fuse.memory_limit", cfg["fuse"]["memory_limit"])
    check_positive("figures.max_items", cfg["figures"]["max_items"], integer=True)
    for flag, value in (("save_fusion", cfg["save_fusion"]), ("extraction.progress", cfg["extraction"]["progress"])):
        if not isinstance(value, bool):
            raise ConfigError(f"{flag}={value!r} must be true or false")
    if not cfg.get("probe"):
        raise ConfigError("probe=[] measures nothing; choose at least one, e.g. probe=[linear_probe]")
    data = make(cfg["data"], "data")
    pair = make(cfg["pair"], "pair") if cfg["pair"] else None
    if data.provides_features and pair is not None:
        raise ConfigError(
            f"data={data.name!r} brings its own features, so it takes no pair={pair.name!r}; say pair=none"
        )
    if pair is None and not data.provides_features:
        raise ConfigError("pair=none has no encoders; choose a pair, or data=embeddings")
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
    return Job(cfg, fusion, data, pair, probes)


FEATURE_KEYS = ("data", "pair", "trainer", "extraction", "paths")
"""Top keys of the configuration that decide the features."""


@lru_cache(maxsize=4)
def _features(cfg_yaml: str) -> FeatureBundle:
    cfg = OmegaConf.to_container(OmegaConf.create(cfg_yaml))
    assert isinstance(cfg, dict)
    data = make(cfg["data"], "data")
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


def features(cfg: Plain) -> FeatureBundle:
    """Return the features of a job: stored, extracted, or the user's own. The jobs of a sweep share them."""
    return _features(OmegaConf.to_yaml(OmegaConf.create({key: cfg[key] for key in FEATURE_KEYS})))


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


def records(
    job: Job, method: FusionMethod, bundle: FeatureBundle, name: str, result: ProbeResult, seconds: float
) -> list[tuple[Record, Tensor | None]]:
    """Return one record a measurement, with the test items' own scores."""
    described = method.describe()
    shared: dict[str, Any] = {
        "data": bundle.info.name,
        "pair": bundle.pair,
        "fusion": job.fusion,
        "dim": method.out_dim,
        "probe": name,
        "seed": job.cfg["seed"],
        "fusion_config": described,
        "config_digest": config_digest(job.cfg, name),
        "method_digest": method_digest(job.cfg),
        "versions": versions(),
        "seconds": seconds,
        "deterministic": method.deterministic,
    }
    return [
        (
            Record(
                metric=measured.metric,
                modality=measured.modality,
                label_set=measured.label_set,
                value=float(measured.value),
                protocol={**result.protocol, **measured.protocol},
                **shared,
            ),
            measured.per_item,
        )
        for measured in result.measurements
    ]


def run(cfg: DictConfig, folder: Path, *, fusion: str, with_report: bool) -> None:
    """Run one job into a folder: check, features, fusion, probes, records, tracker.

    Args:
        cfg: the composed configuration.
        folder: the run folder.
        fusion: name of the chosen option of the group ``fusion``.
        with_report: whether to report the run at its end (a sweep reports all its jobs together instead).

    Raises:
        KrossFuseError: what is wrong; figures measured before it are in the folder and in the tracker.
    """
    plain = job_config(cfg)
    job = build(plain, fusion)
    tracker: Tracker = make(plain["logger"], "logger")
    label = job_name(job)
    group = group_name(plain["name"], folder if with_report else folder.parent)
    pair = job.pair.name if job.pair else ""
    data = job.data.name or Path(str(plain["data"].get("path", ""))).stem  # a file may bring the dataset's name
    name = run_name(plain, data=data, pair=pair, fusion=fusion)
    tags = run_tags(data, pair, fusion, *job.probes)
    with tracker.run(folder, plain, name=name, group=group, job_type="run", tags=tags):
        with RunWriter(folder) as writer:
            writer.write_config(plain)
            bundle = features(plain)
            check_names(job, bundle)
            start = time.perf_counter()
            module, space = fuse(plain, bundle, folder)
            log.info("%s: %d dimensions, fused in %.1f s", label, module.method.out_dim, time.perf_counter() - start)
            take_snapshot(job, bundle, module.method, space, folder)
            probe_all(job, label, bundle, module.method, space, writer, tracker)
            if plain["save_fusion"]:
                save_fusion(module.method, folder / "fusion.safetensors")
        if with_report:
            log_report(tracker, report(folder))


def check_names(job: Job, bundle: FeatureBundle) -> None:
    """Check the names in the configuration that only the dataset knows, before any work is done on it.

    Raises:
        ConfigError: a label set that the dataset does not have, or a split that is neither its own nor a usual one.
    """
    for option in ("fuse", "figures"):
        name = job.cfg[option]["label_set"]
        if name is not None:
            check_choice(f"{option}.label_set", name, bundle.info.label_sets)
    splits = list(dict.fromkeys([*SPLITS, *(part.split for part in bundle.features if "/" not in part.split)]))
    for name, probe in job.probes.items():
        chosen = getattr(probe, "splits", None) or [getattr(probe, "split", TEST)]
        for split in chosen:
            check_choice(f"probe.{name}: split", split, splits)
        for label_set in getattr(probe, "label_sets", None) or []:
            check_choice(f"probe.{name}: label_sets", label_set, bundle.info.label_sets)


def take_snapshot(job: Job, bundle: FeatureBundle, method: FusionMethod, space: EmbeddingSpace, folder: Path) -> None:
    """Save the matrices behind the heat maps and similarity distributions.

    They hold a class-balanced sample of the test items, the same for all methods and seeds, so that their pictures
    can be compared.
    """
    options = job.cfg["figures"]
    label_set = options["label_set"] or next(iter(bundle.info.label_sets), None)
    part = next((p for p in (Part(TEST, "image"), Part(TEST, "text")) if p in space), None)
    if label_set is None or part is None:
        return
    labels = bundle.info.labels(label_set, part)
    if labels.ndim != 1:  # an item with several classes has no place in an order by class
        return
    rows = balanced_rows(labels, options["max_items"])
    text, caption_of = Part(TEST, "text"), bundle.info.caption_of.get(TEST)
    texts: dict[str, Any] = {}
    if part.modality == "image" and text in space and caption_of is not None:
        place = torch.full((len(labels),), -1).index_put((rows,), torch.arange(len(rows)))[caption_of]
        captions = torch.nonzero(place >= 0).flatten()
        cross = bundle[text].get(CROSS_MODAL)
        texts = {
            "text_cross_modal": None if cross is None else cross[captions],
            "text_fused": space[text][captions],
            "text_of": place[captions],
        }
    parents = {role: x[rows] for role, x in bundle[part].items()}
    made = make_snapshot(
        labels[rows],
        bundle.info.label_sets[label_set].classes,
        cross_modal=parents.pop(CROSS_MODAL, None),
        experts=parents,
        fused=space[part][rows],
        label_set=label_set,
        about={**method.describe(), "fusion": job.fusion, "data": bundle.info.name, "pair": bundle.pair},
        **texts,
    )
    save_snapshot(made, folder)


def probe_all(
    job: Job,
    label: str,
    bundle: FeatureBundle,
    method: FusionMethod,
    space: EmbeddingSpace,
    writer: RunWriter,
    tracker: Tracker,
) -> None:
    """Run every probe that applies, and record each as soon as it is measured."""
    probed = False
    for name, probe in job.probes.items():
        if not probe.applies(space):
            log.info("%s: probe %s does not apply (it lacks a modality, labels, or enough items)", label, name)
            continue
        start = time.perf_counter()
        result = probe.evaluate(space, seed=job.cfg["seed"])
        seconds = time.perf_counter() - start
        found = records(job, method, bundle, name, result, seconds)
        tracker.log_records([writer.append(record, scores) for record, scores in found])
        if result.drawn:
            writer.write_drawn(name, result.drawn)
        probed = True
    if not probed:
        raise DataError(f"none of the probes {list(job.probes)} applies to {label}: it encodes {method.modalities}")


def report_sweep(cfg: DictConfig, folder: Path) -> None:
    """Report all jobs of a sweep together, and log the report as a tracker run of its own."""
    tracker: Tracker = make(OmegaConf.to_container(cfg.logger, resolve=True), "logger")
    written = report(folder)
    about = {"name": cfg.name, "overrides": list(cfg.hydra.overrides.task)}
    group = group_name(str(cfg.name), folder)
    with tracker.run(folder, about, name=f"{group} report", group=group, job_type="report", tags=["report"]):
        log_report(tracker, written)


def log_report(tracker: Tracker, written: list[Path]) -> None:
    """Log the tables and pictures of a report."""
    for path in written:
        if path.suffix == ".csv":
            tracker.log_table(path.stem, pd.read_csv(path))
    tracker.log_pictures(path for path in written if path.suffix == ".png")
    log.info("report: %s", written[0].parent)


def job_name(job: Job) -> str:
    """Return the short name of a job: what tells it from the others of a sweep."""
    fusion = job.cfg["fusion"]
    told = [str(fusion[key]) for key in ("alignment", "dim") if fusion.get(key) is not None]
    return "-".join([job.fusion, *told, f"seed{job.cfg['seed']}"])
