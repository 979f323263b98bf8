"""Experiment trackers behind one small protocol: Weights & Biases, CSV files, none."""

from krossfuse.results.trackers.base import Tracker as Tracker
from krossfuse.results.trackers.base import metric_key as metric_key
from krossfuse.results.trackers.csv_files import CsvTracker as CsvTracker
from krossfuse.results.trackers.none import NoTracker as NoTracker
from krossfuse.results.trackers.weights_and_biases import WandbTracker as WandbTracker
