"""The console script: ``krossfuse`` runs or sweeps a configuration; ``report``, ``store``, ``diagnose`` do the rest."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "report": "krossfuse.report.page",
    "store": "krossfuse.features.cli",
    "diagnose": "krossfuse.fusion.diagnose",
}


def main() -> None:
    """Dispatch to a sub-command, or to the Hydra application."""
    from krossfuse.app import friendly, hydra_main
    from krossfuse.core.errors import ConfigError, did_you_mean

    arguments = sys.argv[1:]
    with friendly():
        if arguments and arguments[0] in COMMANDS:
            sys.exit(import_module(COMMANDS[arguments[0]]).main(arguments[1:]))
        if arguments and arguments[0].isalpha():
            raise ConfigError(
                f"no command {arguments[0]!r}{did_you_mean(arguments[0], COMMANDS)}; the commands are "
                f"{', '.join(COMMANDS)}, and everything else is key=value"
            )
        hydra_main()


if __name__ == "__main__":
    main()
