"""Where a network looks: Grad-CAM, the places in an image that speak for its class."""

import torch
import torch.nn.functional as F

from fomo.config import UserError
from fomo.networks.classifier import FinalClassifier, Network
from fomo.networks.weights import OFFLINE

CELLS = 4  # a side of the map has, at least; of 64 pixels the last layer leaves 2, too few to tell places apart


def gradcam(classifier: FinalClassifier, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """How much each place of images (batch, 3, side, side) speaks for its image's class (batch): (batch, side, side),
    from 0 to 1, the weighted mean over the networks in eval mode, of the images as they are, whatever the views.

    Grad-CAM (Selvaraju et al., arXiv:1610.02391) of the deepest layer of `CELLS`. If that is not the last one, the mean
    of a gradient over all places mixes them up; so gradient and features are multiplied place by place, which at the
    last layer is the same (HiResCAM; Draelos and Carin, arXiv:2011.08891). Raises `UserError` for a network whose
    layers are no maps.
    """
    parts = zip(classifier.networks, classifier.weights, strict=True)
    maps = torch.stack([weight * _look(network.eval(), images, classes) for network, weight in parts]).sum(0)
    return F.interpolate(maps[:, None], images.shape[-2:], mode="bilinear").squeeze(1)


def _look(network: Network, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The maps of one network (batch, cells, cells)."""
    backbone, images = network.backbone.network, images.detach().requires_grad_()  # else fixed layers have no gradient
    last, layers = backbone.forward_intermediates(images)
    scores = network.judge([backbone.forward_head(last, pre_logits=True)])
    # Where a network is sure, the gradient of a log-probability vanishes, but not of how far it is above the mean.
    score = (scores.gather(1, classes[:, None]) - scores.mean(1, keepdim=True)).sum()
    layer = next((one for one in reversed(layers) if min(one.shape[-2:]) >= CELLS), layers[0])
    gradient = torch.autograd.grad(score, layer, allow_unused=True)[0]
    if gradient is None:  # tokens are handed out as a copy in the form of a map, from which nothing follows
        raise UserError(
            f"where backbone '{network.backbone.name}' looks cannot be shown, for its layers are no maps; a "
            f"convolutional one can be explained, such as resnet18 or {OFFLINE[0]}"
        )
    maps = (gradient * layer).sum(1).relu().detach()
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
