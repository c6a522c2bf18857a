"""Pseudo-label Guided Contrastive Learning (PLGCL) for nnU-Net v2."""

__version__ = "0.3.0.dev0"
