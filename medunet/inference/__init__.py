"""Inference: whole scans through a network, exactly or by blended windows, in bounded memory.

Entry points: `any_network.stream`, `streaming.streamer.Streamer`, `overlap_tile.tile_rows`,
`sliding_window.blended_rows`. Inference knows geometry and torch, but no files, labels or models.

From top to bottom: any_network, streaming.streamer, overlap_tile, sliding_window, streaming.trace, streaming.plan,
symmetries, ensemble, stitching, streaming.operators, streaming.schedule, execution, method, streaming.graph,
streaming.rules, streaming.ring_buffers.
"""
