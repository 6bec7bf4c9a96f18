"""Reviewed inventories: comparing, merging, exporting, and sampling for a review."""
