"""Image input and output: pictures, arrays, GeoTIFF and video are opened and written here."""
