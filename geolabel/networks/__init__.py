"""Network architectures, in torch alone."""
