"""Training: the loop, losses, optimizer, checkpoints, distributed runs."""
