"""Stage 1: all images are read, resized and cropped; those of the train split are looked over, and divided in two."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from fomo.artifacts import Run, Stage
from fomo.config import Config, UserError, some
from fomo.data.batches import ImageBatches, loader
from fomo.data.dataset import Dataset, check_classes, rare_classes, without
from fomo.data.datasets import RECORD
from fomo.data.division import divide, sample, together
from fomo.data.images import store_pixels
from fomo.data.inspection import digests, leaks
from fomo.data.survey import Survey, survey
from fomo.networks.backbones import Backbone
from fomo.stages.common import open_stage, step
from fomo.stages.inputs import dataset_of, forget
from fomo.stages.planning import load_facts
from fomo.storage import discard, read_json, write_json, write_table


@dataclass(frozen=True)
class Preprocessed:
    """Train and validation images: `images` (file, label, split, row in `pixels`), `pixels`, uint8 (images, channels,
    side, side), `left_out` (file, reason), `survey`, how the numbers in files become pixels, and `notes`, what there is
    to say about them."""

    dataset: Dataset
    survey: Survey
    images: pd.DataFrame
    pixels: np.ndarray
    left_out: pd.DataFrame
    notes: list[str]

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pixels, the rows of them, labels) of "train" or "validation"."""
        part = self.images[self.images["split"] == name]
        return self.pixels, part["row"].to_numpy(), part["label"].to_numpy()

    def sample(self, name: str, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `part`, but only about this `share` of each class, at least one image; 1 or more: all of them."""
        part = self.images[self.images["split"] == name]
        chosen = part if share >= 1 else part[sample(part[["file", "label"]], share, seed)]
        return self.pixels, chosen["row"].to_numpy(), chosen["label"].to_numpy()

    def divided(self, share: float, seed: int) -> "Preprocessed":
        """The same images, divided anew; as they are where that would leave a class on one side."""
        images = divide_images(self.images, share, seed)
        return replace(self, images=self.images if len(one_sided(images)) else images)


@dataclass(frozen=True)
class Unseen:
    """Test images: `pixels`, uint8 (images, channels, side, side), the `rows` of those that can be read, and
    `left_out` (file, reason)."""

    pixels: np.ndarray
    rows: np.ndarray
    left_out: pd.DataFrame


@step("1_preprocessing")
def preprocess(run: Run) -> Preprocessed:
    """The images of the train split: read, resized and cropped, looked over, and divided into train and validation.
    Whether those of the test split can be read is seen as well, before anything is trained."""
    dataset, stage = dataset_of(run), open_stage(run, "1_preprocessing")
    if not stage.done:
        images = dataset.train.sort_values("file", ignore_index=True)
        facts = load_facts(run)
        found = Survey(facts.grey, facts.ranges) if facts else survey(dataset)
        unreadable = read_pixels(run, dataset, images["file"], stage.path("pixels.npy"), found)
        seen = digests(dataset)
        leaked = leaks(seen)
        left_out = unreadable
        if run.config.on_leak == "drop":
            left_out = pd.concat([unreadable, leaked[~leaked["file"].isin(unreadable["file"])]])
        images = images.assign(row=range(len(images)))[~images["file"].isin(left_out["file"])]
        rare = list(rare_classes(dataset.classes, images["label"])) if run.config.on_rare == "drop" else []
        dataset, images, left_out = _drop(dataset, images, left_out, rare)
        missing = test_images(run, dataset, found).left_out
        _refuse(run, stage, dataset, pd.concat([unreadable, missing]))
        images, notes = _divided(dataset, images, seen, run.config)
        notes = [*dataset.notes, *found.notes(), *notes, *_notes(dataset, images, unreadable, leaked, seen, run.config)]
        if len(missing):
            notes.append(f"{len(missing)} test images cannot be read, left out: {some(list(missing['file']))}")
        config = run.config
        write_json(run.folder / RECORD, {"name": config.dataset, "columns": config.columns, "on_rare": config.on_rare})
        write_json(stage.path("survey.json"), asdict(found))
        stage.save_table("files", dataset.listed("train"))
        stage.save_table("images", images)
        stage.save_table("left_out", pd.concat([dataset.left_out, left_out, missing]))
        stage.save_table("classes", pd.DataFrame({"number": range(len(dataset.classes)), "class": dataset.classes}))
        stage.save_table("notes", pd.DataFrame({"note": notes}, dtype=str))
        stage.finish()
    notes, classes = stage.table("notes")["note"].tolist(), set(stage.table("classes")["class"])
    dataset = without(dataset, [number for number, one in enumerate(dataset.classes) if one not in classes])
    found = Survey(**read_json(stage.path("survey.json")))
    return Preprocessed(dataset, found, stage.table("images"), stage.array("pixels"), stage.table("left_out"), notes)


def _drop(
    dataset: Dataset, images: pd.DataFrame, left_out: pd.DataFrame, rare: list[str]
) -> tuple[Dataset, pd.DataFrame, pd.DataFrame]:
    """Data set, images and what is left out without the classes that have become too rare."""
    rest = without(dataset, [dataset.classes.index(name) for name in rare])
    numbers = {dataset.classes.index(name): number for number, name in enumerate(rest.classes)}
    kept = images["label"].isin(numbers)
    dropped = images[~kept][["file"]].assign(reason="its class has too few train images")
    images = images[kept].assign(label=images["label"][kept].map(numbers))
    return rest, images, pd.concat([left_out, dropped])


@step("1_test_images")
def test_images(run: Run, dataset: Dataset, found: Survey) -> Unseen:
    """The images of the test split, read, resized and cropped; nobody looks at their labels."""
    files = dataset.test()["file"]
    stage = open_stage(run, "1_test_images", test=dataset.fingerprint("test"))
    if not stage.done:
        left_out = read_pixels(run, dataset, files, stage.path("test.npy"), found)
        if 0 < len(files) == len(left_out):
            stage.path("test.npy").unlink()  # or repaired ones would be refused as another data set
            raise UserError(f"none of the {len(files)} test images of {dataset.name} can be read; repair them")
        stage.save_table("left_out", left_out)
        stage.save_table("files", dataset.listed("test"))
        stage.finish()
    left_out = stage.table("left_out")
    return Unseen(stage.array("test"), np.flatnonzero(~files.isin(left_out["file"])), left_out)


def _divided(
    dataset: Dataset, images: pd.DataFrame, seen: pd.DataFrame, config: Config
) -> tuple[pd.DataFrame, list[str]]:
    """The `images`, each with its `split`, and its `group` if some belong together or are `seen` to have the same
    bytes; and what there is to say about that. Raises `UserError` where a class cannot be in both."""
    check_classes(dataset, images["label"])
    digest = images["file"].map(seen[seen["split"] == "train"].set_index("file")["digest"])
    groups = together(images, digest, config.validation_share, config.seed)
    images = images if groups.equals(images["file"]) else images.assign(group=groups)
    divided, notes = divide_images(images, config.validation_share, config.seed), []
    if "validation" in images and len(lacking := one_sided(divided)):
        named = some([dataset.classes[label] for label in lacking])
        notes.append(f"train and validation are divided anew, for one of those given has no image of {named}")
        divided = divide_images(images.drop(columns="validation"), config.validation_share, config.seed)
    for label in one_sided(divided):
        raise UserError(
            f"all images of class {label} ('{dataset.classes[label]}') in {dataset.name} fall to one side of "
            "the split, for they share groups with others; give the class images of another group, or take it out"
        )
    return divided, notes


def _notes(
    dataset: Dataset,
    images: pd.DataFrame,
    unreadable: pd.DataFrame,
    leaked: pd.DataFrame,
    seen: pd.DataFrame,
    config: Config,
) -> list[str]:
    """What there is to say about the images: those left out, leaks (`leaks` of `seen`), twins, rare classes."""
    notes = []
    if len(unreadable):
        notes.append(f"{len(unreadable)} train images cannot be read, left out: {some(list(unreadable['file']))}")
    if len(leaked):
        kept = "kept, so the test flatters (on_leak='drop' leaves them out)"
        action = "left out of training" if config.on_leak == "drop" else kept
        notes.append(f"{len(leaked)} train images show what a test image shows; they are {action}")
    known = seen[seen["split"] == "train"].set_index("file")["digest"]
    digest = images["file"].map(known).where(lambda digest: digest.notna(), images["file"])
    twins = digest[images["split"] == "validation"].isin(set(digest[images["split"] == "train"])).sum()
    if twins:
        notes.append(f"{twins} validation images are byte-identical to a train image, so validation flatters")
    counts = images["label"].value_counts()
    rare = [dataset.classes[label] for label in counts.index[counts < 1 / config.validation_share]]
    if rare:
        notes.append(f"so few images that one or two of them are the whole validation of: {some(sorted(rare))}")
    return notes


def divide_images(images: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The images with their `split`, train or validation; sorted by it. As it is given (`validation`), or so that
    validation has about a `share` of each class."""
    chosen = images["validation"] if "validation" in images else divide(images, share, seed)
    split = chosen.map({True: "validation", False: "train"})
    return images.assign(split=split).sort_values(["split", "file"], ignore_index=True)


def one_sided(images: pd.DataFrame) -> pd.Index:
    """The labels of the classes all of whose images have the same `split`."""
    sides = images.groupby("label")["split"].nunique()
    return sides.index[sides < 2]


def read_pixels(run: Run, dataset: Dataset, files: pd.Series, path: Path, found: Survey) -> pd.DataFrame:
    """Stores the pixels of `files` (`images.store_pixels`); returns (file, reason) of those that cannot be read."""
    config = run.config
    options = {"description": f"reading {path.stem} images", "crop": config.crop, "fit": config.fit}
    options |= {"channels": found.channels, "ranges": found.ranges}
    return store_pixels(dataset, files, path, config.image_size, **options)


def _refuse(run: Run, stage: Stage, dataset: Dataset, damaged: pd.DataFrame) -> None:
    """Raises `UserError` where images cannot be read (file, reason) and `on_bad` is raise; all of them are then listed
    in unreadable.csv. Nothing is stored of a data set that is refused, so that a repaired one is not."""
    if damaged.empty or run.config.on_bad != "raise":
        return
    stage.path("pixels.npy").unlink()
    discard(run.folder / "1_test_images")
    forget(run)
    listed = run.folder / "unreadable.csv"
    write_table(listed, damaged)
    named = some([f"{row.file} ({row.reason})" for row in damaged.itertuples()])
    raise UserError(
        f"cannot read {named} of {dataset.name} (all of them: {listed}). Repair them, take them out, or leave them "
        "out by on_bad='skip' (ON_BAD=skip)"
    )


def image_loader(
    run: Run, part: tuple, backbone: Backbone, generator: torch.Generator | None = None, *, side: int = 0
) -> DataLoader:
    """Batches of the images of (pixels, rows, labels) as `backbone` sees them; with a `generator`, shuffled, and
    augmented as the run says, `epoch_images` of them.

    `side`, in pixels, that the images are scaled down to; 0: as they are stored.
    """
    config = run.config
    options = {"rotation": config.rotation, "zoom": config.zoom, "flip": config.flip}
    options |= {"side": side, "generator": generator, "device": run.device}
    batches = ImageBatches(*part, backbone.mean, backbone.std, **options)
    return loader(batches, config.batch_size, generator, images=config.epoch_images)
