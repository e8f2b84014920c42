"""Networks: the U-Net, its settings, sizes, cost and memory, and the networks of other libraries.

Entry point: `build.build_network`. Networks return logits; they know no loss, training or inference.

From top to bottom: build, external.adapter, meta_memory, presets, cost, external.named,
external.transunet, external.settings, memory, unet, settings, blocks.
"""
