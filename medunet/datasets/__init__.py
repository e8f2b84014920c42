"""Data sets: cases, their files, labels, regions, annotation and splits.

Entry points: `catalogue.read_data_set` and `loading.load_image`. Data sets know no network and no training.

From top to bottom: loading, splits, catalogue, declaration, annotation, labels, regions, voxel_size.
"""
