"""What pytest collects of the package itself: docstrings of the room that needs an extra only where that is installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("flwr") else ["krossfuse/flower/*"]
