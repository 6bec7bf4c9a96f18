"""What a person's review of an inventory is used for: what to look at next, what it says of the rest, and comparing."""
