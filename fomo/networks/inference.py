"""What a network that is not trained any more computes of all images: logits in memory, features on disk."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from fomo.networks.backbones import Backbone
from fomo.progress import Bar
from fomo.storage import new_array, release


def predict(model: nn.Module, batches: DataLoader, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits (..., images, classes), labels (images)) over `batches`, in eval mode, on the CPU."""
    model.eval()
    with torch.inference_mode():
        outputs = [(model(inputs.to(device)).cpu(), labels) for inputs, labels in batches]
    logits, labels = zip(*outputs, strict=True)
    return torch.cat(logits, dim=-2), torch.cat(labels)


def store_features(backbone: Backbone, batches: DataLoader, path: Path, device: torch.device, description: str) -> None:
    """Stores the pooled features of all images of `batches`, in order, as float32 (images, features) in `path`."""
    backbone.eval()
    shape = (len(batches.dataset), backbone.num_features)
    with new_array(path, shape, np.float32) as store, torch.inference_mode():
        start = 0
        for images, _ in Bar(batches, desc=description, unit="batch", leave=False):
            store[start : start + len(images)] = backbone(images.to(device)).cpu().numpy()
            start += len(images)
            release(store)
