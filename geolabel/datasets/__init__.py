"""Labelled images on disk: training data and pseudo-labels."""
