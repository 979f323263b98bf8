"""Streaming extraction and the feature store. Knows no fusion and no probe."""
