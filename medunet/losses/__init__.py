"""Losses: terms on logits and class indices, with voxels that are ignored.

Entry point: `build.make_loss`. Losses know no network and no training.

From top to bottom: build, foreign, terms, targets.
"""
