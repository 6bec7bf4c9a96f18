"""Images with labels on disk: what is learned from, and what is made to be learned from."""
