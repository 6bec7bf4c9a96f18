"""The engine: executors, tasks, records, run folders. It knows no landslide."""
