"""The engine: executors, tasks, records and run folders, whatever a run is about."""
