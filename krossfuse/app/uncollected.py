"""What the process that others are forked from imports first: nothing that it imports after that is ever garbage.

Python would look through all of it again and again, which takes a sixth of the imports' time. In any other process this
does nothing.
"""

import gc
import os

FORKS = "KROSSFUSE_FORKS"
"""Variable that tells the process that it is the one."""

if FORKS in os.environ:
    gc.disable()
