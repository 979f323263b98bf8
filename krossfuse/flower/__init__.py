"""Federations on more than one machine: any Flower strategy becomes a CEPAM one (docs/cepam.md, section 7).

A client mod sends every update through a mechanism; a strategy wrapper gives each message a secret of its own, decodes,
adds up, keeps the account, and hands the wrapped strategy the noisy mean. The only room that imports Flower.
"""

import importlib.util

from krossfuse.core.errors import ConfigError

if importlib.util.find_spec("flwr") is None:
    raise ConfigError(
        "krossfuse.flower needs the package flwr, which is not installed: pip install 'krossfuse[flower]'"
    )

from krossfuse.flower.app import client_app, server_app
from krossfuse.flower.grid import LocalGrid
from krossfuse.flower.mod import CLIENT_QUERY, answer_client, cepam_mod
from krossfuse.flower.strategy import CepamStrategy

__all__ = [
    "CLIENT_QUERY",
    "CepamStrategy",
    "LocalGrid",
    "answer_client",
    "cepam_mod",
    "client_app",
    "server_app",
]
