"""Accuracy of inventories, label maps and networks: tables of figures with simple baselines of the same run."""
