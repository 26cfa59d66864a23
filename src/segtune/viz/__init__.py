"""Visualization: overlays, charts, image layers, HTML frame, terminal tables, numbers."""
