"""An Optuna study as a search needs it: made or found in its storage, gone on with, and written out as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krossfuse.app.objectives import Objective
from krossfuse.core.errors import ConfigError
from krossfuse.core.files import write_whole

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

JOURNAL, TABLE = "study.journal", "search.csv"
OBJECTIVES, KEYS, FOLDER, RUNS, INTERRUPTED = "objectives", "keys", "folder", "runs", "interrupted"


def open_storage(storage: str | None, folder: Path) -> BaseStorage:
    """Return the storage of a study.

    Args:
        storage: None = a file in the sweep's folder; ``journal:FILE``; or a database's URL.
        folder: of the sweep.

    Raises:
        ConfigError: it cannot be reached.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    name = f"journal:{folder / JOURNAL}" if storage is None else storage
    try:
        if name.startswith("journal:"):
            path = Path(name.removeprefix("journal:"))
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path)))
        return RDBStorage(name)
    except Exception as error:  # of the database's driver
        raise ConfigError(
            f"hydra.sweeper.storage={name} cannot be used ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "journal:FILE needs no database"
        ) from None


def open_study(
    storage: BaseStorage,
    name: str,
    objectives: Sequence[Objective],
    space: Mapping[str, BaseDistribution],
    **parts: Any,
) -> Study:
    """Return the study of a name, made if it is not there.

    Args:
        storage: of the study.
        name: of the study.
        objectives: in order.
        space: what is searched.
        parts: ``sampler`` and ``pruner``.

    Raises:
        ConfigError: the study has other objectives, or searches something else.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the search says what there is to say
    directions: Any = [objective.directed() for objective in objectives]
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True, **parts
        )
    except ValueError as error:
        raise ConfigError(f"hydra.sweeper.objectives: {error}") from None
    mine = {OBJECTIVES: [objective.name for objective in objectives], KEYS: sorted(space)}
    for key, value in mine.items():
        found = study.user_attrs.get(key)
        if found is None:
            study.set_user_attr(key, value)
        elif found != value:
            raise ConfigError(
                f"the study {name!r} has the {key} {found}, and this search has {value}; give it another name "
                "(hydra.sweeper.study=)"
            )
    if [direction.name.lower() for direction in study.directions] != directions:
        found = [direction.name.lower() for direction in study.directions]
        raise ConfigError(f"the study {name!r} has the directions {found}, and this search has {directions}")
    return study


def take_up(study: Study, folder: Path) -> None:
    """Let the trials that a killed search left in this folder be proposed again: their points may be done."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(FOLDER) == str(folder.resolve()):
            storage, number = study._storage, trial._trial_id
            storage.set_trial_user_attr(number, INTERRUPTED, True)
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)


def counted(study: Study) -> int:
    """Return how many trials a study has, without those that were interrupted, and are proposed again."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    return sum(not t.user_attrs.get(INTERRUPTED) and t.state != TrialState.WAITING for t in trials)


def ask(study: Study, space: Mapping[str, BaseDistribution], folder: Path) -> Trial:
    """Return a proposed trial, which belongs to this folder."""
    trial = study.ask(fixed_distributions=dict(space))
    trial.set_user_attr(FOLDER, str(folder.resolve()))
    return trial


def best(study: Study) -> list[FrozenTrial]:
    """Return the best trial, or with several objectives those that no other is better than in all (Pareto)."""
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    return list(study.best_trials)


def write_table(study: Study, folder: Path) -> None:
    """Write ``search.csv``: a trial a row, with its parameters, objectives and run folders."""
    names = study.user_attrs[OBJECTIVES]
    keys = study.user_attrs[KEYS]
    front = {trial.number for trial in best(study)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "best", *keys, *names, "runs"])
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get(INTERRUPTED):
            continue
        values = trial.values or [""] * len(names)
        params = [trial.params.get(key, "") for key in keys]
        runs = " ".join(trial.user_attrs.get(RUNS, []))
        writer.writerow([trial.number, trial.state.name.lower(), trial.number in front, *params, *values, runs])
    write_whole(folder / TABLE, text.getvalue().encode())
