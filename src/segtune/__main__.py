"""`python -m segtune …`, and so `accelerate launch -m segtune train …`."""

from __future__ import annotations

from segtune.cli.main import main

if __name__ == "__main__":
    main()
