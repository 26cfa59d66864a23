"""Pictures without labels: which of a folder may be learned from, and the two views of each."""
