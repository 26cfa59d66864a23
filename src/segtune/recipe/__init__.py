"""Recipes: one YAML file that determines one fine-tuning run."""
