"""External networks: those of MONAI and segmentation-models-pytorch behind the interface of our own."""
