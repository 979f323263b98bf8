"""Frozen encoders: one small adapter a library behind one protocol. Knows no dataset and no fusion."""
