"""Write layers, rasters and their styles."""
