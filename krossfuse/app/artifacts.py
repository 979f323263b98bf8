"""What a run leaves with its tracker as ``logger.keep`` asks: the fusion, the fused embeddings, the whole model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krossfuse.app.build import make
from krossfuse.app.kind import Plain, Session
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError
from krossfuse.encoders.pair import Pair
from krossfuse.features.embeddings import save_embeddings
from krossfuse.features.source import Extraction, FeatureSource
from krossfuse.fusion.base import FusionMethod
from krossfuse.fusion.io import save_fusion
from krossfuse.probes.space import EmbeddingSpace
from krossfuse.results.trackers import Artifact

FOLDER, ROLE = "artifacts", "fused"


def check_keep(cfg: Plain, kinds: object) -> None:
    """Check that a run can leave what its tracker is to keep.

    Raises:
        ConfigError: the model of encoders that are not known, or embeddings that are never held.
    """
    kinds = kinds if isinstance(kinds, (list, tuple)) else ()
    if "model" in kinds and not cfg["pair"]:
        raise ConfigError("logger.keep=[model] needs a pair of encoders, and pair=none has none; keep the fusion")
    if "embeddings" in kinds and cfg["fuse"]["stream"]:
        raise ConfigError("logger.keep=[embeddings] needs fuse.stream=false: streamed embeddings are never held")


def keep_artifacts(
    cfg: Plain,
    source: FeatureSource,
    fused: Mapping[str, tuple[FusionMethod, EmbeddingSpace]],
    session: Session,
    about: Mapping[str, Any],
) -> None:
    """Write what the tracker keeps of a run below ``artifacts/`` of its folder, and hand it over.

    Args:
        cfg: the job's configuration.
        source: of the features.
        fused: by the fold's name, or ``""``, the fitted method and what it made of the dataset.
        session: with the run's folder and tracker.
        about: of the method, for the artifacts.
    """
    features: dict[str, dict[str, str]] = {}
    if isinstance(source, Extraction) and source.store is not None:
        features = {str(unit): {role: key.digest for role, key in of.items()} for unit, of in source.unit_keys()}
    about = {**about, "seed": cfg["seed"], "fingerprint": source.info.fingerprint}
    stem = re.sub(r"[^\w.-]+", "-", session.label).strip("-")
    for fold, (method, space) in fused.items():
        of_fold = f"-{fold}" if fold else ""
        for kind in session.tracker.keep:
            saved = session.folder / f"fusion{of_fold}.safetensors"
            if kind == "fusion" and cfg["save_fusion"]:  # the run has written it already
                path = saved
            else:
                path = _write(kind, cfg["pair"], method, space, session.folder / FOLDER, of_fold)
            # W&B's names have at most 128 characters.
            name = f"{stem[: 100 - len(of_fold)]}{of_fold}-{kind}"
            session.tracker.log_artifact(Artifact(name, kind, path, about, features))


def _write(kind: str, pair: Any, method: FusionMethod, space: EmbeddingSpace, folder: Path, of_fold: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "fusion":
        return save_fusion(method, folder / f"fusion{of_fold}.safetensors")
    if kind == "embeddings":
        path = folder / f"embeddings{of_fold}.safetensors"
        held = {part: {ROLE: rows} for part, rows in space.parts.items()}
        save_embeddings(path, FeatureBundle(space.info, ROLE, held))
        return path
    from krossfuse.model.encoder import FusedEncoder

    path = folder / f"model{of_fold}"
    FusedEncoder(make(pair, "pair", Pair), method).save_pretrained(path)
    return path
