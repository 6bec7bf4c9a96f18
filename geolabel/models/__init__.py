"""Networks, and the localizers and segmenters made of them."""
