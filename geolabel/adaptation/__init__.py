"""Adaptation of the networks to a region, from a person's review."""
