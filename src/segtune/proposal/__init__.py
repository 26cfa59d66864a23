"""A recipe made from data: what is in it, what follows from that, how long a step takes, and the reasons in words."""
