"""Networks, and the localizers and segmenters built on them."""
