"""The fused encoder as a model that people use: raw images and texts in, one embedding out.

:class:`~krossfuse.model.encoder.FusedEncoder` runs, saves and loads; :mod:`~krossfuse.model.search` finds items by it;
:mod:`~krossfuse.model.open_clip` and :mod:`~krossfuse.model.sentence_transformers` give it the form of other libraries.
"""
