"""System: files, memory, devices, signals and progress; the machine, and nothing of medicine.

System knows nothing of images or labels.

From top to bottom: blocks, progress, devices, files, scratch, signals, wording.
"""
