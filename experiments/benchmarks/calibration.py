"""Do intervals and verdicts hold what they say? ``python -m experiments.benchmarks.calibration [--fast] [--out FILE]``.

Two methods that are equally good are simulated, scored on the same items, and handed to the functions that the tables
use: ``results.inference.interval_of_mean`` and ``results.significance.compare``. Counted are the 95 % intervals that
cover the truth, and the verdicts ("better" or "worse") on differences that are not there. Scores are hits and misses,

    y[s, i] = 1  where  c + √.65·u[i] + √.1·v[i] + √.25·e[s, i] + λ·a[s] > 0,

all effects standard normal: u, how hard an item is, is shared by the methods; v, what an item is to one method, and e,
what chance is within one run, are not; a is the seed's. λ gives the accuracy the wanted spread over seeds, and c its
mean, Φ(c/√(1 + λ²)), exactly. Compared are

* ``random``: two random methods, each with seeds of its own;
* ``fixed``: a random method with a deterministic one;
* ``mean``: the interval of one random method;

for 2, 3, 5 and 10 seeds, and for one run of deterministic methods (``seeds`` 1, without spread).

The target is 93 to 97 % coverage and 3 to 7 % false verdicts. ``outside`` lists where it is missed, with its reason:

* ``discrete``: there are few items, and so few wrong (or, of two methods, so few on which they differ) that the
  attainable levels are far apart: with m discordant items a verdict needs m of one sign, and of 5 or fewer even that
  is likelier than 5 % by chance, so there is hardly ever a verdict, rightly or wrongly;
* ``two seeds each``: the spread of each method is known from one degree of freedom, and nothing says that the two are
  alike. An interval that covers 95 % whichever of the two varies must cover more where both do;
* ``skewed``: the spread over seeds is more than half of what an accuracy can rise, so seeds' accuracies are far from
  normal (most near 1, some far below), and t intervals of a few of them cover some points less;
* ``unexplained`` is a fault, and the exit status is 1.

Trials are fewer for more items; the standard error of a proportion of 5 % is .4 % in 3,000 and .9 % in 600.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from experiments.benchmarks.common import write_json
from krossfuse.results.inference import Scores, interval_of_mean
from krossfuse.results.significance import compare

SEEDS = (2, 3, 5, 10)
ITEMS = (50, 258, 2465, 20_000)
SPREADS = (0.0, 0.005, 0.02)
ACCURACIES = (0.5, 0.9, 0.97)
SHARED, OWN, CHANCE = 0.65, 0.10, 0.25
KINDS = ("random", "fixed", "mean")
COVERAGE, FALSE = (93.0, 97.0), (3.0, 7.0)


@dataclass(frozen=True)
class Setting:
    """What is simulated."""

    kind: str
    seeds: int
    items: int
    spread: float
    accuracy: float


@dataclass(frozen=True)
class Outcome:
    """What came out, in percent: intervals that cover, and verdicts without a difference (of ``mean``: none)."""

    setting: Setting
    trials: int
    coverage: float
    false_verdicts: float | None

    @property
    def error(self) -> float:
        """Standard error of the coverage, in points."""
        return 100 * float(np.sqrt(0.05 * 0.95 / self.trials))


class Simulation:
    """Draws scores of methods of one accuracy.

    Args:
        setting: which.
        seed: of the draws.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting = setting
        self.generator = np.random.default_rng([seed, setting.seeds, setting.items, int(1000 * setting.spread)])
        quantile = float(stats.norm.ppf(setting.accuracy))
        self.by_seed = setting.spread / float(stats.norm.pdf(quantile))
        self.threshold = quantile
        self.truth = float(stats.norm.cdf(quantile / np.sqrt(1 + self.by_seed**2)))

    def items(self) -> np.ndarray:
        """Draw how hard the items are."""
        return np.sqrt(SHARED) * self.generator.standard_normal(self.setting.items, dtype=np.float32)

    def scores(self, items: np.ndarray, seeds: int, *, deterministic: bool = False) -> Scores:
        """Draw a method's scores."""
        n = len(items)
        own = np.sqrt(OWN) * self.generator.standard_normal(n, dtype=np.float32)
        chance = np.sqrt(CHANCE) * self.generator.standard_normal((seeds, n), dtype=np.float32)
        # A deterministic method's accuracy is that of the mean seed.
        shift = self.by_seed * self.generator.standard_normal((seeds, 1)) if not deterministic else 0.0
        threshold = float(stats.norm.ppf(self.truth)) if deterministic else self.threshold
        hits = threshold + items + own + chance + shift > 0
        return Scores(hits[:, None, :].astype(np.float64), deterministic)


def simulate(setting: Setting, trials: int, seed: int = 0) -> Outcome:
    """Return how often the interval covers the truth, and how often a difference is announced."""
    simulation = Simulation(setting, seed)
    covered = false = 0
    alone = setting.seeds == 1
    for _ in range(trials):
        items = simulation.items()
        one = simulation.scores(items, setting.seeds, deterministic=alone)
        if setting.kind == "mean":
            low, high, _ = interval_of_mean(one)
            covered += low <= simulation.truth <= high
            continue
        if setting.kind == "random":
            other = simulation.scores(items, setting.seeds, deterministic=alone)
        else:
            other = simulation.scores(items, 1, deterministic=True)
        comparison = compare(one, other)
        covered += comparison.low <= 0 <= comparison.high
        false += comparison.verdict != "no difference shown"
    return Outcome(setting, trials, 100 * covered / trials, None if setting.kind == "mean" else 100 * false / trials)


def reason(outcome: Outcome) -> str:
    """Return why a target is missed; empty where it is met, within three standard errors."""
    slack = 3 * outcome.error
    low, high = COVERAGE[0] - slack, COVERAGE[1] + slack
    kept = low <= outcome.coverage <= high
    if outcome.false_verdicts is not None:
        kept = kept and FALSE[0] - slack <= outcome.false_verdicts <= FALSE[1] + slack
    if kept:
        return ""
    setting = outcome.setting
    skewed = setting.spread > (1 - setting.accuracy) / 2
    if outcome.coverage < low or (outcome.false_verdicts or 0.0) > FALSE[1] + slack:
        return "skewed" if skewed and outcome.coverage > 88 else "unexplained"
    reasons = []  # of intervals that are too wide
    if setting.items * (1 - setting.accuracy) < 10:
        reasons.append("discrete")
    if setting.kind == "random" and setting.seeds == 2:
        reasons.append("two seeds each")
    return ", ".join(reasons) or "unexplained"


def settings(fast: bool, accuracies: Sequence[float] = ACCURACIES, most: int = 3000) -> Iterator[tuple[Setting, int]]:
    """Yield what is simulated, and the number of trials, at most ``most``."""
    for items in ITEMS[:2] if fast else ITEMS:
        trials = min(most, 600 if fast else {50: 3000, 258: 3000, 2465: 1500, 20_000: 600}[items])
        for kind in KINDS:
            for accuracy in ACCURACIES[1:2] if fast else accuracies:
                for seeds in (2, 3, 5) if fast else (1, *SEEDS):
                    if seeds == 1 and kind == "fixed":
                        continue
                    for spread in SPREADS[::2] if fast else SPREADS if seeds > 1 else (0.0,):
                        yield Setting(kind, seeds, items, spread, accuracy), trials


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as text, one line a setting."""
    lines = [f"{'kind':8}{'seeds':>6}{'items':>8}{'spread':>8}{'accuracy':>10}{'coverage':>10}{'false':>8}  outside"]
    for outcome in outcomes:
        s = outcome.setting
        false = "–" if outcome.false_verdicts is None else f"{outcome.false_verdicts:.1f}"
        lines.append(
            f"{s.kind:8}{s.seeds:6}{s.items:8}{s.spread:8.3f}{s.accuracy:10.2f}{outcome.coverage:10.1f}{false:>8}"
            f"  {reason(outcome)}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Coverage of the tables' intervals, and verdicts without a difference")
    parser.add_argument("--fast", action="store_true", help="few settings and trials, for the tests")
    parser.add_argument("--out", type=Path, help="JSON file for the outcomes")
    parser.add_argument("--accuracies", type=float, nargs="+", default=ACCURACIES)
    parser.add_argument("--trials", type=int, default=3000, help="at most, of a setting")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    wanted = settings(arguments.fast, arguments.accuracies, arguments.trials)
    outcomes = [simulate(setting, trials, arguments.seed) for setting, trials in wanted]
    print(table(outcomes))
    missed = [outcome for outcome in outcomes if reason(outcome)]
    faults = [outcome for outcome in missed if reason(outcome) == "unexplained"]
    print(f"{len(outcomes)} settings, {len(missed)} outside the target, {len(faults)} of them unexplained")
    result = {
        "target": {"coverage": COVERAGE, "false_verdicts": FALSE},
        "outcomes": [
            asdict(outcome.setting)
            | {"trials": outcome.trials, "coverage": outcome.coverage, "false_verdicts": outcome.false_verdicts}
            | {"outside": reason(outcome)}
            for outcome in outcomes
        ],
    }
    if arguments.out:
        write_json(result, arguments.out)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
