"""Many pictures, many machines: work that is divided among processes, or handed to a Ray cluster."""
