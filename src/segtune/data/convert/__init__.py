"""Writing a data set anew: as a folder, as parquet, as tiles, on the Hub."""
