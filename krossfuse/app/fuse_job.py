"""A kind of job that fuses shards: an entry of the store each, beside any number of jobs like it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from filelock import FileLock

from krossfuse.app.build import trust_modules_of
from krossfuse.app.encode_job import Encode
from krossfuse.app.fuse_and_probe import FEATURE_KEYS, FuseAndProbe, fit, nominal_method
from krossfuse.app.kind import Kind, Plain, Session
from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.core.files import write_whole
from krossfuse.core.parts import TRAIN
from krossfuse.core.trainers import TrainerFactory
from krossfuse.data.shards.manifest import sha256_of
from krossfuse.features.entry import DTYPES
from krossfuse.features.source import Extraction
from krossfuse.fusion.io import check_saveable, load_fusion, save_fusion
from krossfuse.fusion.module import FusionModule
from krossfuse.fusion.shards import FusedShards, write_manifest

log = logging.getLogger(__name__)

FUSION, SETTINGS, MANIFEST = "fusion.safetensors", "fusion.json", "fused.json"


@dataclass(frozen=True)
class Built:
    """A job, validated: its configuration, the chosen fusion's name, and where its features come from."""

    cfg: Plain
    fusion: str
    source: Extraction


class FuseShards(Kind):
    """Fuse what the store lacks of a dataset, or one of its shards; nothing is measured.

    The first job fits the method on the training features and writes it to the folder; all others read it there, so
    that every shard is fused by the same one. The job that fuses all that is left writes ``fused.json``, the manifest.

    Args:
        folder: of the fitted method and the manifest; one a fusion, shared by all its jobs.
        shard: number of the shard, from 0, as ``job=encode`` counts; None = every shard that no other job is fusing.
        dtype: of the fused features in the store, ``float32``, ``float16`` or ``bfloat16``.
        actors: let so many of Ray Data's actors encode and fuse (:mod:`krossfuse.app.actors`); None = this process.

    Raises:
        ConfigError: a bad value, or no folder.
    """

    keys: ClassVar[Mapping[str | None, tuple[str, ...]]] = FuseAndProbe.keys
    data_keys = FEATURE_KEYS

    def __init__(
        self, *, folder: str | None, shard: int | None = None, dtype: str = "float32", actors: int | None = None
    ) -> None:
        self.encode = Encode(shard=shard, actors=actors)
        if not folder:
            raise ConfigError(
                "job.folder is not set: where the fitted fusion and the manifest go, as job.folder=PATH; all jobs of "
                "one fusion share it"
            )
        self.folder = Path(folder).expanduser()
        self.shard = shard
        self.dtype = check_choice("job.dtype", dtype, DTYPES)

    def build(self, cfg: Plain, choices: Mapping[str, str]) -> Built:
        """Return the job; see :meth:`Kind.build`."""
        source = self.encode.build(cfg, choices)
        if (method := nominal_method(cfg, source.pair)) is not None:
            check_saveable(method)
        return Built(cfg, choices.get("fusion", "fusion"), source)

    def check_data(self, built: Built) -> None:
        """Check that the dataset is there, the device, and that there is such a shard."""
        self.encode.check_data(built.source)

    def fingerprint(self, built: Built) -> str:
        """Return the keys of the features that are to be fused."""
        return self.encode.fingerprint(built.source)

    def to_encode(self, built: Built) -> list[str]:
        """Return the shards whose features the store lacks, with their sizes."""
        return self.encode.to_encode(built.source)

    def label(self, built: Built) -> str:
        """Return the method, the dataset, the pair and the shard."""
        shard = "" if self.shard is None else f"-shard{self.shard}"
        return f"fuse-{built.fusion}-{built.source.name}-{built.source.pair.name}{shard}"

    def tags(self, built: Built) -> list[str]:
        """Return the method, the dataset and the pair."""
        return ["fuse", built.fusion, built.source.name, built.source.pair.name]

    def run(self, built: Built, session: Session) -> None:
        """Fuse what the store lacks."""
        self.check_data(built)
        source = built.source
        assert source.store is not None
        if self.encode.actors is not None and not (self.folder / FUSION).is_file():
            self.encode.share(source, source.encode)  # so that what is fitted here is encoded there
        # An actor gets no logger, which belongs to this process.
        module = self._fitted(built, session.trainers if self.encode.actors is None else source.trainers)
        shards = FusedShards(source, module, sha256_of(self.folder / FUSION), source.store, dtype=self.dtype)
        count = self.encode.share(source, shards.fuse)
        log.info("%s: %d shards fused by this job, the others were there", session.label, count)
        if self.shard is None:
            write_manifest(self.folder / MANIFEST, shards)
            log.info("%s: %s", session.label, self.folder / MANIFEST)

    def _fitted(self, built: Built, trainers: TrainerFactory) -> FusionModule:
        """Return the method that all jobs of the folder share.

        Raises:
            ConfigError: the folder holds that of other settings.
        """
        cfg, path = built.cfg, self.folder / FUSION
        settings = _settings(built)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".fusion.lock"):
            if not path.is_file():
                module = fit(cfg, built.source.bundle(), trainers)
                write_whole(self.folder / SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())
                save_fusion(module.method, path)  # last: whoever finds it finds its settings
        try:
            kept = json.loads((self.folder / SETTINGS).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"job.folder={str(self.folder)!r} has a fusion but no {SETTINGS} that can be read ({error}); remove "
                f"{FUSION}, or take another folder"
            ) from None
        if differs := [name for name, value in settings.items() if kept.get(name) != value]:
            raise ConfigError(
                f"job.folder={str(self.folder)!r} holds a fusion of another {' and '.join(differs)}; take another "
                "folder"
            )
        trust_modules_of(cfg["fusion"])
        return FusionModule(load_fusion(path), trainers=trainers, block_rows=cfg["fuse"]["block_rows"])


def _settings(built: Built) -> dict[str, object]:
    """Return what decides the fitted method, JSON-able."""
    cfg = built.cfg
    keys = [
        key.digest
        for unit, roles in built.source.unit_keys()
        if unit.part.split == TRAIN or unit.part.split.startswith("prompts/")
        for key in roles.values()
    ]
    return {
        "configuration": json.loads(json.dumps(cfg["fusion"])),
        "seed": cfg["seed"],
        "label set": cfg["fuse"]["label_set"],
        "training features": hashlib.sha256("".join(keys).encode()).hexdigest(),
    }
