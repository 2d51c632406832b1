"""Images as the fixed stages of a network see them, stored once, so that a study's trials train only what moves."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fomo.artifacts import new_array
from fomo.backbones import Backbone
from fomo.classifier import Classifier
from fomo.config import UserError

BUDGET = 4e9  # bytes on disk of the views of one study; what is read over and over should fit in memory beside the rest
TOLERANCE = 1e-4  # relative; a network that cannot be cut is off by about 1, any other by rounding, if at all


class Moving(nn.Module):
    """What trains of a classifier: what reached its first stage that is not fixed (batch, ...) -> logits (batch,
    classes)."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    @property
    def backbone(self) -> Backbone:
        return self.classifier.backbone

    def forward(self, reached: torch.Tensor) -> torch.Tensor:
        return self.classifier.head(self.classifier.backbone.resume(reached))


def store_views(
    backbone: Backbone,
    parts: dict[str, tuple[DataLoader, int]],
    layers: Sequence[int],
    folder: Path,
    device: torch.device,
) -> None:
    """Stores what reaches each stage of `layers`, of each image and view of it, as float16 (images, views, ...): in
    `folder`, a file for each part and layer (`read_views`).

    `parts` are batches of images in order, and how many views, which are passes through them. Raises `UserError` where
    the files would take more than `BUDGET`, the network cannot be cut at its stages, or a number is too large.
    """
    shapes, size = {}, 0
    for part, (batches, views) in parts.items():
        probe = batches.dataset[list(range(min(2, len(batches.dataset))))][0]
        for layer, reached in _cut(backbone, probe.to(device), layers).items():
            shapes[part, layer] = (len(batches.dataset), views, *reached.shape[1:])
            size += 2 * math.prod(shapes[part, layer])
    if size > BUDGET:
        raise UserError(
            f"the stored views of the trials' images would take {size / 1e9:.3g} GB ({size} bytes), and at most "
            f"{BUDGET / 1e9:.3g} GB are allowed; give fewer trial_views (0: none are stored), a smaller trial_share, "
            "or a smaller trial_size"
        )
    with ExitStack() as files:
        stores = {key: files.enter_context(new_array(_path(folder, *key), shapes[key], np.float16)) for key in shapes}
        for part, (batches, views) in parts.items():
            for view in range(views):
                these = {layer: stores[part, layer][:, view] for layer in layers}
                _fill(backbone, batches, these, device, f"view {view + 1} of {views}, {part}")


def has_views(folder: Path, parts: Sequence[str], layers: Sequence[int]) -> bool:
    """Whether `store_views` has stored all of these in `folder`; if it was killed at its very end, some are missing."""
    return all(_path(folder, part, layer).exists() for part, layer in product(parts, layers))


def read_views(folder: Path, part: str, layer: int) -> np.ndarray:
    """The views of `part` at stage `layer` that `store_views` stored, float16 (images, views, ...), a memory map."""
    return np.load(_path(folder, part, layer), mmap_mode="r")


def remove_views(folder: Path) -> None:
    """Deletes all that `store_views` stored in `folder`."""
    for path in folder.glob("views_*.npy"):
        path.unlink()


def _path(folder: Path, part: str, layer: int) -> Path:
    return folder / f"views_{part}_{layer}.npy"


def _cut(backbone: Backbone, images: torch.Tensor, layers: Sequence[int]) -> dict[int, torch.Tensor]:
    """What reaches each stage of `layers` of a few `images`, once it is sure that nothing else does, and that it
    depends on no weight that is trained."""
    before, reached = backbone.fixed_until, {}
    backbone.eval()
    try:
        whole = backbone(images).detach()
        for layer in layers:
            backbone.fix_until(layer)
            reached |= backbone.reaching(images, [layer])
            with torch.no_grad():
                error = (backbone.resume(reached[layer]) - whole).norm() / whole.norm()
            if not error <= TOLERANCE or reached[layer].requires_grad:
                raise RuntimeError(f"features are off by {float(error):.2g} at stage {layer}")
    except Exception as error:  # whatever a network can do wrong that is begun in its middle
        raise UserError(
            f"backbone '{backbone.name}' cannot be cut at its stages ({type(error).__name__}: {str(error)[:200]}), so "
            "what its fixed stages compute cannot be stored; trial_views=0 trains on the images themselves"
        ) from error
    finally:
        backbone.fix_until(before)
    return reached


def _fill(
    backbone: Backbone, batches: DataLoader, stores: dict[int, np.ndarray], device: torch.device, description: str
) -> None:
    """Fills (images, ...) arrays with what reaches the stages by whose layer they go, of all images of `batches`."""
    backbone.eval()
    start = 0
    with torch.inference_mode():
        for images, _ in tqdm(batches, desc=description, unit="batch", leave=False):
            for layer, reached in backbone.reaching(images.to(device), stores).items():
                half = reached.half()
                if not half.isfinite().all():
                    raise UserError(
                        f"backbone '{backbone.name}' computes numbers up to {reached.abs().max():.3g}, which float16 "
                        "cannot hold, so they cannot be stored; trial_views=0 trains on the images themselves"
                    )
                stores[layer][start : start + len(images)] = half.cpu().numpy()
            start += len(images)
