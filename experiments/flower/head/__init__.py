"""The app that ``flwr run experiments/flower`` starts."""
