"""Experiment trackers behind one small protocol: Weights & Biases, MLflow, TensorBoard, CSV files, none."""

from krossfuse.results.trackers.artifacts import Artifact as Artifact
from krossfuse.results.trackers.base import Tracker as Tracker
from krossfuse.results.trackers.contents import metric_key as metric_key
from krossfuse.results.trackers.csv_files import CsvTracker as CsvTracker
from krossfuse.results.trackers.mlflow_store import MlflowTracker as MlflowTracker
from krossfuse.results.trackers.none import NoTracker as NoTracker
from krossfuse.results.trackers.tensorboard_events import TensorBoardTracker as TensorBoardTracker
from krossfuse.results.trackers.weights_and_biases import WandbTracker as WandbTracker
