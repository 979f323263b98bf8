"""Composing a configuration: groups, options, keys, values that everything shares, sweeps, the command line itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from faults.case import BAD, FAILED, Case, Made, Outcome, measured
from faults.files import EMBEDDINGS, Arrays, Files, arrays, embeddings, write_arrays

APP = "app"


def nothing_ran(folder: Path, outcome: Outcome) -> None:
    """Check that it was said before the first job."""
    assert not list(folder.glob("runs/**/results.jsonl")), "a job ran"


def nothing_outside(folder: Path, outcome: Outcome) -> None:
    """Check that nothing was written beside the folder one stands in, nor above it."""
    assert [path.name for path in folder.parent.iterdir() if path.name != "store"] == [folder.name]
    assert not (folder.parent.parent / "x").exists()


def said_once(words: str) -> Callable[[Path, Outcome], None]:
    """Return a check that a message is not repeated, and that nothing ran."""

    def check(folder: Path, outcome: Outcome) -> None:
        nothing_ran(folder, outcome)
        assert outcome.err.count(words) == 1, outcome.err

    return check


def option(name: str, override: str, *words: str | tuple[str, ...], **more: object) -> Case:
    """Return a case of one override on good embeddings."""
    return Case(
        id=name,
        room=APP,
        run=[*EMBEDDINGS, override],
        files=embeddings(),
        words=words,
        **more,  # type: ignore[arg-type]
    )


def own_code(**modules: str) -> Files:
    """Return what writes embeddings, and a user's own modules."""

    def write(folder: Path, made: Made) -> None:
        embeddings()(folder, made)
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)

    return write


MINE = "from krossfuse import Concatenation\n\n\nclass Mine(Concatenation):\n    pass\n"

TYPOS = [
    Case(id="key", room=APP, run=["fusion.dmi=3"], words=["no key 'fusion.dmi'", "did you mean 'fusion.dim'?"]),
    Case(id="section", room=APP, run=["fusoin.dim=3"], words=["no key 'fusoin.dim'", "did you mean 'fusion.dim'?"]),
    Case(id="top-key", room=APP, run=["sed=1"], words=["no key 'sed'", "did you mean 'seed'?"], short=True),
    Case(id="group", room=APP, run=["fuson=rp_krossfuse"], words=["fuson", "did you mean 'fusion'?"]),
    Case(
        id="option",
        room=APP,
        run=["fusion=rp_krosfuse"],
        words=["group 'fusion' has no option 'rp_krosfuse'", "did you mean 'rp_krossfuse'?", "spectral_krossfuse"],
        short=True,
    ),
    Case(
        id="option-unlike-any",
        room=APP,
        run=["pair=zzz"],
        words=["group 'pair' has no option 'zzz'", "openmoji_image", "clip_dinov2"],
    ),
    Case(
        id="nested-group", room=APP, run=["fusion/skech=srht"], words=["fusion/skech", "did you mean 'fusion/sketch'?"]
    ),
    Case(
        id="nested-option",
        room=APP,
        run=["fusion/sketch=srth"],
        words=["group 'fusion/sketch' has no option 'srth'", "did you mean 'srht'?"],
    ),
    Case(
        id="option-in-a-list",
        room=APP,
        run=["probe=[zero_shot,linear_prob]"],
        words=["group 'probe' has no option 'linear_prob'", "did you mean 'linear_probe'?"],
    ),
    Case(
        id="nested-key",
        room=APP,
        run=["probe.linear_probe.gird=[1]"],
        words=["no key 'probe.linear_probe.gird'", "did you mean 'probe.linear_probe.grid'?"],
    ),
    Case(
        id="key-of-a-probe-not-chosen",
        room=APP,
        run=["probe=[knn]", "probe.linear_probe.grid=[1]"],
        words=["no key 'probe.linear_probe.grid'", "probe=[knn,linear_probe]"],
        never=["did you mean"],
    ),
    Case(
        id="key-of-another-method",
        room=APP,
        run=["fusion=concatenation", "fusion.dim=300"],
        words=["no key 'fusion.dim'", "fusion.weights"],
    ),
    Case(
        id="experiment",
        room=APP,
        run=["-m", "experiment=quickstartt"],
        words=["no option 'quickstartt'", "did you mean 'quickstart'?"],
    ),
    Case(
        id="job",
        room=APP,
        run=["job=fuse_and_prob"],
        words=["no option 'fuse_and_prob'", "did you mean 'fuse_and_probe'"],
    ),
    Case(id="in-a-sweep", room=APP, run=["-m", "fusion.dim=3,4", "sed=1"], words=["did you mean 'seed'?"]),
    Case(
        id="key-of-one-of-the-swept-options",
        room=APP,
        run=["-m", "fusion=rp_krossfuse,cross_modal", "fusion.C=1"],
        words=["one of the chosen options has no key 'fusion.C'", "hydra.sweeper.grids"],
    ),
    option("appended-top-key", "+extra=1", "no key 'extra'"),
    option("appended-fusion-key", "+fusion.dimm=3", "fusion", "dimm", "did you mean 'dim'"),
    option("appended-data-key", "+data.pathh=x", "data", "pathh", "did you mean 'path'"),
    option("appended-probe-key", "+probe.zero_shot.spilt=val", "probe.zero_shot", "spilt", "did you mean 'split'"),
    option("appended-logger-key", "+logger.mod=offline", "logger", "mod"),
    option("appended-trainer-key", "+trainer.acelerator=cpu", "trainer", "acelerator", "did you mean 'accelerator'"),
    option("appended-paths-key", "+paths.stor=x", "no key 'paths.stor'", "did you mean 'store'"),
    Case(
        id="appended-kernel-key",
        room=APP,
        run=[*EMBEDDINGS, "fusion/kernel=gaussian", "+fusion.kernel.bandwith=1"],
        files=embeddings(),
        words=["fusion", "bandwith", "did you mean 'bandwidth'"],
    ),
]

LINE = [
    Case(id="command", room=APP, run=["reprot", "runs"], words=["no command 'reprot'", "did you mean 'report'?"]),
    Case(id="command-of-the-store", room=APP, run=["store", "lisst"], words=["invalid choice: 'lisst'", "list", "verify"]),
    Case(id="store-alone", room=APP, run=["store"], words=["COMMAND"]),
    Case(id="report-alone", room=APP, run=["report"], words=["folder"]),
    Case(id="diagnose-alone", room=APP, run=["diagnose"], words=["file"]),
    Case(id="a-path", room=APP, run=["runs/first"], words=["runs/first", "key=value", ("report", "command")]),
    Case(id="a-file", room=APP, run=["features.npz"], words=["features.npz", "key=value"]),
    Case(id="no-value", room=APP, run=["fusion.dim"], words=["fusion.dim", "="]),
    Case(id="blanks-around-the-sign", room=APP, run=["fusion.dim", "=", "3"], words=["fusion.dim", "key=value"]),
    Case(id="open-bracket", room=APP, run=["probe=[knn"], words=["probe=[knn"]),
    Case(id="unknown-flag", room=APP, run=["--sweep", "seed=1"], words=["--sweep"]),
    Case(id="sweep-without-m", room=APP, run=["fusion.dim=3,4"], words=["fusion.dim=3,4", ("-m", "--multirun")]),
    Case(
        id="range-without-m", room=APP, run=["seed=range(3)"], words=["seed=range(3)", ("-m", "--multirun")]
    ),
    Case(id="missing-value", room=APP, run=["seed=???"], words=["seed", "missing"]),
    Case(id="unknown-interpolation", room=APP, run=["name=${nme}"], words=["nme", "not found"]),
    Case(
        id="unset-variable", room=APP, run=["name=${oc.env:KROSSFUSE_NOT_SET}"], words=["KROSSFUSE_NOT_SET", "not found"]
    ),
    Case(id="version", room=APP, run=["--version"], status=0, words=["krossfuse 0."], process=True),
    Case(
        id="help", room=APP, run=["--help"], status=0, process=True,
        words=["data:", "pair:", "fusion:", "probe:", "experiment:", "report FOLDER", "store list", "diagnose FILE"],
    ),
    Case(id="help-of-the-store", room=APP, run=["store", "delete", "--help"], status=0, words=["--dry-run", "--yes"]),
    Case(id="help-of-the-report", room=APP, run=["report", "--help"], status=0, words=["--format", "--out"]),
    Case(
        id="typo-in-a-process", room=APP, run=["fusion.dmi=3"], process=True, words=["did you mean 'fusion.dim'?"],
    ),
    Case(
        id="config-dir-without-a-folder", room=APP, run=["--config-dir", "konf", "seed=1"],
        words=["no folder", "konf", "--config-dir"],
    ),
    Case(id="config-dir-at-the-end", room=APP, run=["seed=1", "--config-dir"], words=["--config-dir", "folder"]),
    Case(
        id="own-option-of-the-packages-name", room=APP, run=["--config-dir", "conf", "fusion=gate"],
        files=lambda folder, made: ((folder / "conf/fusion").mkdir(parents=True),
                                    (folder / "conf/fusion/gate.yaml").write_text("_target_: mine.Gate\n")),
        words=["gate.yaml", "krossfuse's own", "another name"], environment={"KROSSFUSE_CONF": ""},
    ),
    Case(
        id="own-option-that-is-not-yaml", room=APP, run=["--config-dir", "conf", "fusion=mine"],
        files=lambda folder, made: ((folder / "conf/fusion").mkdir(parents=True),
                                    (folder / "conf/fusion/mine.yaml").write_text("_target_: [mine.Mine\n")),
        words=["mine.yaml"], environment={"KROSSFUSE_CONF": ""},
    ),
]  # fmt: skip

VALUES = [
    option("seed-negative", "seed=-1", "seed=-1", "whole number, 0 or more", short=True),
    option("seed-fraction", "seed=1.5", "seed=1.5", "whole number"),
    option("seed-word", "seed=one", "seed='one'", "whole number"),
    option("seed-null", "seed=null", "seed=None", "whole number"),
    option("seed-true", "seed=true", "seed=True", "whole number"),
    option("seed-of-more-than-32-bits", "seed=99999999999", "seed=99999999999", "whole number", "2^32"),
    option("seed-list", "seed=[1,2]", "seed=[1, 2]", "whole number"),
    option("name-outside", "name=../../../x", "name='../../../x'", "name of a folder", after=nothing_outside),
    option("name-absolute", "name=/tmp/x", "name='/tmp/x'", "name of a folder"),
    option("name-empty", "name=''", "name=''", "name of a folder"),
    option("name-dots", "name=..", "name='..'", "name of a folder"),
    option("name-null", "name=null", "name=None", "name of a folder"),
    option("name-number", "name=5", "name=5", "name of a folder"),
    option("batch-size-zero", "extraction.batch_size=0", "extraction.batch_size=0", "positive integer"),
    option("batch-size-fraction", "extraction.batch_size=1.5", "extraction.batch_size=1.5", "positive integer"),
    option("batch-size-null", "extraction.batch_size=null", "extraction.batch_size=None", "positive integer"),
    option("progress-word", "extraction.progress=maybe", "extraction.progress='maybe'", "true or false"),
    option("block-rows", "fuse.block_rows=-5", "fuse.block_rows=-5", "positive integer"),
    option("memory-limit-negative", "fuse.memory_limit=-1", "fuse.memory_limit=-1", "positive"),
    option("memory-limit-word", "fuse.memory_limit=2GB", "fuse.memory_limit='2GB'", "positive"),
    option("memory-limit-infinite", "fuse.memory_limit=inf", "fuse.memory_limit=inf", "finite"),
    option("fuse-label-set", "fuse.label_set=clas", "fuse.label_set='clas'", "did you mean 'class'"),
    option("figures-label-set", "figures.label_set=clas", "figures.label_set='clas'", "did you mean 'class'"),
    option("figures-items-zero", "figures.max_items=0", "figures.max_items=0", ("positive", "or more")),
    Case(
        id="figures-one-item", room="results", run=[*EMBEDDINGS, "figures.max_items=1"], files=embeddings(), status=0,
        after=measured,
    ),
    option("save-fusion-word", "save_fusion=maybe", "save_fusion='maybe'", "true or false"),
    option("no-probes", "probe=[]", "probe=[]", "measures nothing", "linear_probe"),
    option("section-is-a-number", "extraction=5", "extraction"),
    option("section-is-null", "figures=null", "figures"),
    option("section-is-a-list", "fuse=[]", "fuse"),
    option("paths-null", "paths=null", "paths"),
    option("store-null", "paths.store=null", "paths.store"),
    option("group-null", "fusion=null", "fusion=null", "rp_krossfuse"),
    option("group-not-there-to-take-out", "~prob", "prob"),
    option("group-taken-out-logger", "~logger", "no key 'logger'", "logger="),
    option("group-taken-out-trainer", "~trainer", "no key 'trainer'", "trainer="),
    Case(id="group-taken-out-data", room=APP, run=["~data"], words=["no key 'data'", "data="]),
    Case(id="group-taken-out-job", room=APP, run=["~job"], words=["no key 'job'", "job="]),
    option("key-taken-out", "~seed", "seed"),
    option("job-is-no-kind", "job._target_=builtins.dict", "job", "builtins.dict", "Kind"),
    option("target-not-there", "fusion._target_=nowhere.Nothing", "fusion", "nowhere.Nothing"),
    option("target-not-in-its-module", "fusion._target_=krossfuse.Nothing", "fusion", "krossfuse.Nothing"),
    option("fusion-is-no-method", "fusion._target_=builtins.dict", "fusion", "dict", ("FusionMethod", "fusion method")),
    option("data-is-no-dataset", "data._target_=builtins.dict", "data", "dict", ("dataset", "DataModule")),
    option("probe-is-no-probe", "probe.zero_shot._target_=builtins.dict", "probe.zero_shot", "dict", "Probe"),
    option("logger-is-no-tracker", "logger._target_=builtins.dict", "logger", "dict", "Tracker"),
    option("pair-with-embeddings", "pair=openmoji_image", "brings its own features", "pair=none", short=True, never=("None",)),
    Case(
        id="no-pair-with-images", room=APP, run=["pair=none"], words=["pair=none has no encoders", "data=embeddings"],
    ),
    Case(
        id="own-module-with-a-mistake", room=APP, run=[*EMBEDDINGS, "fusion._target_=mine.Mine"],
        files=own_code(mine="class Mine(:\n    pass\n"), words=["fusion", "mine.Mine", "syntax"],
    ),
    Case(
        id="own-module-that-needs-another", room=APP, run=[*EMBEDDINGS, "fusion._target_=mine.Mine"],
        files=own_code(mine="import not_installed_here\n"), words=["fusion", "mine.Mine", "not_installed_here"],
    ),
    Case(
        id="own-method-that-is-no-method", room=APP, run=[*EMBEDDINGS, "fusion._target_=mine.Mine"],
        files=own_code(mine="class Mine:\n    def __init__(self, **options): pass\n"),
        words=["fusion", "Mine", ("FusionMethod", "fusion method")],
    ),
    Case(
        id="own-method-with-fewer-options", room=APP, run=[*EMBEDDINGS, "fusion._target_=mine.Mine"],
        files=own_code(mine=MINE.replace("pass", "def __init__(self, *, inputs): super().__init__(inputs=inputs)")),
        words=["fusion", "dim"],
    ),
]  # fmt: skip

FOLDERS = [
    option("runs-is-a-file", "paths.runs=features.npz", "features.npz", "paths.runs", status=FAILED),
    option("runs-below-a-file", "paths.runs=features.npz/runs", "features.npz", "paths.runs", status=FAILED),
    option("runs-where-nobody-may-write", "paths.runs=/proc/runs", "/proc/runs", "paths.runs", status=FAILED),
    Case(
        id="run-folder-in-use", room="results", run=[*EMBEDDINGS, "hydra.run.dir=again"],
        files=lambda folder, made: (embeddings()(folder, made), (folder / "again").mkdir(),
                                    (folder / "again/results.jsonl").write_text("{}\n")),
        words=["again", "already holds results"],
        after=lambda folder, outcome: assert_equal((folder / "again/results.jsonl").read_text(), "{}\n"),
    ),
]  # fmt: skip


def assert_equal(left: object, right: object) -> None:
    assert left == right


def with_an_empty_label_set(contents: Arrays) -> None:
    """Add a label set in which no item has a label."""
    for split in ("train", "val", "test"):
        contents[f"{split}/labels/other"] = contents[f"{split}/labels"] * 0 - 1


def few_rows(folder: Path, made: Made) -> None:
    write_arrays(folder / "features.npz", arrays({"train": 12, "val": 6, "test": 6}))


SWEEPS = [
    Case(
        id="bad-value-among-good", room=APP, run=["-m", *EMBEDDINGS[:2], "logger=none", "fusion.dim=24,-1"],
        files=embeddings(), words=["dim=-1", "positive integer"], after=nothing_ran, short=True,
    ),
    Case(
        id="bad-seed-among-good", room=APP, run=["-m", *EMBEDDINGS, "seed=0,1,x"], files=embeddings(),
        words=["seed='x'"], after=nothing_ran,
    ),
    Case(
        id="path-said-once", room=APP, run=["-m", "data=embeddings", "data.path=nowhere.npz", "seed=0,1,2,3"],
        words=["nowhere.npz", "no such file"], after=said_once("nowhere.npz"), short=True,
    ),
    Case(
        id="folder-said-once", room=APP, run=["-m", "data=image_folder", "data.root=nowhere", "seed=0,1,2,3"],
        words=["data.root", "nowhere"], after=said_once("nowhere"),
    ),
    Case(
        id="nystrom-with-too-few-rows-said-once", room="fusion",
        run=["-m", *EMBEDDINGS[:2], "fusion.alignment=exact", "fusion/sketch=nystrom", "fusion.dim=40,48", "seed=0,1",
             "probe=[zero_shot]", "logger=none"],
        files=few_rows, words=["nystrom", "12", ("40", "32")], after=nothing_ran,
    ),
    Case(
        id="dimension-that-the-file-does-not-allow-said-once", room=APP,
        run=["-m", *EMBEDDINGS[:2], "fusion.alignment=exact", "fusion.dim=4", "seed=0,1,2", "logger=none"],
        files=embeddings(), words=["dim=4", "9 or more"], after=said_once("dim=4"),
    ),
    Case(
        id="label-set-said-once", room=APP, run=["-m", *EMBEDDINGS, "probe.zero_shot.label_sets=[clas]", "seed=0,1,2"],
        files=embeddings(), words=["probe.zero_shot", "'clas'", "did you mean 'class'"], after=said_once("did you mean"),
    ),
    Case(
        id="grid-with-a-typo", room=APP, run=["-m", *EMBEDDINGS, "hydra.sweeper.grids=[{fusion.dmi: 3}]"],
        files=embeddings(), words=["fusion.dmi", "did you mean 'fusion.dim'"], after=nothing_ran,
    ),
    Case(
        id="grids-are-no-list", room=APP, run=["-m", *EMBEDDINGS, "hydra.sweeper.grids=abc"], files=embeddings(),
        words=["hydra.sweeper.grids", "list"],
    ),
    Case(
        id="grid-is-no-mapping", room=APP, run=["-m", *EMBEDDINGS, "hydra.sweeper.grids=[fusion]"], files=embeddings(),
        words=["hydra.sweeper.grids", "mapping"],
    ),
    Case(
        id="grid-with-an-unknown-option", room=APP, files=embeddings(),
        run=["-m", *EMBEDDINGS, "hydra.sweeper.grids=[{fusion: rp_krosfuse}]"],
        words=["rp_krosfuse", "did you mean 'rp_krossfuse'"], after=nothing_ran,
    ),
    Case(
        id="batch-of-jobs", room=APP, run=["-m", *EMBEDDINGS, "seed=0,1", "hydra.sweeper.max_batch_size=0"],
        files=embeddings(), words=["hydra.sweeper.max_batch_size=0", "positive"],
    ),
    Case(
        id="sweep-of-nothing", room=APP, run=["-m", *EMBEDDINGS, "seed=range(0)"], files=embeddings(),
        words=["seed", ("no job", "nothing", "empty")],
    ),
    Case(
        id="name-outside-in-a-sweep", room=APP, run=["-m", *EMBEDDINGS, "name=../../x", "seed=0,1"], files=embeddings(),
        words=["name='../../x'"], after=nothing_outside,
    ),
    Case(
        id="one-job-fails-and-the-others-are-reported", room=APP,
        run=["-m", *EMBEDDINGS,
             "hydra.sweeper.grids=[{fusion: rp_krossfuse},{fusion: gate, fuse.label_set: other}]"],
        files=embeddings(with_an_empty_label_set),
        words=["1 of 2 jobs failed", "gate", "label"],
    ),
]  # fmt: skip

TRAINER = [
    option("accelerator", "trainer.accelerator=tpuu", "trainer", "tpuu"),
    option("no-gpu-here", "trainer=gpu", "trainer", "gpu"),
    option("devices-zero", "trainer.devices=0", "trainer", "devices"),
    option("devices-word", "trainer.devices=many", "trainer", "many"),
    option("precision", "trainer.precision=17", "trainer", "17"),
]

LOGGER = [
    Case(
        id="logger-mode", room="results", run=[*EMBEDDINGS, "logger=wandb", "logger.mode=onlin"], files=embeddings(),
        words=["logger.mode='onlin'", "did you mean 'online'"], short=True,
    ),
    Case(
        id="logger-project", room="results", run=[*EMBEDDINGS, "logger=wandb", "logger.project=null"],
        files=embeddings(), words=["logger.project=None"],
    ),
    Case(
        id="logger-tags", room="results", run=[*EMBEDDINGS, "logger=wandb", "logger.tags=first"], files=embeddings(),
        words=["logger.tags='first'", "list"],
    ),
    Case(
        id="logger-id", room="results", run=[*EMBEDDINGS, "logger=wandb", "logger.id=team/run"], files=embeddings(),
        words=["logger.id='team/run'", "a W&B run's id"],
    ),
    Case(
        id="logger-option", room="results", run=[*EMBEDDINGS, "logger=wand"], files=embeddings(),
        words=["no option 'wand'", "did you mean 'wandb'"],
    ),
    Case(
        id="online-without-an-account", room="results", process=True, status=BAD,
        run=[*EMBEDDINGS, "logger=wandb", "logger.mode=online"], files=embeddings(),
        words=["wandb login", "logger.mode=offline"],
        environment={"HOME": "/nobody", "WANDB_API_KEY": "", "NETRC": "/nobody/.netrc", "WANDB_MODE": "online"},
    ),
]  # fmt: skip

STUDY = ("job=federated_mnist", "data=mnist_pixels", "data.root=.", "logger=none")
FEDERATED = [
    Case(id="study-without-a-root", room=APP, run=[*STUDY[:2], "logger=none"], words=["data.root is not set", "data.root=PATH"]),
    Case(id="study-without-mnist", room=APP, run=STUDY, words=["data.root", "no MNIST", "MNIST/raw", "data.download=true"]),
    Case(id="study-on-other-data", room=APP, run=["job=federated_mnist", "logger=none"], words=["OpenMoji", "MNISTPixels"]),
    Case(id="study-model", room=APP, run=[*STUDY, "job.models=[mpl]"], words=["job", "'mpl'", "did you mean 'mlp'"]),
    Case(id="study-variant", room=APP, run=[*STUDY, "job.variants=[cepan]"], words=["'cepan'", "did you mean 'cepam'"]),
    Case(id="study-no-variants", room=APP, run=[*STUDY, "job.variants=[]"], words=["variants=[]", "not empty"]),
    Case(id="study-rounds", room=APP, run=[*STUDY, "job.rounds=0"], words=["rounds=0", "positive integer"]),
    Case(id="study-seeds", room=APP, run=[*STUDY, "job.seeds=-1"], words=["seeds=-1", "positive integer"]),
    Case(id="study-processes", room=APP, run=[*STUDY, "job.processes=0"], words=["processes=0", "positive integer"]),
]  # fmt: skip

CASES = [*FEDERATED, *TYPOS, *LINE, *VALUES, *FOLDERS, *SWEEPS, *TRAINER, *LOGGER]
