"""Probes: linear, few-shot, zero-shot, retrieval, k-NN, clustering. Features in, named figures out."""
