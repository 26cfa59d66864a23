"""Several trainings that answer one question: cross-validation, soups of weights, searches for settings."""
