from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from krossfuse.results.digest import config_digest, method_digest
from krossfuse.results.naming import group_name, run_name, run_tags


def composed(repository: Path, *overrides: str) -> dict[str, Any]:
    import krossfuse.app.paths  # noqa: F401  (registers the resolver of the paths)

    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides))
    assert isinstance(cfg, DictConfig)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


CHANGE_NOTHING = [
    "seed=7",
    "name=another",
    "paths.runs=/elsewhere",
    "paths.store=/elsewhere",
    "logger=csv",
    "save_fusion=true",
    "+store.anything=1",
    "figures.max_items=9",
    "report.baselines=[concatenation]",
    "extraction.batch_size=3",
    "extraction.progress=false",
    "extraction.keep_heap=false",
    "extraction.shard_rows=64",
    "fuse.block_rows=7",
    "fuse.memory_limit=1",
    "data.num_workers=0",
    "probe.zero_shot.block_rows=3",
    "probe.linear_probe.device=cpu",
    "trainer=cpu",
    "trainer.devices=2",
    "+trainer.enable_progress_bar=true",
    "+trainer.log_every_n_steps=1",
]
CHANGE_SOMETHING = [
    "data.limit=10",
    "data.folds=3",
    "pair.cross_modal.max_length=9",
    "fusion.dim=64",
    "fusion.C=0.5",
    "fusion/sketch=srht",
    "fuse.label_set=group",
    "trainer.precision=16-mixed",
    "trainer.float32_matmul_precision=high",
    "extraction.dtype=bfloat16",
    "extraction.store_dtype=float16",
    "+trainer.gradient_clip_val=1",
    "probe.linear_probe.grid=[1]",
    "+unheard_of.key=1",
]


@pytest.mark.parametrize("override", CHANGE_NOTHING)
def test_what_cannot_change_a_measurement_is_not_in_the_digest(repository: Path, override: str) -> None:
    assert config_digest(composed(repository, override)) == config_digest(composed(repository))


@pytest.mark.parametrize("override", CHANGE_SOMETHING)
def test_what_can_change_a_measurement_is(repository: Path, override: str) -> None:
    assert config_digest(composed(repository, override)) != config_digest(composed(repository))


def test_the_batch_size_of_a_training_is_no_batch_size_of_a_loader(repository: Path) -> None:
    digests = {config_digest(composed(repository, "fusion=gate", f"fusion.batch_size={size}")) for size in (64, 128)}
    assert len(digests) == 2


def test_a_dataset_s_seed_decides_what_is_measured() -> None:
    assert config_digest({"data": {"seed": 1}}) != config_digest({"data": {"seed": 2}})
    assert config_digest({"fusion": {"sketch": {"seed": 1}}}) == config_digest({"fusion": {"sketch": {"seed": 2}}})


def test_a_probe_measures_the_same_whichever_run_beside_it(repository: Path) -> None:
    alone = composed(repository, "probe=[linear_probe]")
    beside = composed(repository, "probe=[linear_probe,zero_shot]", "probe.zero_shot.block_rows=1")
    assert config_digest(alone, "linear_probe") == config_digest(beside, "linear_probe")
    assert config_digest(beside, "zero_shot") != config_digest(beside, "linear_probe")
    assert method_digest(alone) == method_digest(beside)
    other = composed(repository, "probe=[linear_probe]", "probe.linear_probe.grid=[1]")
    assert config_digest(other, "linear_probe") != config_digest(alone, "linear_probe")
    assert method_digest(other) == method_digest(alone)
    assert method_digest(composed(repository, "fusion.dim=9")) != method_digest(alone)


def test_run_names_say_what_tells_jobs_apart_and_no_two_are_the_same(repository: Path) -> None:
    grid = [
        *("fusion.dim=64", "fusion.C=0.1", "fusion.alignment=exact", "fusion/sketch=srht", "fusion/kernel=gaussian"),
        *("pair=openmoji_text", "data=openmoji_typographic", "seed=1", "probe=[knn]", "fusion.expert_weight=2"),
    ]
    names = [run_name(composed(repository, *overrides), "rp_krossfuse") for overrides in ((), *((o,) for o in grid))]
    assert names[0].startswith("openmoji-openmoji_image-rp_krossfuse-3000-published-uniform-cosine-C1-seed0-")
    assert "-64-" in names[1]
    assert "-C0.1-" in names[2]
    assert "-exact-" in names[3]
    assert "-srht-" in names[4]
    assert "-gaussian-" in names[5]
    assert "-openmoji_text-" in names[6]
    assert names[7].startswith("openmoji_typographic-")
    assert "-seed1-" in names[8]
    assert len(set(names)) == len(names)


def test_tags_and_groups(repository: Path, tmp_path: Path) -> None:
    tags = ["openmoji", "openmoji_image", "rp_krossfuse", "linear_probe", "zero_shot"]
    assert run_tags(composed(repository), "rp_krossfuse") == tags
    assert run_tags({"data": {"path": "a/faces.npz"}, "probe": {"cca": {}}}, "cca") == ["faces", "cca"]
    assert run_tags({"data": {"name": "x" * 99}}, "cca") == ["x" * 64, "cca"]
    assert group_name("s", tmp_path / "2026-11-25_10-00-00") != group_name("s", tmp_path / "2026-11-25_10-00-01")
