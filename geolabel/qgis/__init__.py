"""QGIS: a project with a scene and its layers, and the plugin that calls geolabel."""
