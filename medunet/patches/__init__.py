"""Patches: training patches from cases, prepared once and cached.

Entry points: `prepare.prepare_cases` and `loader.make_loader`. Patches know no network and no loss.

From top to bottom: prepare, steps, cache, loader, dataset.
"""
