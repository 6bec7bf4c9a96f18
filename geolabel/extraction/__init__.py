"""From scenes to landslide polygons: plan, passes, vectorize, outputs."""
