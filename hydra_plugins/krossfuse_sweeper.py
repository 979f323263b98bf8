"""What Hydra's rules ask to lie in the namespace package ``hydra_plugins``; all of it is in ``krossfuse.app``.

Hydra keeps its own sweeper in a private module, which it executes anew whenever it looks for plugins: this file, which
is executed with it, is the only one that imports it.
"""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from krossfuse.app.paths import user_config_dirs
from krossfuse.app.search_sweep import SearchSweep
from krossfuse.app.sweep import GridSweep


class GridSweeper(GridSweep, BasicSweeper):
    """See :class:`krossfuse.app.sweep.GridSweep`."""


class SearchSweeper(SearchSweep, BasicSweeper):
    """See :class:`krossfuse.app.search_sweep.SearchSweep`."""


class UserConfigPlugin(SearchPathPlugin):
    """Adds the user's folders of configuration behind the package's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them to Hydra's search path."""
        for folder in user_config_dirs():
            search_path.append("krossfuse-user", f"file://{folder}")
