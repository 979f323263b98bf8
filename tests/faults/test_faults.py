"""Every bad input and option ends with the wanted exit status, without a traceback, with the words that a user needs.

A tenth of the cases, some of every room, is the short form that runs with the other tests; the rest is marked
``faults`` and runs by ``make test-faults``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from faults.case import TRACEBACK, Case, Made, Outcome, in_own_process, in_process, missing
from faults.cases import CASES


def parameter(case: Case) -> object:
    marks = [pytest.mark.timeout(case.timeout + 60), *([] if case.short else [pytest.mark.faults])]
    return pytest.param(case, id=f"{case.room}-{case.id}", marks=marks)


PYTHON = ("Error in call to target", "HYDRA_FULL_ERROR", "TypeError(", "object has no attribute", "hydra.cc")
"""What is said by libraries to programmers."""


def assert_says(case: Case, text: str) -> None:
    assert not missing(case.words, text), f"not said: {missing(case.words, text)}; said:\n{text}"
    assert not (misleading := [word for word in (*case.never, *PYTHON) if word in text]), f"{misleading}:\n{text}"


@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_fault(
    case: Case,
    made: Made,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    record_property("faults", 1)
    made.capture = capfd
    folder = tmp_path_factory.mktemp("f") / "here"  # a path that has none of the words
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    if case.files is not None:
        case.files(folder, made)
    if case.call is not None:
        with pytest.raises(case.error) as raised:
            case.call(folder)
        assert_says(case, f"{type(raised.value).__name__}: {raised.value}")
        return
    arguments = [word.replace("{here}", str(folder)) for word in case.run]
    outcome = (
        in_own_process(arguments, stdin=case.stdin, environment=case.environment, timeout=case.timeout)
        if case.process
        else in_process(arguments, capfd)
    )
    everything = f"{outcome.out}\n{outcome.err}"
    assert TRACEBACK not in everything, everything[-6000:]
    assert outcome.status == case.status, f"exit {outcome.status}, wanted {case.status}:\n{everything[-3000:]}"
    assert_says(case, outcome.err if case.status else everything)
    if case.after is not None:
        case.after(folder, Outcome(outcome.status, outcome.out, outcome.err))


def test_the_suite_is_large_enough_and_its_short_form_stands_for_it() -> None:
    assert not [name for name, count in Counter((case.room, case.id) for case in CASES).items() if count > 1]
    short = [case for case in CASES if case.short]
    assert len(CASES) >= 170
    assert len(short) >= 25
    assert {case.room for case in short} == {case.room for case in CASES}
