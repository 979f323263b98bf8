"""What Hydra's rules ask to lie in the namespace package ``hydra_plugins``; all of it is in ``krossfuse.app``.

Hydra keeps its own sweeper in a private module, which it executes anew whenever it looks for plugins: this file, which
is executed with it, is the only one that imports it.
"""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from krossfuse.app.machine import MachineLaunch
from krossfuse.app.pairs import compose_pair, encoder_files, is_composed
from krossfuse.app.paths import user_config_dirs
from krossfuse.app.search_sweep import SearchSweep
from krossfuse.app.sweep import GridSweep


class GridSweeper(GridSweep, BasicSweeper):
    """See :class:`krossfuse.app.sweep.GridSweep`."""


class SearchSweeper(SearchSweep, BasicSweeper):
    """See :class:`krossfuse.app.search_sweep.SearchSweep`."""


class MachineLauncher(MachineLaunch, Launcher):
    """See :class:`krossfuse.app.machine.MachineLaunch`."""


class UserConfigPlugin(SearchPathPlugin):
    """Adds the user's folders of configuration behind the package's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them to Hydra's search path, and the pairs that are composed by name."""
        for folder in user_config_dirs():
            search_path.append("krossfuse-user", f"file://{folder}")
        search_path.append("krossfuse-pairs", f"{PairSource.scheme()}://")


class PairSource(ConfigSource):
    """Options of group ``pair`` that no file has; see :mod:`krossfuse.app.pairs`."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme of its place in the search path."""
        return "krossfuse-pairs"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the configuration of a composed pair."""
        config = OmegaConf.create(compose_pair(_option(config_path)))
        return ConfigResult(self.scheme(), f"{self.scheme()}://{config_path}", config, {"package": None})

    def available(self) -> bool:
        """Return that it is always there."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Return that it has no groups of its own."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Return whether a pair is composed."""
        option = _option(config_path)
        return bool(option) and is_composed(option)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the encoders as options of group ``pair``: each is one without experts."""
        wanted = config_path.strip("/") == "pair" and results_filter in (None, ObjectType.CONFIG)
        return sorted(encoder_files()) if wanted else []


def _option(config_path: str) -> str:
    """Return the option of group ``pair``, or an empty text."""
    group, _, option = config_path.strip("/").removesuffix(".yaml").partition("/")
    return option if group == "pair" else ""
