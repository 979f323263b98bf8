"""What a SuperNode runs."""

from krossfuse.flower import client_app

app = client_app()
