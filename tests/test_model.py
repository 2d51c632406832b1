import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import toys
from PIL import Image

from fomo import load_model
from fomo.config import UserError
from fomo.data.survey import Survey
from fomo.model import Model
from fomo.networks.backbones import load_backbone
from fomo.networks.classifier import FinalClassifier, Network
from fomo.networks.heads import HEADS, LINEAR
from fomo.networks.inference import predict
from fomo.stages.preprocessing import image_loader, read_pixels


@pytest.fixture
def images(dataset):
    return sorted((dataset / "images_test").iterdir())


def describe(heads=HEADS[3:4], views=(0,), temperatures=(1.0,), handicaps=(0.0, 0.0, 0.0), **preparation):
    description = {"backbone": "test_vit", "heads": [asdict(head) for head in heads], "views": views}
    description |= {"temperatures": temperatures, "handicaps": handicaps, "classes": toys.CLASSES}
    description |= {"image_size": 32, "fit": "crop", "crop": 0.875, "channels": 1, "ranges": {}} | preparation
    return json.loads(json.dumps(description))  # tuples are lists in a file


def build(heads, views=(0,), temperatures=(1.0,), handicaps=(0.0, 0.0, 0.0), **preparation):
    """An untrained classifier, of grey images unless told otherwise, of a network for each temperature."""
    backbones = [load_backbone("test_vit", "random", 32) for _ in temperatures]
    networks = [Network(one, [head.build(one.num_features, 3) for head in heads], views) for one in backbones]
    classifier = FinalClassifier(networks, list(temperatures), list(handicaps))
    return Model(classifier, describe(heads, views, temperatures, handicaps, **preparation))


@pytest.fixture
def model():
    return build(HEADS[3:4])


@pytest.mark.parametrize("parts", [([HEADS[5]],), ([HEADS[0], LINEAR], (0, 1, 4, 5), (2.5, 0.5), (-3.0, 0.0, -0.1))])
def test_model_comes_back_as_it_was_saved(parts, images, tmp_path):
    model = build(*parts)
    model.save(tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.description == model.description
    assert [one.views for one in loaded.classifier.networks] == [one.views for one in model.classifier.networks]
    pd.testing.assert_frame_equal(loaded.predict(images), model.predict(images))


def test_prediction_gives_class_confidence_and_every_probability(model, images):
    table = model.predict(images)
    assert list(table.columns) == ["class", "confidence", *toys.CLASSES]
    assert np.allclose(table[toys.CLASSES].sum(axis=1), 1)
    assert np.allclose(table[toys.CLASSES].max(axis=1), table["confidence"])
    assert [row[row["class"]] for _, row in table.iterrows()] == table["confidence"].tolist()


def test_class_with_a_handicap_below_zero_is_named_more_often_with_the_probability_that_it_has(images):
    table = build(HEADS[:1]).predict(images)
    rare = table[toys.CLASSES].mean().idxmin()
    torch.manual_seed(0)
    handicaps = [-100.0 if name == rare else 0.0 for name in toys.CLASSES]
    model = build(HEADS[:1], handicaps=handicaps)
    adjusted = model.predict(images)
    assert adjusted["class"].tolist() == [rare] * len(images)
    assert adjusted["confidence"].tolist() == adjusted[rare].tolist()
    assert np.allclose(adjusted[toys.CLASSES].sum(axis=1), 1)


def test_prediction_does_not_depend_on_the_batch(model, images):
    pd.testing.assert_frame_equal(model.predict(images, batch_size=5), model.predict(images), atol=1e-6)


def test_open_image_is_predicted_as_its_file(model, images):
    with Image.open(images[0]) as image:
        pd.testing.assert_frame_equal(model.predict([image]), model.predict(images[:1]))


def test_coloured_image_is_read_as_grey_by_a_model_of_grey_images(model, images):
    with Image.open(images[0]) as image:
        pd.testing.assert_frame_equal(model.predict([image.convert("L")]), model.predict(images[:1]))


def foreign(path):
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)


def other_metadata(path):
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})


def without_weights(path):
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata={"fomo": json.dumps(describe())})


def of_another_version(path):
    description = describe() | {"heads": [{"hidden": 32, "blocks": []}]}
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata={"fomo": json.dumps(description)})


def of_counted_views(path):
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata={"fomo": json.dumps(describe(views=2))})


def of_an_unknown_activation(path):
    description = describe() | {"heads": [{"hidden": 32, "activation": "GELU", "layers": 2}]}
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata={"fomo": json.dumps(description)})


def text(path):
    path.write_text("not a model")


def nothing(path):
    pass


@pytest.mark.parametrize(
    "write",
    [
        *(foreign, other_metadata, without_weights, of_another_version, of_counted_views, of_an_unknown_activation),
        *(text, nothing),
    ],
)
def test_file_that_is_no_model_is_refused_by_name(tmp_path, write):
    write(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(tmp_path / "model.safetensors")


def test_truncated_model_is_refused_by_name(model, tmp_path):
    model.save(tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    for kept in (0, 4, 200, -1):
        (tmp_path / "model.safetensors").write_bytes(content[:kept])
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            load_model(tmp_path / "model.safetensors")


def test_prediction_crops_as_the_model_was_trained(model):
    framed = np.full((64, 64), 255, np.uint8)
    framed[16:48, 16:48] = toys.draw(1, (32, 32, 1))[..., 0]
    inner = Image.fromarray(framed[16:48, 16:48])
    model.description["crop"] = 0.5
    cropped = model.predict([Image.fromarray(framed)])
    model.description["crop"] = 1.0
    whole = model.predict([Image.fromarray(framed), inner])
    assert not np.allclose(cropped[toys.CLASSES], whole[toys.CLASSES].iloc[0])
    assert np.allclose(cropped[toys.CLASSES], whole[toys.CLASSES].iloc[1], atol=1e-5)


@pytest.mark.parametrize("fit", ["crop", "squish", "pad"])
def test_saved_model_prepares_an_image_as_its_training_did(dataset, tmp_path, fit):
    """What it predicts for files is what its network computes of the pixels that the pipeline stores of them."""
    for number, size in enumerate([(300, 60), (60, 300), (24, 24), (1, 2000)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    files = sorted(tmp_path.glob("*.png"))
    run = toys.tiny_run(dataset, fit=fit, crop=0.75)
    model = build(HEADS[3:4], (0, 1), channels=3, fit=fit, crop=0.75)
    model.save(tmp_path / "model.safetensors")
    predicted = load_model(tmp_path / "model.safetensors").predict(files)

    source = SimpleNamespace(open=Image.open)
    data = SimpleNamespace(name="toy", source=source, train=pd.DataFrame({"file": files}))
    assert read_pixels(run, data, pd.Series(files), tmp_path / "pixels.npy", Survey()).empty
    part = (np.load(tmp_path / "pixels.npy"), range(len(files)), [0] * len(files))
    logits, _ = predict(model.classifier, image_loader(run, part, model.classifier.networks[0].backbone), run.device)
    assert np.allclose(predicted[toys.CLASSES], logits.softmax(1), atol=1e-6)
