"""What QGIS opens: a project with a scene and its layers, and the plugin that calls geolabel from there."""
