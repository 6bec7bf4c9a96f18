"""Input and output: scenes, vectors, rasters, records of runs."""
