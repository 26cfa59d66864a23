"""Segmentation losses: the terms, and their weighted sum for the training loop."""
