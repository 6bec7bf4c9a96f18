"""The engine: executors, tasks, records and run folders, independent of what a run computes."""
