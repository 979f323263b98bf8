"""Records, aggregation with intervals, tables, figures, trackers, reports. Knows not how a figure was computed."""

from krossfuse.results.records import Record as Record
from krossfuse.results.records import RunWriter as RunWriter
from krossfuse.results.records import read_run as read_run
from krossfuse.results.records import read_runs as read_runs
from krossfuse.results.trackers import CsvTracker as CsvTracker
from krossfuse.results.trackers import NoTracker as NoTracker
from krossfuse.results.trackers import Tracker as Tracker
from krossfuse.results.trackers import WandbTracker as WandbTracker
