"""The final model in one file for other programs, from pixels to the class; stored only if it predicts the same."""

import io
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from fomo.config import UserError
from fomo.data.datasets import RECORD, load_dataset
from fomo.data.given import each, opened
from fomo.data.images import as_seen, batched
from fomo.data.sources import Folder
from fomo.model import Model, load_model
from fomo.networks.classifier import Network, view
from fomo.storage import read_json, write_bytes, write_table

NAMES = ["probabilities", "class"]
FORMAT = "images (batch, height, width, 3), uint8, RGB, upright -> probabilities (batch, classes), class (batch)"
MOST = 200  # images that both are compared on
HELD = 16  # of them at a time, for photos are large
LARGEST = 1e-4  # difference of a probability
BITS = 22  # of Pillow's whole numbers
ANY = ({axis: torch.export.Dim(name) for axis, name in enumerate(("batch", "height", "width"))},)
EXACT = {"dtype": torch.float64}  # holds their sums to the last bit


class Exported(nn.Module):
    """All that a model does to images, in tensors: uint8 (batch, height, width, 3) of any height and width, RGB as
    `data.images.as_seen` has them -> probabilities (batch, classes), and the number of the class named (batch), int64.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.classifier = model.classifier.eval()
        names = ("image_size", "crop", "fit", "channels")
        self.size, crop, self.fit, self.channels = (model.description[name] for name in names)
        self.side = round(self.size / crop)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        networks = self.classifier.networks
        mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (networks[0].backbone.mean, networks[0].backbone.std))
        inputs = (self.square(images).float() / 255 - mean) / std
        logits = self.classifier.average([one.judge(_look(one, inputs)) for one in networks])
        return logits.softmax(1), self.classifier.name(logits)

    def square(self, images: torch.Tensor) -> torch.Tensor:
        """The pixels of `data.images.to_pixels`, to the last bit, as floats (batch, channels, size, size). Lengths are
        tensors, height first, for they are not known before."""
        if self.channels == 1:  # Pillow's grey; its sums are exact in float32
            images = _rounded(images.float() @ torch.tensor([[19595.0], [38470.0], [7471.0]]), bits=16)
        pixels = images.permute(0, 3, 1, 2).to(**EXACT)
        places = [torch.arange(length, **EXACT) for length in images.shape[1:3]]
        given = torch.stack([torch.full((), length, **EXACT) for length in images.shape[1:3]])
        cropped = given
        if self.fit == "crop":
            cropped = given.minimum(8 * given.min())
            resized = (self.side * cropped / given.min()).floor()
        elif self.fit == "pad":
            resized = (self.side * given / given.max()).round().clamp(min=1)
        else:
            shown, cropped = [torch.arange(self.side, **EXACT)] * 2, given.clamp(max=self.side)
            pixels = _resize(pixels, given, places, cropped, shown)
            given, places, resized = cropped, shown, torch.full_like(given, self.side)
        places = [place - start for place, start in zip(places, _starts(given, cropped), strict=True)]
        shown = [torch.arange(self.size, **EXACT) + start for start in _starts(resized, self.size)]
        return _resize(pixels, cropped, places, resized, shown)


def _look(network: Network, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`Network.look` in one pass: the file would hold the backbone's graph once for each view."""
    views = torch.cat([view(images, number) for number in network.views])
    return network.backbone(views).unflatten(0, (len(network.views), -1)).unbind()


def _starts(lengths: torch.Tensor, part: torch.Tensor | int) -> torch.Tensor:
    """Where the middle `part` of so many pixels begins, rounded as center_crop does it; below 0 it has a black rim."""
    half = (lengths - part) / 2
    return torch.where(half < 0, half.ceil(), half.round())


def _resize(pixels: torch.Tensor, lengths: torch.Tensor, places: list, resized: torch.Tensor, shown: list):
    """Pillow's bilinear resize of `lengths` to `resized` (Resample.c of Pillow 13): pixels (..., down, across), which
    lie at `places`, -> those at `shown`. It rounds after each axis, and begins with the one that it says here."""
    down, across = (_matrix(*axis) for axis in zip(lengths, places, resized, shown, strict=True))
    less = lengths - resized
    return torch.cond(
        less[0] > (2 * less[1]).clamp(min=0),
        lambda pixels, down, across: _rounded(_rounded(down @ pixels) @ across.T),
        lambda pixels, down, across: _rounded(down @ _rounded(pixels @ across.T)),
        (pixels, down, across),
    )


def _matrix(length: torch.Tensor, places: torch.Tensor, resized: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """The weights (shown, places) of one axis, whole numbers: 2 ** 22 is one. What lies outside has none: black."""
    scale = length / resized
    support = scale.clamp(min=1)
    centre = ((shown + 0.5) * scale)[:, None]
    first, end = (centre - support + 0.5).trunc().clamp(min=0), (centre + support + 0.5).trunc().minimum(length)
    weights = (1 - ((places - centre + 0.5) * (1 / support)).abs()).clamp(min=0)
    weights = torch.where((places >= first) & (places < end), weights, 0.0)
    total = weights.cumsum(1)[:, -1:]  # one after another, as Pillow adds them up
    inside = (shown >= 0) & (shown < resized)
    return torch.where(inside[:, None], (weights / total * 2**BITS + 0.5).floor(), 0.0)


def _rounded(sums: torch.Tensor, bits: int = BITS) -> torch.Tensor:
    return ((sums + 2 ** (bits - 1)) / 2**bits).floor().clamp(max=255)


def export(model_path: str | Path, to: str, images=None, path: str | Path | None = None) -> pd.DataFrame:
    """Stores a model as one file `to` use elsewhere, onnx (model.onnx) or torch (model.pt2), beside it or at `path`.
    The file takes and gives what `Exported` does; its metadata has `FORMAT`, class names and ranges, as json.

    Before, both predict up to 200 `images`: anything that `Model.predict` takes, or else test images of the run in
    whose folder the model lies. Returns, and stores beside the file (.csv), a row: images, the share of equal classes,
    the largest difference of a probability, and the images a second of each, decoded before, by the file one at a time.
    Raises `UserError`, and stores nothing, where a class differs, or a probability by more than 1e-4.
    """
    if to not in FORMATS:
        raise UserError(f"unknown format '{to}'; choose from {', '.join(FORMATS)}")
    suffix, write = FORMATS[to]
    model, path = load_model(model_path), Path(path or Path(model_path).with_suffix(suffix))
    given = _test_images(Path(model_path)) if images is None else (thing for _, thing in each(images, model.ranges))
    things = list(islice(given, MOST))
    metadata = {"format": FORMAT, "classes": json.dumps(model.classes), "ranges": json.dumps(model.ranges)}
    kept = f"; {path} is of an earlier export" * path.exists()
    torch.compiler.reset()  # sizes that an export before had would be taken for ones that this one may not have
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()), torch.no_grad():
            images = torch.zeros(2, 5, 7, 3, dtype=torch.uint8)
            program = torch.export.export(Exported(model).requires_grad_(False), (images,), dynamic_shapes=ANY)
            content, run = write(program, metadata)
    except Exception as error:  # whatever an exporter can say of a network
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        network = model.description["backbone"]
        raise UserError(f"a model of {network} cannot be exported to {to} ({reason}){kept}") from error
    table = _compare(model, run, things)
    found = table.iloc[0]
    if not (found["equal_classes"] == 1 and found["largest_difference"] <= LARGEST):
        raise UserError(
            f"the model as {to} is not stored, for it does not predict the same: {found['equal_classes']:.1%} of the "
            f"classes of {found['images']:.0f} images, and probabilities that differ by up to "
            f"{found['largest_difference']:.1g}, where {LARGEST} is allowed; use the model itself{kept}"
        )
    write_bytes(path, content)
    write_table(path.with_name(f"{path.name}.csv"), table)
    return table


def _onnx(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> tuple[bytes, Callable]:
    import onnxruntime

    names = {"input_names": ["images"], "output_names": NAMES, "dynamic_shapes": ANY}
    exported = torch.onnx.export(program, verbose=False, **names)
    exported.model.metadata_props.update(metadata)
    content = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: session.run(NAMES, {"images": images})


def _torch(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> tuple[bytes, Callable]:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=metadata)
    file.seek(0)
    module = torch.export.load(file).module()
    return file.getvalue(), lambda images: [one.numpy() for one in module(torch.from_numpy(images))]


FORMATS = {"onnx": (".onnx", _onnx), "torch": (".pt2", _torch)}


def _test_images(model_path: Path) -> list:
    """What `opened` opens, of test images of the run in whose folder the model lies, spread over all of them."""
    advice = "name images to compare on: --images path/to/folder (images=...)"
    record = model_path.parent / RECORD
    if not record.exists():
        raise UserError(f"{model_path.parent} is no folder of a run, which would tell its test images; {advice}")
    try:
        dataset = load_dataset(**read_json(record))
    except UserError as error:
        raise UserError(f"{error}; or {advice}") from error
    files, source = dataset.test()["file"].tolist(), dataset.source
    chosen = [files[place] for place in np.linspace(0, len(files) - 1, min(len(files), MOST)).astype(int)]
    return [str(source.path / file) if isinstance(source, Folder) else source.open(file) for file in chosen]


def _compare(model: Model, run: Callable, things: list) -> pd.DataFrame:
    """The row that `export` returns. Raises `UserError` if none of the images can be read."""
    rows = []
    for images in batched(_decoded(model, things), HELD):
        begun = time.perf_counter()
        expected = model.predict(images)
        between = time.perf_counter()
        found = [run(image[None]) for image in images]
        seconds = (between - begun) / len(images), (time.perf_counter() - between) / len(images)
        of_fomo = zip(expected["class"], expected[model.columns].to_numpy(), strict=True)
        for (probabilities, [number]), (named, own) in zip(found, of_fomo, strict=True):
            rows.append((model.classes[number] == named, np.abs(probabilities[0] - own).max(), *seconds))
    if not rows:
        raise UserError("none of the images to compare on can be read; name others")
    equal, difference, own, exported = (np.array(column, float) for column in zip(*rows, strict=True))
    found = {"images": len(rows), "equal_classes": equal.mean(), "largest_difference": difference.max()}
    found |= {"fomo_images_per_second": 1 / own.mean(), "exported_images_per_second": 1 / exported.mean()}
    return pd.DataFrame([found])


def _decoded(model: Model, things: list) -> Iterator[np.ndarray]:
    """The pixels (height, width, 3) of the images that can be read."""
    for thing in things:
        try:
            with opened(thing, model.ranges) as image:
                yield np.array(as_seen(image, model.ranges).convert("RGB"))
        except Exception:  # a damaged file makes the decoders raise nearly anything
            continue
