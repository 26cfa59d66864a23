"""Active learning: which images are worth labelling next, and their predictions as a start for annotation tools."""
