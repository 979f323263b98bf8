"""What a run leaves with its tracker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from krossfuse.app.artifacts import keep_artifacts
from krossfuse.fusion import AverageKernel, InputSpec
from krossfuse.fusion.io import load_fusion, save_fusion
from krossfuse.results.trackers import Artifact


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("fold", ["", "fold-1"])
def test_the_fusion_is_written_once(fold: str, saved: bool, tmp_path: Path) -> None:
    """With ``save_fusion`` the artifact is the run's own file; without, one below ``artifacts/``."""
    method, logged = AverageKernel(inputs=InputSpec(4, {"dino": 6})), list[Artifact]()
    name = f"fusion{'-' * bool(fold)}{fold}.safetensors"
    if saved:
        save_fusion(method, tmp_path / name)
    tracker = SimpleNamespace(keep=["fusion"], log_artifact=logged.append)
    session = cast("Any", SimpleNamespace(label="run", folder=tmp_path, tracker=tracker))
    source = cast("Any", SimpleNamespace(info=SimpleNamespace(fingerprint={})))
    cfg = {"seed": 0, "pair": None, "save_fusion": saved}
    keep_artifacts(cfg, source, {fold: (method, cast("Any", None))}, session, {})
    assert [artifact.path for artifact in logged] == [tmp_path / name if saved else tmp_path / "artifacts" / name]
    assert type(load_fusion(logged[0].path)) is AverageKernel
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
