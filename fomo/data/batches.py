"""The batches that training sees: augmented images, images as they are, stored features."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from fomo.storage import release


def augment(
    images: torch.Tensor,
    rotation: float,
    generator: torch.Generator,
    zoom: float = 0.0,
    flip: str = "horizontal",
) -> torch.Tensor:
    """The report's RandomHorizontalFlip and RandomRotation, for a batch (images, channels, side, side) at once.

    Each image has an angle of its own between -`rotation` and `rotation` degrees; corners are filled with black. `flip`
    says what then happens to half of the images: horizontal (left and right change places), none, or both (top and
    bottom, too, of a half drawn anew). With `zoom`, a square of 1 - `zoom` to 1 of the image's side, anywhere in it, is
    what is kept, and brought to the size of the image again.
    """
    count = len(images)
    angle = torch.deg2rad((2 * torch.rand(count, generator=generator) - 1) * rotation)
    across, down = torch.ones(2, count)
    if flip != "none":
        across = _signs(count, generator)
    if flip == "both":
        down = _signs(count, generator)
    kept, shift = torch.ones(count), torch.zeros(2, count)
    if zoom:
        kept -= zoom * torch.rand(count, generator=generator)
        shift = (2 * torch.rand(2, count, generator=generator) - 1) * (1 - kept)
    cos, sin = kept * angle.cos(), kept * angle.sin()
    rows = [across * cos, -down * sin, shift[0], across * sin, down * cos, shift[1]]
    matrix = torch.stack(rows, dim=1).view(count, 2, 3).to(images.device, non_blocking=True)
    grid = F.affine_grid(matrix, images.shape, align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _signs(count: int, generator: torch.Generator) -> torch.Tensor:
    """-1 (mirrored) or 1 with equal chances (count)."""
    return 1 - 2.0 * (torch.rand(count, generator=generator) < 0.5)


class ImageBatches(torch.utils.data.Dataset):
    """Batches of images as the network sees them: numbers -> (float tensor (batch, 3, side, side), labels (batch)).

    Image i is `pixels`[`rows`[i]], scaled down to `side` pixels unless that is 0. With a `generator`, images are
    augmented by `augment`. All of it is computed on `device`, to which the bytes go, a quarter of what the numbers
    would take.
    """

    def __init__(
        self,
        pixels,
        rows,
        labels,
        mean,
        std,
        *,
        rotation=0.0,
        zoom=0.0,
        side=0,
        flip="horizontal",
        generator=None,
        device="cpu",
    ):
        self.pixels = pixels
        self.rows = np.asarray(rows)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self.rotation = rotation
        self.zoom = zoom
        self.side = side
        self.flip = flip
        self.generator = generator
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(np.array(self.pixels[self.rows[numbers]]))
        release(self.pixels)
        if self.device.type == "cuda":  # pinned memory is copied while the GPU computes
            images = images.pin_memory().to(self.device, non_blocking=True)
        images = images.float().div_(255)
        if 0 < self.side < images.shape[-1]:
            images = F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        if self.generator is not None:
            images = augment(images, self.rotation, self.generator, self.zoom, self.flip)
        return (images - self.mean).div_(self.std), self.labels[numbers]  # a grey image becomes three equal channels


class FeatureBatches(torch.utils.data.Dataset):
    """Batches of stored features: numbers -> (float tensor (batch, features), labels (batch))."""

    def __init__(self, features, labels):
        self.features = features
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(np.array(self.features[numbers])), self.labels[numbers]


def loader(
    batches: torch.utils.data.Dataset, batch_size: int, generator: torch.Generator | None = None, *, images: int = 0
) -> DataLoader:
    """Yields (x, y): in the stored order, or, with a `generator`, shuffled anew in each epoch, which has so many
    `images`, or all if that is 0."""
    on_gpu = isinstance(batches, ImageBatches) and batches.device.type == "cuda"
    options = {"batch_size": None, "pin_memory": torch.cuda.is_available() and not on_gpu}
    if generator is None:
        return DataLoader(batches, sampler=BatchSampler(SequentialSampler(batches), batch_size, False), **options)
    count = min(images or len(batches), len(batches))
    single = count % batch_size == 1  # batch normalisation cannot train on a batch of one image
    drawn = RandomSampler(batches, num_samples=count, generator=generator)
    sampler = BatchSampler(drawn, batch_size, drop_last=single)
    return DataLoader(batches, sampler=sampler, generator=generator, **options)
