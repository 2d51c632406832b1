"""How unlike the images that a network has learned from an image is."""

import torch
import torch.nn.functional as F
from torch import nn


class Unlike(nn.Module):
    """Features (batch, features) -> how unlike the validation images these are (batch): the share of those that are
    less so. Of images like them, one in a hundred is above 0.99.

    What is ranked among the sorted `levels` of validation images is which share of a direction's distance (squared)
    from their `mean` lies outside the `axes` (axes, features) along which they differ most: the residual of ViM (Wang
    et al., arXiv:2203.10807), of features of length 1 and relative to the whole.
    """

    def __init__(self, mean: torch.Tensor, axes: torch.Tensor, levels: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes)
        self.register_buffer("levels", levels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self.levels, outside(F.normalize(features), self.mean, self.axes)) / len(self.levels)


def outside(directions: torch.Tensor, mean: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """The share (batch) of the squared distance of directions (batch, features) from `mean` that is not along axes."""
    distances = directions - mean
    return 1 - (distances @ axes.T).square().sum(1) / distances.square().sum(1).clamp_min(1e-12)
