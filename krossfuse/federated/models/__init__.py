"""Models as one flat vector of parameters."""

from krossfuse.federated.models.base import FlatModel
from krossfuse.federated.models.mlp import MLP, LinearHead, UnitHead
from krossfuse.federated.models.module import ModuleModel, SmallCNN

__all__ = ["MLP", "FlatModel", "LinearHead", "ModuleModel", "SmallCNN", "UnitHead"]
