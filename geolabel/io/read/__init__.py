"""Read scenes, features and other inputs."""
