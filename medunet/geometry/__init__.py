"""Geometry: boxes, grids, tiles and the sizes of a U-Net, as plain numbers.

Geometry knows numpy alone: neither torch nor files.

From top to bottom: tiles, grids, shapes, boxes.
"""
