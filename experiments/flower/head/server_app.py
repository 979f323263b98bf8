"""What the SuperLink runs."""

from krossfuse.flower import server_app

app = server_app()
