"""How good inventories, label maps and networks are: figures in tables, beside simple baselines of the same run."""
