"""Parts that say where in an image a class is likely."""
