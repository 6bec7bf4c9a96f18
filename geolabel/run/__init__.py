"""The run: plan, passes, execution, and the verbs of the package."""
