"""Evaluation metrics: counts of pixels, scores, bootstrap intervals, calibration, label issues."""
