"""Distances to surfaces, for losses that weigh errors by their distance to the true surface.

scipy computes them on the CPU, patch by patch, as MONAI does without cuCIM.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def surface_distances(masks: Tensor, known: Tensor, signed: bool) -> Tensor:
    """The distance of each voxel to the nearest voxel on the other side of a surface, in voxels.

    Unknown voxels take the side of their nearest known voxel, so that no surface appears at their border.

    Args:
        masks: ``(batch, *spatial)`` bool.
        known: of the same shape.
        signed: inside the mask, distances are counted from the outermost voxels on (0, 1, …) and negative, as in
            Kervadec et al. 2019.

    Returns:
        ``(batch, *spatial)`` float32; 0 for a mask that is empty or full, which has no surface.
    """
    pairs = zip(masks.cpu().numpy(), known.cpu().numpy(), strict=True)
    found = [_distances(_continued(mask, seen), signed) for mask, seen in pairs]
    return torch.from_numpy(np.stack(found)).to(masks.device)


def _distances(mask: NDArray[np.bool_], signed: bool) -> NDArray[np.float32]:
    if mask.all() or not mask.any():
        return np.zeros(mask.shape, np.float32)
    inside, outside = _edt(mask), _edt(~mask)
    return outside - np.maximum(inside - 1, 0) if signed else inside + outside


def _edt(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    distances: NDArray[np.float64] = distance_transform_edt(mask)
    return distances.astype(np.float32)


def _continued(mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with unknown voxels on the side of their nearest known one."""
    if known.all() or not known.any():
        return mask & known
    nearest: Any = distance_transform_edt(~known, return_distances=False, return_indices=True)
    found: NDArray[np.bool_] = mask[tuple(nearest)]
    return found
