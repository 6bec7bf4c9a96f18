"""Inventories that a person reviewed, and what changed from one to another."""
