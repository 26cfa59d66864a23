"""Formats that describe masks by shapes, and drawing them."""
