"""Composing many jobs at once gives each what Hydra gives it alone; and what goes to a task arrives as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from krossfuse.app.build import job_config, packed, unpacked
from krossfuse.app.compose import Composer
from krossfuse.app.journal import Journal, Line, Reader
from krossfuse.app.paths import CONFIG_DIR

SHARED = ["data=embeddings", "data.path=features.npz", "logger=none"]
JOBS = [
    ["fusion.dim=24", "seed=0"],
    ["fusion.dim=32", "seed=1", "fusion.C=auto"],
    ["fusion=concatenation", "seed=3"],
    ["fusion=concatenation", "fusion.weights={cross_modal: 1.0, dinov2: 2.0}"],
    ["fusion.alignment=exact", "fusion/sketch=spectral", "fusion.dim=48"],
    ["probe=[knn,zero_shot]", "probe.knn.ks=[1,5]", "seed=2"],
    ["probe=[knn]", "probe.knn={ks: [3]}", "probe.knn.ks=[7]"],
    ["+trainer.max_time=null", "trainer.precision=64-true", "~trainer.accelerator"],
    ["name='a name, with = and ${seed}'", "figures.label_set=null"],
    ["fusion.dim=${seed}", "seed=64"],
    ["data.split_seed=${hydra:job.num}"],
    ["seed=1", "fusion.seed=2"],
]


@pytest.fixture(
    params=[(), ("hydra.sweep.subdir='${hydra.job.override_dirname}/${seed}'",)], ids=["by-number", "by-name"]
)
def sweep(request: pytest.FixtureRequest) -> Iterator[tuple[ConfigLoader, DictConfig]]:
    before = HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        hydra = GlobalHydra.instance()
        assert hydra.hydra is not None
        master = hydra.hydra.compose_config("config", [*SHARED, *request.param], run_mode=RunMode.MULTIRUN)
        yield hydra.config_loader(), master
    HydraConfig.instance().cfg = before


def by_hydra(loader: ConfigLoader, master: DictConfig, job: list[str], number: int) -> tuple[Any, dict[str, str], str]:
    cfg = loader.load_sweep_config(master, job)
    with open_dict(cfg.hydra.job):
        cfg.hydra.job.num = number
    HydraConfig.instance().set_config(cfg)
    return job_config(cfg), dict(cfg.hydra.runtime.choices), str(cfg.hydra.sweep.subdir)


def test_every_job_is_composed_as_hydra_composes_it(sweep: tuple[ConfigLoader, DictConfig]) -> None:
    loader, master = sweep
    composer = Composer(loader, master)
    jobs = [[*SHARED, *job] for job in JOBS]
    expected = [by_hydra(loader, master, job, number) for number, job in enumerate(jobs)]
    for _ in range(2):  # the second time on what the first has left
        for number, job in enumerate(jobs):
            made = composer(job, number)
            assert (made.plain, made.choices, made.subdir or str(number)) == expected[number], job


def test_jobs_of_one_key_have_one_configuration(sweep: tuple[ConfigLoader, DictConfig]) -> None:
    composer = Composer(*sweep)
    keys = [composer.key([*SHARED, *job]) for job in JOBS]
    assert len(set(keys)) == len(keys)
    assert keys == [Composer(*sweep).key([*SHARED, *job]) for job in JOBS]


@pytest.mark.parametrize(
    ("job", "words"),
    [(["fusion.dmi=3"], "fusion.dmi"), (["fusion=nothing"], "nothing"), (["fusion.dim.x=3"], "fusion.dim.x")],
)
def test_what_hydra_refuses_is_refused_in_its_words(
    sweep: tuple[ConfigLoader, DictConfig], job: list[str], words: str
) -> None:
    with pytest.raises(HydraException, match=words):
        Composer(*sweep)([*SHARED, *job], 0)


@pytest.mark.parametrize(
    "plain",
    [
        {"a": 1, "b": [1.5, None, True, "1e3"], "c": {"d": "x: y"}},
        {"of_numbers": {1: "one", 2: "two"}},
        {"not": {"a": float("inf"), "finite": [-float("inf")]}},
        {"text": "ü\n'\"${x}"},
    ],
)
def test_a_configuration_arrives_as_it_was(plain: dict[str, Any]) -> None:
    arrived = unpacked(packed(plain))
    assert arrived == plain
    assert repr(arrived) == repr(plain), "types too"


def test_a_journal_is_read_as_it_grows_and_a_torn_line_is_none(tmp_path: Path) -> None:
    reader, journal = Reader(), Journal(tmp_path / "a.journal")
    reader.follow([tmp_path / "a.journal", tmp_path / "not-there.journal"])
    assert list(reader.new()) == []
    lines = [Line(0, "start"), Line(0, "failed", "an error\nof two lines", "trace"), Line(1, "done")]
    journal.write(lines[0])
    assert list(reader.new()) == lines[:1]
    journal.write(lines[1])
    with (tmp_path / "a.journal").open("ab") as file:
        file.write(b'{"point": 1, "wh')
    assert list(reader.new()) == lines[1:2]
    with (tmp_path / "a.journal").open("ab") as file:
        file.write(b"\nno json\n")
    journal.write(lines[2])
    assert list(reader.new()) == lines[2:]
