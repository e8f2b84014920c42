"""Conversion: data sets of other forms become medunet's, and label maps become colour masks.

The story is `medunet.convert`. Conversion knows no torch and nothing of other stories.

From top to bottom: layout_choice, recolour, messages, write, meaning, structures, rules, structure_folders,
channel_folders, colour_tables, masks, colours, layouts.
"""
