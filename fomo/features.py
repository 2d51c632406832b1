"""The feature data set: what a fixed backbone computes of each image, stored once and read as a memory map."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from fomo.artifacts import atomic
from fomo.backbones import Backbone


def store_features(backbone: Backbone, batches: DataLoader, path: Path, device: torch.device, description: str) -> None:
    """Stores the pooled features of all images of `batches`, in order, as float32 (images, features) in `path`."""
    backbone.eval()
    shape = (len(batches.dataset), backbone.num_features)
    with atomic(path) as temporary, torch.inference_mode():
        store = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for images, _ in tqdm(batches, desc=description, unit="batch", leave=False):
            store[start : start + len(images)] = backbone(images.to(device)).cpu().numpy()
            start += len(images)
        store.flush()
