"""Formats: reading and writing scans and label maps, one module per family of formats.

Entry points: `dispatch.read_volume` and `dispatch.write_volume`. Formats know no data set.

From top to bottom: results, dispatch, omezarr.read_write, stack, tiff, itk, nifti, omezarr.chunks,
omezarr.ngff, picture, tiff_axes, dicom, omezarr.nodes, pixel_size, voxels.
"""
