"""``krossfuse export RUN FOLDER``: the fused encoder of a run as a model that others load (docs/model.md)."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from krossfuse.app.build import make, make_kind, trust_modules_of
from krossfuse.app.fuse_and_probe import FuseAndProbe, fit, source_of, turns_of
from krossfuse.core.errors import ConfigError, KrossFuseError, StoreError
from krossfuse.core.trainers import TrainerFactory
from krossfuse.encoders.pair import Pair
from krossfuse.fusion.base import FusionMethod
from krossfuse.fusion.io import load_fusion
from krossfuse.model.card import model_card
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.folder import LIBRARIES
from krossfuse.results.layout import CONFIG
from krossfuse.results.runs import Run, read_runs
from krossfuse.results.versions import versions

log = logging.getLogger(__name__)


def main(arguments: Iterable[str] | None = None) -> int:
    """Run ``krossfuse export``; returns the exit status.

    Raises:
        ConfigError: the folder is not that of one run of this kind, or the run has no encoders.
        StoreError: the fusion cannot be had, or is not what the run had.
    """
    parser = argparse.ArgumentParser(
        prog="krossfuse export",
        description="Write the encoders and the fitted fusion of a run as one model, with what was measured of it.",
    )
    parser.add_argument("run", type=Path, help="folder of a run (holds config.yaml)")
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--weights", action="store_true", help="copy the encoders' weights into the folder")
    parser.add_argument("--fold", type=int, help="of a run with folds: whose fusion, from 1")
    options = parser.parse_args(None if arguments is None else list(arguments))
    model, run = export(options.run, fold=options.fold)
    model.card = model_card(model, [run])
    model.save_pretrained(options.folder, weights=options.weights)
    print(f"{options.folder}: {' and '.join(model.modalities)} into {model.dim} dimensions, {len(run.records)} "
          f"measurements in its card; krossfuse encode {options.folder} IMAGES -o FILE uses it")  # fmt: skip
    return 0


def export(folder: Path, *, fold: int | None = None) -> tuple[FusedEncoder, Run]:
    """Return the model of a run, and the run.

    The fusion is the run's own file where ``save_fusion`` was on; else it is fitted again from the stored features, by
    the run's seed, which gives the same bits.

    Args:
        folder: of the run.
        fold: of a run with folds, whose fusion, from 1.

    Raises:
        ConfigError: see :func:`main`.
        StoreError: see :func:`main`.
    """
    run = _one_run(folder)
    cfg = run.config
    if not cfg:
        raise StoreError(f"run {str(folder)!r} has no {CONFIG}, so its encoders are not known")
    if not isinstance(make_kind(cfg), FuseAndProbe):
        raise ConfigError(f"run {str(folder)!r} is of another kind ({cfg['job'].get('_target_')}); only runs that fuse "
                          "and probe have a fused encoder")  # fmt: skip
    if not cfg.get("pair"):
        raise ConfigError(
            f"run {str(folder)!r} used features of a file (pair=none): its encoders are not known; make the model in "
            "Python: krossfuse.FusedEncoder(pair, krossfuse.load_fusion(...)).save_pretrained(...)"
        )
    trust_modules_of({"pair": cfg["pair"], "fusion": cfg["fusion"]})
    pair = make(cfg["pair"], "pair", Pair)
    fusion = _saved(run, fold) or _fitted_again(run, fold)
    if run.records:
        was, now = run.records[0].versions, versions(LIBRARIES)
        other = {name: f"{was[name]} then, {now[name]} now" for name in now if was.get(name, now[name]) != now[name]}
        if other:
            log.warning("run %s was made with other versions: %s", folder, other)
    return FusedEncoder(pair, fusion), run


def _one_run(folder: Path) -> Run:
    runs = read_runs(folder)
    if len(runs) > 1:
        names = [run.name for run in runs]
        raise ConfigError(f"{str(folder)!r} holds {len(runs)} runs; choose the folder of one: {', '.join(names[:8])}"
                          f"{', ...' if len(names) > 8 else ''}")  # fmt: skip
    if runs[0].state == "failed":
        log.warning("run %s failed (%s); what it measured before is in the card", folder, runs[0].error)
    return runs[0]


def _saved(run: Run, fold: int | None) -> FusionMethod | None:
    """Return the fusion that the run saved; None where it saved none."""
    of_folds = sorted(run.folder.glob("fusion-fold-*.safetensors"))
    if of_folds or fold is not None:
        path = run.folder / f"fusion-fold-{fold}.safetensors"
        if of_folds:
            _check_fold(run, fold, len(of_folds))
    else:
        path = run.folder / "fusion.safetensors"
    return load_fusion(path) if path.is_file() else None


def _check_fold(run: Run, fold: int | None, folds: int) -> int:
    if fold is None or not 1 <= fold <= folds:
        raise ConfigError(
            f"run {str(run.folder)!r} has {folds} folds, and a fusion for each; say which: --fold 1 to --fold {folds}"
        )
    return fold


def _fitted_again(run: Run, fold: int | None) -> FusionMethod:
    cfg = run.config
    print(f"{run.folder} saved no fusion; it is fitted again from the run's features", file=sys.stderr)
    try:
        source_of(cfg).check()
        folds, given = turns_of(cfg)
    except KrossFuseError as error:
        raise type(error)(
            f"run {str(run.folder)!r} saved no fusion (save_fusion=true does), and its features cannot be had to fit "
            f"it again: {error}"
        ) from None
    if folds:
        fold = _check_fold(run, fold, len(folds))
    elif fold is not None:
        raise ConfigError(f"run {str(run.folder)!r} has no folds; leave --fold out")
    method = fit(cfg, given[fold - 1 if fold is not None else 0], TrainerFactory(cfg["trainer"])).method
    if not folds and run.records:
        _check_same(run, method)
    return method


def _check_same(run: Run, method: FusionMethod) -> None:
    """Check that a fusion that was fitted again is described as the run's was."""
    now: dict[str, Any] = json.loads(json.dumps(method.describe(), default=str))
    was = run.records[0].fusion_config
    other = [f"{key}: {was[key]} then, {now.get(key)} now" for key in was if key in now and was[key] != now[key]]
    if other:
        raise StoreError(
            f"run {str(run.folder)!r}: the fusion that was fitted again is not the run's ({'; '.join(other)}); its "
            "data, encoders or libraries have changed since. Run it again, with save_fusion=true"
        )
