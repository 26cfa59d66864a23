"""Pretraining of the encoder on pictures without labels: masked image modelling."""
