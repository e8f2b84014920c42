"""Inference: whole scans through a network, exactly or by blended windows, in bounded memory.

Entry points: `streaming.streamer.Streamer`, `overlap_tile.tile_rows`, `sliding_window.blended_rows`.
Inference knows geometry and torch, but no files, labels or models.

From top to bottom: streaming.streamer, overlap_tile, sliding_window, streaming.fused_layers, streaming.plan,
symmetries, ensemble, stitching, streaming.buffer_sizes, execution, method, streaming.ring_buffers,
streaming.row_schedule.
"""
