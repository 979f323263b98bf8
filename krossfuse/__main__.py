"""``python -m krossfuse`` is the command ``krossfuse``."""

from krossfuse.app.command import main as main

if __name__ == "__main__":
    main()
