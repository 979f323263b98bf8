"""What Hydra's rules ask to lie in the namespace package ``hydra_plugins``; all of it is in ``krossfuse.app``."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from krossfuse.app.paths import user_config_dirs
from krossfuse.app.sweep import GridSweeper as _GridSweeper


class GridSweeper(_GridSweeper):
    """See :class:`krossfuse.app.sweep.GridSweeper`; Hydra runs only plugins that are defined here."""


class UserConfigPlugin(SearchPathPlugin):
    """Adds the user's folders of configuration behind the package's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them to Hydra's search path."""
        for folder in user_config_dirs():
            search_path.append("krossfuse-user", f"file://{folder}")
