"""The web demo of a checkpoint, `segtune demo`: pictures in, masks out, as a page and for programs."""
