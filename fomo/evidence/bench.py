"""What `make bench` times in one run, as ratios of medians: loading, features, prediction, heads in a bank."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from fomo.artifacts import Run
from fomo.data.batches import FeatureBatches, ImageBatches, loader
from fomo.data.images import to_pixels
from fomo.model import load_model
from fomo.networks.bank import HeadBank
from fomo.networks.heads import HEADS, Head
from fomo.networks.inference import store_features
from fomo.stages.evaluation import evaluate
from fomo.stages.finetuning import FINETUNING_FIRST, untrained
from fomo.stages.head_search import HEAD_SPACE
from fomo.stages.preprocessing import image_loader, preprocess
from fomo.training.bank_training import fit_bank
from fomo.training.loop import DivergedError, cross_entropy, fit, make_optimizer

BATCHES = 6  # in each timing
REPEATS = 5  # timings of each, in turn, so that a slow minute hits all of them


def row(what: str, ours: float, other: float, unit: str, ratio: float, note: str) -> dict:
    """A row of the table of `make bench`; `note` says what the ratio is."""
    return {"what": what, "ours": ours, "other": other, "unit": unit, "ratio": ratio, "note": note}


def loading(run: Run) -> pd.DataFrame:
    """Images a second (median of `REPEATS`) that the store delivers, augmented; that decoding anew delivers; that the
    backbone takes in training (all stages from the 2nd on); and what loading from the store adds to an epoch."""
    data = preprocess(run)
    classifier = untrained(run, data)
    classifier.backbone.fix_until(2)
    settings = {name: value for name, value in FINETUNING_FIRST.items() if name != "layer"}
    optimizer = make_optimizer(classifier, **settings)
    batches = image_loader(run, data.part("train"), classifier.backbone, torch.Generator())
    files = data.images["file"].tolist()[: BATCHES * run.config.batch_size]
    batch = [part.to(run.device) for part in next(iter(batches))]
    channels = data.pixels.shape[1]

    def from_store() -> None:
        for _ in islice(batches, BATCHES):
            pass

    def decode(file: str) -> np.ndarray:
        with data.dataset.source.open(file) as image:
            return to_pixels(image, run.config.image_size, channels, run.config.crop, ranges=data.survey.ranges)

    def from_files() -> None:
        backbone, size = classifier.backbone, run.config.batch_size
        options = {"rotation": run.config.rotation, "generator": batches.generator}
        for start in range(0, len(files), size):
            pixels = np.stack([decode(file) for file in files[start : start + size]])
            anew = ImageBatches(pixels, range(len(pixels)), [0] * len(pixels), backbone.mean, backbone.std, **options)
            anew[list(range(len(pixels)))]

    def train() -> None:
        classifier.train()
        for _ in range(BATCHES):
            optimizer.zero_grad()
            cross_entropy(classifier(batch[0]), batch[1]).backward()
            optimizer.step()

    timed = {"store, augmented": from_store, "files, augmented": from_files, "training, bare": train}
    seconds = pd.DataFrame(_rounds(list(timed.values())), columns=list(timed)).median()
    count = BATCHES * run.config.batch_size
    shares = seconds / seconds["training, bare"]
    return pd.DataFrame({"images/s": count / seconds, "share of training": shares}).rename_axis("what").reset_index()


def extraction(run: Run) -> pd.DataFrame:
    """Images a second (median of `REPEATS`) of the feature extraction, from the stored pixels to the stored features;
    of bare forward passes of the same backbone on one batch that is ready; and their shares of the latter rate."""
    data = preprocess(run)
    backbone = untrained(run, data).backbone.eval()
    pixels, rows, labels = data.part("train")
    count = min(BATCHES, len(rows) // run.config.batch_size) * run.config.batch_size
    batches = image_loader(run, (pixels, rows[:count], labels[:count]), backbone)
    ready = next(iter(batches))[0].to(run.device, memory_format=torch.channels_last)
    path = run.folder / "bench_features.npy"

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(len(batches)):
                backbone(ready).cpu()

    timed = {
        "feature extraction": lambda: store_features(backbone, batches, path, run.device, "features"),
        "forward passes, bare": bare,
    }
    seconds = pd.DataFrame(_rounds(list(timed.values())), columns=list(timed)).median()
    path.unlink()
    shares = seconds["forward passes, bare"] / seconds
    table = pd.DataFrame({"images/s": count / seconds, "share of bare passes": shares})
    return table.rename_axis("what").reset_index()


def prediction(run: Run, count: int = 2000) -> pd.DataFrame:
    """Images a second (median of `REPEATS`) that the model of a run, which is finished if it is not, predicts from
    files; and those of its bare passes over a batch that is ready."""
    dataset, model = preprocess(run).dataset, load_model(evaluate(run).model_path)
    files = list(dataset.train["file"][:count])
    ready = torch.rand(min(64, len(files)), 3, *[model.description["image_size"]] * 2)
    passes = len(files) // len(ready)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(passes):
                model.classifier.eval().judge(ready)

    with TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            (Path(folder) / f"{number}.png").write_bytes(dataset.source.content(file))
        timed = {"prediction": lambda: model.predict(folder), "forward passes, bare": bare}
        seconds = pd.DataFrame(_rounds(list(timed.values())), columns=list(timed)).median()
    rates = pd.Series({"prediction": len(files), "forward passes, bare": passes * len(ready)}) / seconds
    return rates.rename("images/s").rename_axis("what").reset_index()


def heads(images: int = 5600, features: int = 512, classes: int = 7, batch_size: int = 64) -> pd.DataFrame:
    """One epoch of training heads in a bank (`fit_bank`) against the same heads one after another (`fit`), the latter
    with torch's threads as they come and with one thread: seconds (medians of `REPEATS`), their ratios, and the bank's
    share of the rate of a large matrix product.

    The heads: the report's 37 by Adam, and one head by 30 configurations of its study, in two widths.
    """
    random = np.random.default_rng(0)
    inputs, labels = random.normal(size=(images, features)).astype(np.float32), random.integers(classes, size=images)
    train, validation = FeatureBatches(inputs, labels), FeatureBatches(inputs[:batch_size], labels[:batch_size])
    loaders = loader(train, batch_size, torch.Generator()), loader(validation, batch_size)
    trials = [HEAD_SPACE.decode(place) for place in random.random((30, len(HEAD_SPACE)))]
    adam = [{"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0}] * len(HEADS)
    rows = {"the 37 heads": _compare(HeadBank(HEADS, features, classes), adam, loaders)}
    for hidden in (32, 256):
        bank = HeadBank([Head(hidden, "ReLU", 2)] * len(trials), features, classes)
        rows[f"30 trials of {bank.heads[0].name}"] = _compare(bank, trials, loaders)
    return pd.DataFrame(rows).T.rename_axis("what").reset_index()


def _compare(bank: HeadBank, configurations: list[dict], loaders: tuple[DataLoader, DataLoader]) -> dict:
    """The row of `heads` for this bank, each of its heads trained with its configuration."""
    modules, threads = [bank.module(place) for place in range(len(bank.heads))], torch.get_num_threads()
    options = {"epochs": 1, "seed": 0, "device": torch.device("cpu")}
    square = torch.randn(2048, 2048)

    def one_by_one() -> None:
        for module, configuration in zip(modules, configurations, strict=True):
            with suppress(DivergedError):
                fit(module, make_optimizer(module, **configuration), *loaders, **options)

    def one_thread() -> None:
        torch.set_num_threads(1)
        one_by_one()
        torch.set_num_threads(threads)

    timed = {
        "bank, s": lambda: fit_bank(bank, configurations, *loaders, **options),
        "one by one, s": one_by_one,
        "one by one, one thread, s": one_thread,
        "product, s": lambda: square @ square,
    }
    seconds = pd.DataFrame(_rounds(list(timed.values())), columns=list(timed)).median()
    # Each weight takes a multiply-add an image forward, one for its gradient, and one for that of its layer's input,
    # which the first layer does not need.
    weights = [linears.weight for linears in bank.linears()]
    products = len(loaders[0].dataset) * sum(w.numel() * (3 - (w.shape[1] == bank.features)) for w in weights)
    rate = len(square) ** 3 / seconds.pop("product, s")
    return seconds.to_dict() | {
        "ratio": seconds["one by one, s"] / seconds["bank, s"],
        "ratio, one thread": seconds["one by one, one thread, s"] / seconds["bank, s"],
        "share of product rate": products / seconds["bank, s"] / rate,
    }


def _rounds(functions: list[Callable[[], None]]) -> Iterator[list[float]]:
    """The seconds that each function takes, in `REPEATS` rounds after one that does not count."""
    for number in range(REPEATS + 1):
        times = []
        for function in functions:
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():  # or what it left to a GPU would count for the next one
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        if number:
            yield times
