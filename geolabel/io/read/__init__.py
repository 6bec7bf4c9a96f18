"""Read scenes, features and whatever else comes from outside."""
