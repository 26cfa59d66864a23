"""The label contract: mask values, training ids, names and colors, decided once."""
