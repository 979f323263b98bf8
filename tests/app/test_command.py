"""The command: composition, messages for mistakes, every option of every group, every experiment at toy size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from krossfuse import __version__, app
from krossfuse.__main__ import main
from krossfuse.core.errors import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("job", "data", "store", "pair", "fusion", "fusion/kernel", "fusion/sketch", "probe", "trainer", "logger")
GROUPS += ("federated/mechanism", "federated/server")
CASES = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
NEEDS: dict[str, list[str]] = {
    # What an option cannot do without: a path, or a method that takes it.
    "data=image_folder": ["data.root=images"],
    "data=embeddings": ["data.path=features.npz"],
    "data=imagenet_typographic": ["data.base.root=imagenet"],
    "data=mnist": ["data.root=mnist"],
    "data=mnist_pixels": ["data.root=mnist", "job=federated_mnist"],
    "job=federated_mnist": ["data.root=mnist", "data=mnist_pixels"],
    "data=senteval": ["data.root=text", "pair=openmoji_text"],
    "data=text_files": ["data.root=texts", "data.files={all: all.txt}", "pair=openmoji_text"],
    **{f"data={task}": ["pair=openmoji_text"] for task in ("mr", "cr", "subj", "mpqa", "sst2", "trec", "mrpc")},
    "data=image_list": ["data.root=images", "data.file=split_zhou_made.json"],
    "data=webdataset": ["data.root=tars"],
    "data=tfds": ["data.root=tfds"],
    "data=tfds_captions": ["data.root=tfds"],
    "job=fuse": ["job.folder=fused"],
    "data=webdataset_captions": ["data.root=tars"],
    "data=huggingface": ["data.path=parquet"],
    "data=huggingface_captions": ["data.path=parquet"],
    "data=shards": ["data.manifest=shards.json"],
    "store=fsspec": ["store.url=memory://features"],
    "pair=none": ["data=embeddings", "data.path=features.npz"],
    "fusion=text_expert": ["pair=openmoji_text"],
    "pair=openmoji_experts": ["fusion=unimodal_krossfuse"],
    "fusion=unimodal_krossfuse": ["pair=openmoji_experts"],
    "fusion/sketch=spectral": ["fusion.alignment=exact"],
    "fusion/sketch=nystrom": ["fusion.alignment=exact"],
}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


def check(*overrides: str) -> None:
    """Check the job that the overrides compose, as the command does before the first job of a sweep."""
    cfg = composed(*overrides)
    app.check(app.job_config(cfg), dict(cfg.hydra.runtime.choices), data=False)


@pytest.mark.parametrize(("group", "option"), CASES, ids=lambda value: str(value))
def test_every_option_of_every_group_builds(group: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("KROSSFUSE_DATA", "KROSSFUSE_TORCHVISION", "KROSSFUSE_SENTEVAL"):  # where published sets lie
        monkeypatch.setenv(variable, "sets")
    if option.startswith("huggingface"):
        pytest.importorskip("datasets")
    choice = f"{group}=[{option}]" if group == "probe" else f"{group}={option}"
    probe = ["probe=[federated_probe]"] if group.startswith("federated/") else []
    check(choice, *NEEDS.get(choice, []), *probe)


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("seed=-1", "seed=-1"),
        ("seed=one", "seed='one'"),
        ("fusion.dim=0", "dim=0"),
        ("fusion.dim=many", "dim='many'"),
        ("fusion.C=-2.0", "C=-2.0"),
        ("fusion.alignment=exat", "did you mean 'exact'"),
        ("extraction.batch_size=0", "batch_size=0"),
        ("probe=[]", "probe=\\[\\] measures nothing"),
        ("pair=none", "pair=none has no encoders"),
        ("name=../../../x", "name='../../../x' must be the name of a folder"),
        ("name=''", "name='' must be"),
        ("+extra=1", "no key 'extra'"),
        ("+fuse.rows=1", "no key 'fuse.rows'"),
    ],
)
def test_a_bad_value_is_refused_before_anything_is_loaded(override: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        check(override)


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run the command in an empty folder, as a user of a wheel would."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "krossfuse", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fusion.dmi=3"], "no key 'fusion.dmi' (did you mean 'fusion.dim'?)"),
        (["fusoin.dim=3"], "did you mean 'fusion.dim'?"),
        (["fusion=rp_krosfuse"], "no option 'rp_krosfuse' (did you mean 'rp_krossfuse'?)"),
        (["probe=[linear_prob]"], "did you mean 'linear_probe'?"),
        (["-m", "fusion.dim=3,4", "sed=1"], "did you mean 'seed'?"),
        (["-m", "experiment=quickstartt"], "no option 'quickstartt' (did you mean 'quickstart'?)"),
        (["fusion.projection_dim=5"], "did you mean 'fusion.dim'?"),
        (["reprot", "runs"], "no command 'reprot' (did you mean 'report'?)"),
        (["-m", "fusion=rp_krossfuse,cross_modal", "fusion.C=1"], "one of the chosen options has no key 'fusion.C'"),
    ],
)
def test_a_mistyped_key_or_option_says_what_was_meant(command: Command, arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_our_own(command: Command) -> None:
    assert command("--version").stdout == f"krossfuse {__version__}\n"


def test_a_path_that_is_not_there_is_said_once_before_the_first_job(command: Command, tmp_path: Path) -> None:
    done = command("-m", "data=embeddings", "data.path=nowhere.npz", "seed=0,1,2")
    assert done.returncode == 2
    assert done.stderr.count("nowhere.npz") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A user's own module and configuration, outside the package."""
    (tmp_path / "mine.py").write_text(
        "from krossfuse import Concatenation\n\n\nclass Mine(Concatenation):\n"
        "    def __init__(self, *, inputs, power=1.0):\n        super().__init__(inputs=inputs)\n"
    )
    (tmp_path / "conf" / "fusion").mkdir(parents=True)
    (tmp_path / "conf" / "fusion" / "mine.yaml").write_text("_target_: mine.Mine\n_partial_: true\npower: 1.0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-dir", "conf", "fusion=mine", "fusion.powr=2"], "did you mean 'fusion.power'?"),
        (["--config-dir=conf", "fusion=mini"], "did you mean 'mine'?"),
        (["--config-dir", "konf", "fusion=mine"], "there is no folder"),
    ],
)
def test_hints_know_a_users_own_options(command: Command, own_folder: Path, arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_option_of_the_packages_own_name_is_refused(command: Command, own_folder: Path) -> None:
    (own_folder / "conf" / "fusion" / "gate.yaml").write_text("_target_: mine.Mine\n")
    done = command("--config-dir", "conf", "fusion=gate")
    assert done.returncode == 2
    assert "fusion/gate.yaml is one of krossfuse's own options" in done.stderr


def test_help_names_the_groups(command: Command) -> None:
    done = command("--help")
    assert done.returncode == 0
    assert all(group in done.stdout for group in ("data:", "pair:", "fusion:", "probe:", "experiment:", "store list"))


def test_help_is_what_hydra_would_print(command: Command, own_folder: Path) -> None:
    ours, hydras = command("--help", "--config-dir", "conf"), command("--help", "seed=0", "--config-dir", "conf")
    assert ours.returncode == hydras.returncode == 0
    assert ours.stdout == hydras.stdout
    assert "mine" in ours.stdout


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom krossfuse import __main__\nsys.argv = ['krossfuse', '--help']\n"
        "try:\n    __main__.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pytorch_lightning', 'wandb', 'transformers', 'open_clip', 'pandas', 'matplotlib'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "loaded []" in done.stdout, done.stdout + done.stderr


def test_arguments_as_wandbs_agent_hands_them_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["krossfuse", "--cfg", "job", "--fusion.dim=77", "--seed=5"])
    GlobalHydra.instance().clear()
    main()
    said = capsys.readouterr().out
    assert "dim: 77" in said
    assert "seed: 5" in said
