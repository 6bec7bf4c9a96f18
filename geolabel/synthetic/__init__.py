"""Procedural landslide scenes with truth."""
