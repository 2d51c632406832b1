"""The final model in its one file: loaded, asked to predict, saved."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from PIL import Image

from fomo.config import UserError
from fomo.data.batches import ImageBatches, loader
from fomo.data.images import to_pixels
from fomo.networks.backbones import Backbone
from fomo.networks.classifier import FinalClassifier, Network
from fomo.networks.heads import Head
from fomo.networks.inference import predict
from fomo.storage import write_bytes


class Model:
    """A trained classifier with all that it takes to classify an image file: `classes` and preprocessing.

    `description` holds backbone, heads, views (their numbers), temperatures (of each network), handicaps (of each
    class), classes, image_size, fit, crop, channels (1: trained on grey images) and ranges (of the numbers in the train
    images, `survey.Survey`).
    """

    def __init__(self, classifier: FinalClassifier, description: dict):
        self.classifier = classifier
        self.description = description
        self.classes = description["classes"]

    def predict(self, images: Iterable[str | Path | Image.Image], batch_size: int = 64) -> pd.DataFrame:
        """The class of each image (a path or an open PIL image), the confidence, which is its probability, and the
        probability of every class."""
        options = [self.description[name] for name in ("image_size", "channels", "crop", "fit", "ranges")]
        opened = (image if isinstance(image, Image.Image) else Image.open(image) for image in images)
        pixels = np.stack([to_pixels(image, *options) for image in opened])
        backbone = self.classifier.networks[0].backbone
        batches = ImageBatches(pixels, range(len(pixels)), np.zeros(len(pixels)), backbone.mean, backbone.std)
        logits, _ = predict(self.classifier, loader(batches, batch_size), torch.device("cpu"))
        (named, confidence), table = self.classifier.decide(logits), logits.softmax(1).numpy()
        columns = {"class": [self.classes[number] for number in named], "confidence": confidence}
        return pd.concat([pd.DataFrame(columns), pd.DataFrame(table, columns=self.classes)], axis=1)

    def save(self, path: Path) -> None:
        """Stores everything in one .safetensors file; `load_model` needs nothing else."""
        state = {name: value.contiguous() for name, value in self.classifier.state_dict().items()}
        write_bytes(path, safetensors.torch.save(state, metadata={"fomo": json.dumps(self.description)}))


def load_model(path: str | Path) -> Model:
    """The `Model` that a run stored as model.safetensors. Raises `UserError` if the file is no such model.

    >>> fomo.load_model("model.safetensors").predict(["boot.png"])["class"].tolist()
    ['...']
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {})["fomo"])
        state = safetensors.torch.load_file(path)
    except KeyError as error:
        raise UserError(f"{path} is not a model that fomo stored") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"model {path} cannot be read ({error})") from error
    try:
        networks = [_build(description) for _ in description["temperatures"]]
        classifier = FinalClassifier(networks, description["temperatures"], description["handicaps"])
        classifier.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"model {path} does not fit its own description ({str(error)[:200]}); it is damaged, or another version of "
            "fomo stored it: train it anew, or load it with that version"
        ) from error
    return Model(classifier, description)


def _build(description: dict) -> Network:
    """A network as described, its weights yet to be loaded."""
    backbone = Backbone(description["backbone"], description["image_size"])
    heads = [Head(**one).build(backbone.num_features, len(description["classes"])) for one in description["heads"]]
    return Network(backbone, heads, tuple(description["views"]))
