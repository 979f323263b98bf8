"""Records, aggregation with intervals, tables, figures, reports. Knows not how a figure was computed."""
