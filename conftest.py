"""What pytest collects of the package: the room that needs the extra flower only where that is installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("flwr") else ["krossfuse/flower/*"]
