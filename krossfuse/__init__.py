"""KrossFuse: fuse embeddings with the Kronecker product, probe them, and trust the numbers.

The rooms of the house, each of which knows only those before it::

    data -> encoders -> features -> fusion -> probes -> results
"""

__version__ = "0.1.0"
