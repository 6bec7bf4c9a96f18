"""What a person looks at: pages for a review, pictures, and the figures of an inventory."""
