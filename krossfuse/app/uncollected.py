"""What the process that others are forked from imports first: nothing that it imports after that is ever garbage.

Python would look through all of it again and again, which takes a sixth of the imports' time.
"""

import gc

gc.disable()
