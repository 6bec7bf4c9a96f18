"""Adaptation of the networks to a region, from what a person reviewed there."""
