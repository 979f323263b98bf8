"""Records, run folders, aggregation with intervals, trackers. Knows not how a measurement was computed."""

from krossfuse.results.records import Record as Record
from krossfuse.results.runs import read_run as read_run
from krossfuse.results.runs import read_runs as read_runs
from krossfuse.results.trackers import CsvTracker as CsvTracker
from krossfuse.results.trackers import MlflowTracker as MlflowTracker
from krossfuse.results.trackers import NoTracker as NoTracker
from krossfuse.results.trackers import TensorBoardTracker as TensorBoardTracker
from krossfuse.results.trackers import Tracker as Tracker
from krossfuse.results.trackers import WandbTracker as WandbTracker
from krossfuse.results.writer import RunWriter as RunWriter
