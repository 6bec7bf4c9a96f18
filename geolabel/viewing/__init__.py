"""Pages and pictures for people: the page of a review, previews, backdrops."""
