"""Learning: one training step after another, in torch alone.

Entry point: `loop.run_epoch`. Learning knows no config, no run folder and no scan; these belong to training.

From top to bottom: checkpoint, loop, distributed, monitor, optimisers, averaging, schedules, synced_norm, thin_maps.
"""
