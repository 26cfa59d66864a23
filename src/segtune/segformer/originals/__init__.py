"""Checkpoints of others read as ours: NVlabs' code, mmsegmentation, LibreYOLO, keras-hub."""

LAYOUTS = ("auto", "keras", "libreyolo", "mmseg", "nvlabs")  # what `segtune convert --from` takes
