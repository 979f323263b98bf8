"""The counts at the end of the fault suite."""

from __future__ import annotations

import pytest
from faults.case import Made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many faults were tried and passed, and how many processes were killed.

    A test says so itself with ``record_property("faults", 1)``, and with ``record_property("kills", number)``.
    """
    tried = passed = kills = 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            if report.when == "call":
                said = dict(report.user_properties)
                tried += said.get("faults", 0)
                passed += said.get("faults", 0) * (outcome == "passed")
                kills += said.get("kills", 0) * (outcome == "passed")
    if tried:
        terminalreporter.write_sep("=", f"faults: {tried} tried, {passed} as wanted; SIGKILLs survived: {kills}")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))
