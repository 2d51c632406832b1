"""The data sets: found, verified, split, and stored as pixels; the batches that training sees.

Layout of a data set's folder: `train.csv` and `test.csv` (columns image_file_name, label), `images_train/`,
`images_test/`, and where classes have names `classes.txt`, a name a line.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torchvision.transforms.v2.functional import center_crop, resize
from tqdm.auto import tqdm

from fomo.artifacts import new_array
from fomo.config import DATASETS, ROOT, UserError

RESIZE_RATIO = 256 / 224  # the report's Resize(256), CenterCrop(224), kept at every image size
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises for a damaged file


@dataclass(frozen=True)
class Dataset:
    """A data set on disk: where it lies, its class names, and its train table (file, label)."""

    folder: Path
    classes: list[str]
    train: pd.DataFrame

    def test(self) -> pd.DataFrame:
        """The test table (file, label). Only the evaluation reads it."""
        return _read_split(self.folder, "test", self.classes)

    def fingerprint(self, split: str = "train") -> str:
        """A hash of a split's files (name, size, time), labels and class names: another one means other data."""
        table = self.train if split == "train" else self.test()
        stats = [(self.folder / file).stat() for file in table["file"]]
        stamps = [f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats]
        text = table.assign(stamp=stamps).sort_values("file").to_csv(index=False)
        return hashlib.sha256("\n".join([text, *self.classes]).encode()).hexdigest()[:16]


def load_dataset(name: str) -> Dataset:
    """The data set called `name`, or the one in the folder `name`; unpacked from data/`name`.tgz where needed.

    Raises `UserError` where it is missing, or where a table names a missing file or a label that cannot be.
    """
    if name in DATASETS:
        folder = ROOT / "data" / name
        archive = folder.with_suffix(".tgz")
        if not folder.exists():
            if not archive.exists():
                raise UserError(f"data set '{name}' is not there: put {archive.name} into {archive.parent}")
            unpack(archive, folder)
    else:
        folder = Path(name).expanduser().resolve()
    names = folder / "classes.txt"
    classes = names.read_text(encoding="utf-8").split("\n") if names.exists() else []
    classes = [line.strip() for line in classes if line.strip()]
    train = _read_split(folder, "train", classes)
    classes = classes or [str(label) for label in range(train["label"].max() + 1)]
    counts = np.bincount(train["label"], minlength=len(classes))
    for label in np.flatnonzero(counts < 2):
        raise UserError(
            f"class {label} ('{classes[label]}') has {counts[label]} images in {folder / 'train.csv'}; every class "
            "needs at least 2, one to train on and one to validate on: add images or take the class out"
        )
    if len(classes) < 2:
        raise UserError(f"{folder / 'train.csv'} has the one class '{classes[0]}'; a classifier needs at least 2")
    return Dataset(folder, classes, train)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks `archive` to `folder`, whole or not at all; nothing in it may lie outside or be a link or a device."""
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed run has left
    temporary.mkdir()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()) or member.name.startswith("/"):
                    raise UserError(f"{archive} holds '{member.name}', which is neither a file nor a folder; refused")
                tar.extract(member, temporary, filter="data")
        os.replace(temporary, folder)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); fetch it anew") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_split(folder: Path, split: str, classes: list[str]) -> pd.DataFrame:
    """The table (file, label) of one split, checked; `file` is relative to `folder`."""
    path = folder / f"{split}.csv"
    if not path.exists():
        raise UserError(f"{folder} has no {path.name}; fomo reads the layout that data/README.md describes")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # empty, not a table, not UTF-8
        raise UserError(f"{path} cannot be read as a table ({error})") from error
    missing = {"image_file_name", "label"} - set(table.columns)
    if missing:
        raise UserError(f"{path} lacks the column {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    if table.empty:
        raise UserError(f"{path} names no image")
    files = f"images_{split}/" + table["image_file_name"]
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise UserError(f"{path} names {_some(absent)}, not found in {folder}; add the files or remove their lines")
    wrong = table["label"][~table["label"].str.fullmatch(r"\d{1,6}")]
    if len(wrong):
        raise UserError(
            f"{path} has {_some([repr(label) for label in wrong])} as a label (line {wrong.index[0] + 2} first); "
            "labels are integers from 0, and classes.txt may name them"
        )
    labels = table["label"].astype(np.int64)
    if classes and labels.max() >= len(classes):
        raise UserError(
            f"{path} has the label {labels.max()}, but there are {len(classes)} classes: 0 to {len(classes) - 1}"
        )
    return pd.DataFrame({"file": files, "label": labels})


def _some(items: list[str]) -> str:
    """The first three of `items`, and how many more there are."""
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def split(table: pd.DataFrame, validation_share: float, seed: int) -> pd.DataFrame:
    """`table` sorted by file, with a column `split` (train or validation): stratified, the same for the same seed.

    Each class has at least one image on either side, which scikit-learn's stratified split does not grant to rare
    classes.
    """
    table = table.sort_values("file", ignore_index=True).assign(split="train")
    rng = np.random.default_rng(seed)
    for _, rows in table.groupby("label"):
        count = min(max(1, round(validation_share * len(rows))), len(rows) - 1)
        table.loc[rng.permutation(rows.index)[:count], "split"] = "validation"
    return table


def to_pixels(image: Image.Image, image_size: int, channels: int) -> np.ndarray:
    """Resize and CenterCrop of an image, upright, as uint8 (channels, side, side); channels is 1 (grey) or 3."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert would cut off all that is brighter than 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    image = center_crop(resize(image, [round(image_size * RESIZE_RATIO)], antialias=True), [image_size])
    return np.asarray(image).reshape(image_size, image_size, channels).transpose(2, 0, 1)


def store_pixels(dataset: Dataset, files: pd.Series, path: Path, image_size: int, description: str) -> None:
    """Stores `to_pixels` of `files` as uint8 (images, channels, side, side): 1 channel if all of `dataset` is grey.

    This head of the transforms is the same in every epoch, so it is computed once. Raises `UserError` naming the
    images that cannot be decoded.
    """

    def decode(file: str) -> np.ndarray | str:
        try:
            with Image.open(dataset.folder / file) as image:
                return to_pixels(image, image_size, channels)
        except UNREADABLE as error:
            return f"{file} ({type(error).__name__}: {error})"

    files, damaged = files.tolist(), []
    channels = 1 if all(_is_grey(dataset.folder / file) for file in dataset.train["file"]) else 3
    shape = (len(files), channels, image_size, image_size)
    with new_array(path, shape, np.uint8) as store, ThreadPoolExecutor() as pool:
        with tqdm(total=len(files), desc=description, unit="image", leave=False) as bar:
            for start in range(0, len(files), 256):  # so many at once, so that memory does not grow with the data set
                for row, image in enumerate(pool.map(decode, files[start : start + 256]), start):
                    if isinstance(image, str):
                        damaged.append(image)
                    else:
                        store[row] = image
                    bar.update()
        if damaged:
            raise UserError(
                f"cannot decode {_some(damaged)} in {dataset.folder}; repair them, or remove their lines from the csv"
            )


def _is_grey(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.mode in ("1", "L")
    except UNREADABLE:
        return True  # it is named when it is decoded


def augment(images: torch.Tensor, rotation: float, generator: torch.Generator) -> torch.Tensor:
    """The report's RandomHorizontalFlip and RandomRotation, for a batch (images, channels, side, side) at once.

    Each image has an angle of its own between -`rotation` and `rotation` degrees; corners are filled with black.
    """
    count = len(images)
    angle = torch.deg2rad((2 * torch.rand(count, generator=generator) - 1) * rotation)
    flip = 1 - 2.0 * (torch.rand(count, generator=generator) < 0.5)
    zero = torch.zeros(count)
    rows = [flip * angle.cos(), -angle.sin(), zero, flip * angle.sin(), angle.cos(), zero]
    matrix = torch.stack(rows, dim=1).view(count, 2, 3).to(images.device)
    grid = F.affine_grid(matrix, images.shape, align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class ImageBatches(torch.utils.data.Dataset):
    """Batches of images as the network sees them: (rows of `pixels`) -> (float tensor (batch, 3, side, side), labels).

    With a `generator`, images are augmented; without one, never.
    """

    def __init__(self, pixels, labels, mean, std, *, rotation=0.0, generator=None):
        self.pixels = pixels
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.mean = torch.tensor(mean).view(1, 3, 1, 1)
        self.std = torch.tensor(std).view(1, 3, 1, 1)
        self.rotation = rotation
        self.generator = generator

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(np.array(self.pixels[rows])).float().div_(255)
        if self.generator is not None:
            images = augment(images, self.rotation, self.generator)
        return (images - self.mean) / self.std, self.labels[rows]  # a grey image becomes three equal channels


class FeatureBatches(torch.utils.data.Dataset):
    """Batches of stored features: (rows of `features`) -> (float tensor (batch, features), labels)."""

    def __init__(self, features, labels):
        self.features = features
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(np.array(self.features[rows])), self.labels[rows]


def loader(batches: torch.utils.data.Dataset, batch_size: int, generator: torch.Generator | None = None) -> DataLoader:
    """Yields (x, y): in the stored order, or, with a `generator`, shuffled anew in each epoch."""
    if generator is None:
        return DataLoader(batches, sampler=BatchSampler(SequentialSampler(batches), batch_size, False), batch_size=None)
    single = len(batches) % batch_size == 1  # batch normalisation cannot train on a batch of one image
    sampler = BatchSampler(RandomSampler(batches, generator=generator), batch_size, drop_last=single)
    return DataLoader(batches, sampler=sampler, batch_size=None, generator=generator)
