"""Instances: objects such as cells, from training targets to numbered objects, tables and outlines.

Entry points: `targets.make_target` and `find.find_objects_of`. Instances know no model and no network.

From top to bottom: find, weightmap, targets, settings, table, rois, watershed.
"""
