"""Kernels, sketches and fusion methods as pure tensor code, and the LightningModule on top."""
