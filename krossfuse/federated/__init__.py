"""Federated training of heads and small models: partitions, clients as one batch, server, accounts."""

from krossfuse.federated.budget import with_budget
from krossfuse.federated.federation import Federation, Result, Settings
from krossfuse.federated.local import LocalTraining
from krossfuse.federated.models import MLP, FlatModel, LinearHead, ModuleModel, SmallCNN, UnitHead
from krossfuse.federated.participation import ClientSampling, Dropouts, Transport
from krossfuse.federated.partition import Partition, partition
from krossfuse.federated.protection import Protection, RoundAccount
from krossfuse.federated.server import SERVERS, ServerOptimiser, make_server

__all__ = [
    "MLP",
    "SERVERS",
    "ClientSampling",
    "Dropouts",
    "Federation",
    "FlatModel",
    "LinearHead",
    "LocalTraining",
    "ModuleModel",
    "Partition",
    "Protection",
    "Result",
    "RoundAccount",
    "ServerOptimiser",
    "Settings",
    "SmallCNN",
    "Transport",
    "UnitHead",
    "make_server",
    "partition",
    "with_budget",
]
