"""The feature data set: what a fixed backbone computes of each image, stored once and read as a memory map."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from fomo.artifacts import new_array, release
from fomo.backbones import Backbone


def store_features(backbone: Backbone, batches: DataLoader, path: Path, device: torch.device, description: str) -> None:
    """Stores the pooled features of all images of `batches`, in order, as float32 (images, features) in `path`."""
    backbone.eval()
    shape = (len(batches.dataset), backbone.num_features)
    with new_array(path, shape, np.float32) as store, torch.inference_mode():
        start = 0
        for images, _ in tqdm(batches, desc=description, unit="batch", leave=False):
            store[start : start + len(images)] = backbone(images.to(device)).cpu().numpy()
            start += len(images)
            release(store)
