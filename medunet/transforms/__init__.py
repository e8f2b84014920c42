"""Transforms: from a scan to what a network sees, and from its scores back to labels on the scan's grid.

Entry points: `preprocess.ScanView`, `restore.restored`, `postprocess.postprocess`, `augment.Augmentation`.

From top to bottom: augment.augmentation, augment.monai_steps, augment.intensity, augment.moves, restore,
augment.sampling, augment.settings, augment.monai_list, labelling, postprocess, preprocess.
"""
