"""Objectives and training loops; no raster library."""
