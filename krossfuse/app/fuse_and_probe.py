"""The kind of job that this project is about: features of a pair, fused, probed, recorded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

from krossfuse.app.artifacts import check_keep, keep_artifacts
from krossfuse.app.build import make, packed, plain_words, trust_modules_of, unpacked
from krossfuse.app.kind import Kind, Plain, Session
from krossfuse.app.record import make_records
from krossfuse.app.snapshot import FeaturesOf, take_snapshot
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import (
    ConfigError,
    DataError,
    DimensionError,
    KrossFuseError,
    check_choice,
    check_positive,
)
from krossfuse.core.heap import kept_heap
from krossfuse.core.labels import DatasetInfo
from krossfuse.core.logs import quieter
from krossfuse.core.parts import CROSS_MODAL, Part
from krossfuse.core.stopping import check_told
from krossfuse.core.trainers import TrainerFactory
from krossfuse.data.module import BaseDataModule
from krossfuse.encoders.base import EncoderModule
from krossfuse.encoders.pair import Pair
from krossfuse.features.entry import DTYPES
from krossfuse.features.folds import Fold, fold_sizes, folds_of
from krossfuse.features.source import Extraction, FeatureSource, feature_source
from krossfuse.features.units import check_shard_rows
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.batches import sizes_of
from krossfuse.fusion.fit import check_fit
from krossfuse.fusion.io import check_saveable, save_fusion
from krossfuse.fusion.module import FusionModule
from krossfuse.fusion.stream import inputs_of, kernel_of, roles_of
from krossfuse.probes.base import Probe
from krossfuse.probes.pooling import merged, pool
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.results.naming import run_name, run_tags

log = logging.getLogger(__name__)

NOMINAL_DIM = 64
"""Dimension that stands for an encoder's own while a configuration is checked and no encoder is loaded yet."""

PRECISIONS = {"float32": "32-true", "float16": "16-mixed", "bfloat16": "bf16-mixed"}
"""By ``extraction.dtype``, Lightning's name of the precision that encoders run in (autocast, where it is half)."""

FEATURE_KEYS = ("data", "pair", "store", "trainer", "extraction")
"""Top keys of the configuration that decide the features."""


PROBES = "krossfuse.probes"
"""The logger of all probes."""


@dataclass(frozen=True)
class Job:
    """The components of one job, validated; no data and no weights are loaded.

    Attributes:
        cfg: the configuration.
        fusion: the chosen option's name.
        method: the fusion for nominal dimensions; None where these do not suit it, or the data bring the features.
        probes: by name.
    """

    cfg: Plain
    fusion: str
    method: FusionMethod | None
    probes: dict[str, Probe]


class FuseAndProbe(Kind):
    """Fuse the features of a pair of encoders, and probe the fused embedding."""

    keys: ClassVar[Mapping[str | None, tuple[str, ...]]] = {
        None: ("extraction", "fuse", "save_fusion", "figures", "pair", "data", "store", "fusion", "probe"),
        "extraction": ("batch_size", "progress", "dtype", "store_dtype", "keep_heap", "shard_rows"),
        "fuse": ("label_set", "block_rows", "memory_limit", "stream"),
        "figures": ("label_set", "max_items"),
    }
    data_keys = FEATURE_KEYS

    def build(self, cfg: Plain, choices: Mapping[str, str]) -> Job:
        """Build and so validate every component of a job; see :meth:`Kind.build`."""
        check_positive("extraction.batch_size", cfg["extraction"]["batch_size"], integer=True)
        check_positive("fuse.block_rows", cfg["fuse"]["block_rows"], integer=True)
        check_positive("fuse.memory_limit", cfg["fuse"]["memory_limit"])
        check_positive("figures.max_items", cfg["figures"]["max_items"], integer=True)
        flags = {
            "save_fusion": cfg["save_fusion"],
            "extraction.progress": cfg["extraction"]["progress"],
            "extraction.keep_heap": cfg["extraction"]["keep_heap"],
            "fuse.stream": cfg["fuse"]["stream"],
        }
        for flag, value in flags.items():
            if not isinstance(value, bool):
                raise ConfigError(f"{flag}={value!r} must be true or false")
        if not cfg.get("probe"):
            raise ConfigError("probe=[] measures nothing; choose at least one, e.g. probe=[linear_probe]")
        check_keep(cfg, cfg["logger"].get("keep"))
        source = make_source(cfg, TrainerFactory(cfg["trainer"]))
        pair = source.pair if isinstance(source, Extraction) else None
        probes = {
            name: make(node, f"probe.{name}", Probe)  # type: ignore[type-abstract]
            for name, node in cfg["probe"].items()
        }
        method = None if pair is None else nominal_method(cfg, pair)
        return Job(cfg, choices.get("fusion", "fusion"), method, probes)

    def check_data(self, built: Job) -> None:
        """List the data once for all jobs that share them; check that they are there, and the names only they know."""
        _check_trainer(packed({"trainer": built.cfg["trainer"]}))
        source = source_of(built.cfg)
        source.check()
        method = built.method
        if isinstance(source, Extraction):
            check_names(built, source.info, source.data.parts())
            sizes = sizes_of(source.data)
            if source.info.fold_of and not built.cfg["store"]:
                raise ConfigError(
                    f"data.folds={source.info.n_folds} needs stored features, for each item would be encoded once a "
                    "fold; choose store=local, or data.folds=null"
                )
        else:  # dimensions and numbers of rows are known
            check_names(built, source.info)
            bundle = features(built.cfg)
            method, sizes = make_method(built.cfg, inputs_of(bundle)), sizes_of(bundle)
        if method is not None:
            info = source.info
            for of_turn in [fold_sizes(info, sizes, fold) for fold in range(info.n_folds)] or [sizes]:
                check_fit(method, of_turn)
        if (built.cfg["save_fusion"] or built.cfg["logger"].get("keep")) and method is not None:
            check_saveable(method)

    def fingerprint(self, built: Job) -> str:
        """Return the digest of the dataset's fingerprint and of the features' keys in a store."""
        return _fingerprint(_key(built.cfg))

    def to_encode(self, built: Job) -> list[str]:
        """Return the parts that the store lacks, with their sizes and encoders."""
        source = source_of(built.cfg)
        if not isinstance(source, Extraction):
            return []
        lines = []
        for unit, roles in source.unit_keys():
            lacking = [key for key in roles.values() if source.store is None or key not in source.store]
            names = list(dict.fromkeys(key.about["encoder"] for key in lacking))
            if names:
                lines.append(f"{source.name}/{unit}: {unit.stop - unit.start} items by {', '.join(names)}")
        return lines

    def label(self, built: Job) -> str:
        """Return the method, what it is on, and whatever else tells it from the others of a sweep."""
        return run_name(built.cfg, built.fusion)

    def tags(self, built: Job) -> list[str]:
        """Return the method, the data, the pair and the probes."""
        return run_tags(built.cfg, built.fusion)

    def run(self, built: Job, session: Session) -> None:
        """Features, fusion, probes, records."""
        with kept_heap(built.cfg["extraction"]["keep_heap"]):
            self._run(built, session)

    def _run(self, built: Job, session: Session) -> None:
        cfg, label = built.cfg, session.label
        self.check_data(built)
        start = time.perf_counter()
        folds, given = turns_of(cfg)
        log.debug("%s: features after %.1f s", label, time.perf_counter() - start)
        start = time.perf_counter()
        names = [f"fold-{number}" for number, _ in enumerate(folds, 1)] or [""]
        turns = [fuse(cfg, x, session.folder / name, session.trainers) for x, name in zip(given, names, strict=True)]
        method, first = turns[0].module.method, turns[0]
        times = f" {len(turns)} times" if folds else ""
        log.info("%s: %d dimensions, fused%s in %.1f s", label, method.out_dim, times, time.perf_counter() - start)
        about = {**method.describe(), "fusion": built.fusion, "data": first.space.info.name, "pair": first.pair}
        take_snapshot(first.space, first.features_of, session.folder, about=about, **cfg["figures"])
        probe_all(built, turns, folds, session)
        if cfg["save_fusion"]:
            for turn, name in zip(turns, names, strict=True):
                stem = f"fusion-{name}" if name else "fusion"
                save_fusion(turn.module.method, session.folder / f"{stem}.safetensors")
        if session.tracker.keep:
            fused = {name: (turn.module.method, turn.space) for name, turn in zip(names, turns, strict=True)}
            keep_artifacts(cfg, source_of(cfg), fused, session, about)


def nominal_method(cfg: Plain, pair: Pair) -> FusionMethod | None:
    """Build, and so validate, the fusion method of a configuration while the encoders' dimensions are unknown.

    Returns:
        None where it depends on the true dimensions, which is checked once they are known.
    """
    nominal = InputSpec(
        cross_modal=None if pair.cross_modal is None else NOMINAL_DIM,
        image_experts=dict.fromkeys(pair.image_experts, NOMINAL_DIM),
        text_experts=dict.fromkeys(pair.text_experts, NOMINAL_DIM),
    )
    with contextlib.suppress(DimensionError):
        return make_method(cfg, nominal)
    return None


def make_method(cfg: Plain, inputs: InputSpec) -> FusionMethod:
    """Build the fusion method of a configuration for the given dimensions."""
    factory = make(cfg["fusion"], "fusion")
    trust_modules_of(cfg["fusion"])
    try:
        method = factory(inputs=inputs)
    except KrossFuseError as error:
        raise type(error)(f"fusion: {error}") from None
    except TypeError as error:
        raise ConfigError(f"fusion: {plain_words(error, node=cfg['fusion'])}") from None
    if not isinstance(method, FusionMethod):
        raise ConfigError(
            f"fusion: {cfg['fusion'].get('_target_')} gives a {type(method).__name__}, and this takes a "
            "krossfuse.FusionMethod"
        )
    return method


def make_source(cfg: Plain, trainers: TrainerFactory) -> FeatureSource:
    """Build what gives a job its features; nothing is read.

    Raises:
        ConfigError: a value is impossible, or data and pair do not go together.
    """
    options = cfg["extraction"]
    if options["shard_rows"] is not None:
        check_shard_rows("extraction.shard_rows", options["shard_rows"])
    check_choice("extraction.store_dtype", options["store_dtype"], DTYPES)
    if options["dtype"] is not None:
        precision = PRECISIONS[check_choice("extraction.dtype", options["dtype"], PRECISIONS)]
        if not cfg["store"]:
            raise ConfigError(
                f"extraction.dtype={options['dtype']} is for features that are stored, and store=none keeps none; "
                f"choose store=local, or trainer.precision={precision} for encoders and fusion alike"
            )
        trainers = trainers.having(precision=precision)
    return feature_source(
        make(cfg["data"], "data"),
        make(cfg["pair"], "pair") if cfg["pair"] else None,
        make(cfg["store"], "store") if cfg["store"] else None,
        trainers,
        batch_size=options["batch_size"],
        dtype=options["store_dtype"],
        progress=options["progress"],
        keep_heap=options["keep_heap"],
        shard_rows=options["shard_rows"],
    )


@lru_cache(maxsize=64)
def _check_trainer(text: str) -> None:
    """Make a Trainer and throw it away: 30 ms, and most jobs of a sweep have the same one."""
    TrainerFactory(unpacked(text)["trainer"])(one_device=False)


@lru_cache(maxsize=4)
def _source(text: str) -> FeatureSource:
    cfg = unpacked(text)
    return make_source(cfg, TrainerFactory(cfg["trainer"]))


@lru_cache(maxsize=4)
def _bundle(text: str) -> FeatureBundle:
    return _source(text).bundle()


@lru_cache(maxsize=64)
def _fingerprint(text: str) -> str:
    source = _source(text)
    about: dict[str, Any] = {"data": source.info.fingerprint}
    if isinstance(source, Extraction):
        about["features"] = {
            str(unit): {role: key.digest for role, key in roles.items()} for unit, roles in source.unit_keys()
        }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def _folds(text: str) -> tuple[Fold, ...]:
    return tuple(folds_of(_bundle(text)))


@lru_cache(maxsize=1)
def _raw(text: str) -> Raw:
    source = _source(text)
    assert isinstance(source, Extraction)
    loaded: dict[int, EncoderModule] = {}  # two roles may be one encoder
    encoders = {**source.pair.encoders("image"), **source.pair.encoders("text")}
    modules = {role: loaded.setdefault(id(encoder), encoder.load().eval()) for role, encoder in encoders.items()}
    return Raw(source.data, source.pair, modules)


def _key(cfg: Plain) -> str:
    return packed({key: cfg[key] for key in FEATURE_KEYS})


def source_of(cfg: Plain) -> FeatureSource:
    """Return what gives a job its features; the jobs of a sweep share it, and what it has listed and read."""
    return _source(_key(cfg))


def features(cfg: Plain) -> FeatureBundle:
    """Return the features of a job: stored, extracted, or the user's own. The jobs of a sweep share them.

    Raises:
        ConfigError: ``store=none`` keeps none.
    """
    return _bundle(_key(cfg))


@dataclass(frozen=True)
class Raw:
    """Raw items and the loaded encoders that they stream through (``store=none``)."""

    data: BaseDataModule
    pair: Pair
    encoders: Mapping[str, EncoderModule]

    @property
    def inputs(self) -> InputSpec:
        """Dimensions of the encoders, as fusion methods take them."""
        dims = {role: encoder.dim for role, encoder in self.encoders.items()}
        return InputSpec(
            cross_modal=dims.get(CROSS_MODAL),
            image_experts={role: dims[role] for role in self.pair.image_experts},
            text_experts={role: dims[role] for role in self.pair.text_experts},
        )


def turns_of(cfg: Plain) -> tuple[tuple[Fold, ...], list[FeatureBundle | Raw]]:
    """Return the folds of a job, and the features (or raw items) of each fold's turn; without folds, of the one."""
    stored = cfg["store"] or not isinstance(source_of(cfg), Extraction)
    folds = _folds(_key(cfg)) if stored else ()
    given: list[FeatureBundle | Raw] = [fold.bundle for fold in folds]
    return folds, given or [_bundle(_key(cfg)) if stored else _raw(_key(cfg))]


@dataclass(frozen=True)
class Fused:
    """A fused dataset: the module that fused it, what a probe sees of it, and the features of chosen rows."""

    module: FusionModule
    space: EmbeddingSpace
    pair: str
    features_of: FeaturesOf


def fit(cfg: Plain, source: FeatureBundle | Raw, trainers: TrainerFactory) -> FusionModule:
    """Fit the fusion method of a job; see :func:`fuse`."""
    options = cfg["fuse"]
    method = make_method(cfg, source.inputs if isinstance(source, Raw) else inputs_of(source))
    items = source.data if isinstance(source, Raw) else source
    wanted = {**roles_of(method.inputs, "image"), **roles_of(method.inputs, "text")}
    encoders = {role: m for role, m in source.encoders.items() if role in wanted} if isinstance(source, Raw) else None
    module = FusionModule(method, encoders=encoders, trainers=trainers, block_rows=options["block_rows"])
    label_set = options["label_set"] or next(iter(items.info.label_sets), None)
    module.fit(items, label_set=label_set, seed=cfg["seed"])
    return module


def fuse(
    cfg: Plain, source: FeatureBundle | Raw, folder: Path | None = None, trainers: TrainerFactory | None = None
) -> Fused:
    """Fit the fusion method of a job and fuse every part that it can encode.

    Parts larger than ``fuse.memory_limit`` go to memory-mapped files in ``folder``, or to temporary ones without it.

    Args:
        cfg: the job's configuration.
        source: stored features; or raw items, which stream through the encoders into the fusion (then there is no
            exact kernel for probes, no features of the parents, and no measurement of the agreement with the
            cross-modal encoder).
        folder: the run folder.
        trainers: makes every Trainer; None = as ``trainer`` says, without a tracker.
    """
    trainers = trainers or TrainerFactory(cfg["trainer"])
    options = cfg["fuse"]
    module = fit(cfg, source, trainers)
    method = module.method
    items = source.data if isinstance(source, Raw) else source
    info = items.info
    chosen = [part for part in sizes_of(items) if part.modality in method.modalities]
    # Class texts are held all the same: they are few, and zero-shot heads are made of all of them.
    held = [part for part in chosen if not options["stream"] or part.split.startswith("prompts/")]
    space = EmbeddingSpace(
        info,
        module.fuse(
            items,
            parts=held,
            memory_limit=options["memory_limit"],
            folder=None if folder is None else folder / "fused",
        ),
        trainers=trainers,
        streams={part: partial(module.stream, items, part) for part in chosen if part not in held},
    )
    if isinstance(source, Raw):
        data = source.data
        # Of class texts, which zero-shot heads are averaged with; those of whole splits would be encoded twice.
        texts = [part for part in held if part.split.startswith("prompts/")]
        of_texts = {part: module.encode_part(data, part) for part in texts}
        reference = {part: roles[CROSS_MODAL] for part, roles in of_texts.items() if CROSS_MODAL in roles}
        space = replace(space, reference=reference)
        return Fused(module, space, source.pair.name, lambda part, rows: module.encode_part(data, part, rows))
    reference = {part: roles[CROSS_MODAL] for part, roles in source.features.items() if CROSS_MODAL in roles}
    space = replace(
        space, kernel=kernel_of(method, source, lambda: trainers.device), reference=reference, parents=source.features
    )
    return Fused(module, space, source.pair, lambda part, rows: {r: x[rows] for r, x in source[part].items()})


def check_names(job: Job, info: DatasetInfo, parts: Collection[Part] = ()) -> None:
    """Check the names in the configuration that only the dataset knows, before any work is done on it.

    Args:
        job: the job.
        info: the dataset.
        parts: that it has, where they are known.

    Raises:
        ConfigError: a label set, split or prompt set that the dataset does not have.
    """
    for option in ("fuse", "figures"):
        name = job.cfg[option]["label_set"]
        if name is not None:
            check_choice(f"{option}.label_set", name, info.label_sets)
    for name, probe in job.probes.items():
        try:
            probe.check(info, parts)
        except ConfigError as error:
            raise type(error)(f"probe.{name}: {error}") from None


def probe_all(job: Job, turns: Sequence[Fused], folds: Sequence[Fold], session: Session) -> None:
    """Run every probe that applies, and record each as soon as it is measured.

    Args:
        job: the job.
        turns: the fused dataset; or, with folds, that of each fold's turn, whose measurements are pooled.
        folds: of the dataset; none where its splits are used as they are.
        session: what records them.

    Raises:
        DataError: no probe applies.
    """
    method, info = turns[0].module.method, turns[0].space.info
    dims = sorted({turn.module.method.out_dim for turn in turns})
    if len(dims) > 1:
        raise DataError(f"{session.label}: the fusion has {dims} dimensions, another in another fold; set fusion.dim")
    reasons: list[str] = []
    for name, probe in job.probes.items():
        reason = next((r for r in (probe.why_not(turn.space) for turn in turns) if r is not None), None)
        if reason is not None:
            reasons.append(f"{name}: {reason}")
            log.info("%s: probe %s does not apply: %s", session.label, name, reason)
            continue
        check_told()
        start = time.perf_counter()
        # What one fold measured is not the measurement.
        with quieter(PROBES) if folds else contextlib.nullcontext():
            results = [probe.evaluate(turn.space, seed=job.cfg["seed"]) for turn in turns]
        result = pool(results, folds) if folds else results[0]
        made = make_records(
            job.cfg,
            data=info.name,
            pair=turns[0].pair,
            fusion=job.fusion,
            dim=method.out_dim,
            described=merged([turn.module.method.describe() for turn in turns]),
            deterministic=method.deterministic and not result.seeded,
            probe=name,
            result=result,
            seconds=time.perf_counter() - start,
        )
        session.tracker.log_records([session.writer.append(record, scores) for record, scores in made])
        if result.drawn:
            session.writer.write_drawn(name, result.drawn)
    if len(reasons) == len(job.probes):
        raise DataError(
            f"none of the probes {list(job.probes)} applies to {session.label}, which encodes {method.modalities}: "
            f"{'; '.join(reasons)}"
        )
