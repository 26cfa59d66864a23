"""What a step learns from besides its labels: a larger network, and its own averaged weights on unlabelled pictures."""
