"""Data set formats: one reader for each, and detection of the format."""
