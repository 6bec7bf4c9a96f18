"""The world outside: scenes, vectors, rasters, weights files."""
