"""OME-Zarr: folders of chunks with several resolutions, NGFF 0.1 to 0.5."""
