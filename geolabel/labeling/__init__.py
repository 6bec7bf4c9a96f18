"""From chips to pseudo-labels, and from inventories to chips."""
