"""Inference: predict images and files with a sliding window and test-time augmentation, evaluate a model."""
