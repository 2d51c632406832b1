import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
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
from fomo.training.calibration import fit_unlike

FEATURES = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))  # as test_vit has them


@pytest.fixture
def images(dataset):
    return sorted((dataset / "images_test").iterdir())


def describe(heads=HEADS[3:4], views=(0,), temperatures=(1.0,), handicaps=(0.0, 0.0, 0.0), **preparation):
    description = {"backbone": "test_vit", "heads": [asdict(head) for head in heads], "views": views}
    description |= {"temperatures": temperatures, "weights": weights(temperatures), "handicaps": handicaps}
    description |= {"classes": toys.CLASSES}
    description |= {"image_size": 32, "fit": "crop", "crop": 0.875, "channels": 1, "ranges": {}} | preparation
    return json.loads(json.dumps(description))  # tuples are lists in a file


def weights(temperatures):
    """The weights of so many networks: the last one's is a quarter, if it is not the only one."""
    count = len(temperatures)
    return [1.0] if count == 1 else [0.75 / (count - 1)] * (count - 1) + [0.25]


def build(heads, views=(0,), temperatures=(1.0,), handicaps=(0.0, 0.0, 0.0), **preparation):
    """An untrained classifier, of grey images unless told otherwise, of a network for each temperature."""
    backbones = [load_backbone("test_vit", "random", 32) for _ in temperatures]
    networks = [Network(one, [head.build(one.num_features, 3) for head in heads], views) for one in backbones]
    classifier = FinalClassifier(
        networks, list(temperatures), weights(temperatures), list(handicaps), fit_unlike(FEATURES)
    )
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
    assert list(table.columns) == ["file", "class", "confidence", "unlike", *toys.CLASSES, "reason"]
    assert table["file"].tolist() == list(map(str, images))
    assert table["reason"].isna().all()
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


def test_coloured_image_is_read_as_grey_by_a_model_of_grey_images(model, images):
    with Image.open(images[0]) as image:
        same(model, [image.convert("L")], images[:1])


def test_explanation_has_class_pixels_and_map_of_each_image_that_can_be_read(finished, images, tmp_path):
    model = load_model(finished.evaluation.model_path)
    (tmp_path / "bad.png").write_text("no image")
    seen = list(model.explain([*images[:3], tmp_path / "bad.png", Image.open(images[3])], batch_size=3))
    table = model.predict(images[:4])
    assert [one.file for one in seen] == [*map(str, images[:3]), 4]
    assert [one.named for one in seen] == table["class"].tolist()
    assert np.allclose([one.confidence for one in seen], table["confidence"], atol=1e-5)
    for one in seen:
        assert (one.pixels.shape, one.pixels.dtype) == ((3, 32, 32), np.uint8)
        assert (one.map.shape, one.map.dtype) == ((32, 32), np.float32)
        assert 0 <= one.map.min() < one.map.max() <= 1


def test_transformer_is_not_explained(model, images):
    with pytest.raises(UserError, match="test_vit"):
        list(model.explain(images[:1]))


# ---- what can be given


@pytest.fixture
def folder(images, tmp_path):
    """Four images of two formats in a folder and one below it, a text, and a hidden image."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.PNG", "c.jpg", "more/d.png", ".hidden.png")):
        with Image.open(images[number]) as image:
            image.save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def same(model, given, paths) -> None:
    """What is given is predicted as the files at these paths."""
    table, expected = model.predict(given), model.predict(list(paths))
    pd.testing.assert_frame_equal(table.drop(columns="file"), expected.drop(columns="file"), atol=1e-6)


def test_path_folder_and_pattern_are_those_images_sorted(model, folder):
    names = ["a.PNG", "b.png", "c.jpg", "more/d.png"]
    for given in (folder, str(folder)):
        assert model.predict(given)["file"].tolist() == [f"{folder}/{name}" for name in names]
    assert model.predict(f"{folder}/*.png")["file"].tolist() == [f"{folder}/b.png"]
    assert model.predict(f"{folder}/**/*.png")["file"].tolist() == [f"{folder}/b.png", f"{folder}/more/d.png"]
    assert model.predict(f"{folder}/m*")["file"].tolist() == [f"{folder}/more/d.png"]
    assert model.predict(folder / "c.jpg")["file"].tolist() == [f"{folder}/c.jpg"]
    same(model, folder, [folder / name for name in names])


def test_file_with_the_characters_of_a_pattern_is_that_file(model, folder):
    (folder / "b.png").rename(folder / "b[1].png")
    assert model.predict(folder / "b[1].png")["file"].tolist() == [f"{folder}/b[1].png"]


def test_image_array_and_bytes_are_predicted_as_their_file(model, images):
    with Image.open(images[0]) as image:
        same(model, image, images[:1])
        same(model, [image] * 20, images[:1] * 20)
        same(model, np.asarray(image), images[:1])
        grey = np.asarray(image.convert("L"))
        same(model, grey, images[:1])
        same(model, grey[..., None], images[:1])
        same(model, np.asarray(image.convert("RGBA")), images[:1])
    same(model, images[0].read_bytes(), images[:1])
    same(model, bytearray(images[0].read_bytes()), images[:1])


def test_list_holds_any_of_these_and_numbers_what_has_no_path(model, images, folder):
    with Image.open(images[0]) as image:
        given = [image, folder / "more", np.asarray(image), str(images[0]), images[0].read_bytes()]
        table = model.predict(iter(given))
    assert table["file"].tolist() == [0, f"{folder}/more/d.png", 2, str(images[0]), 4]
    assert np.allclose(table[toys.CLASSES].iloc[[2, 3, 4]], table[toys.CLASSES].iloc[0], atol=1e-5)


def test_image_that_cannot_be_read_has_a_row_with_the_reason_and_nothing_else(model, images, folder):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:-200])
    paths = [folder / "notes.txt", images[0], folder / "none.png", folder / "*.bmp", images[1], folder / "b.png"]
    table = model.predict([*paths, b"text"], batch_size=2)
    assert table["file"].tolist() == [*map(str, paths), 6]
    assert table["reason"].isna().tolist() == [False, True, False, False, True, False, False]
    assert table["reason"][2] == "no such file or directory"
    assert table.drop(columns=["file", "reason"])[table["reason"].notna()].isna().all(axis=None)
    readable = table[table["reason"].isna()].reset_index(drop=True)
    pd.testing.assert_frame_equal(readable, model.predict(images[:2]), atol=1e-6)
    assert model.predict(folder / "notes.txt")["reason"].tolist() == ["not an image, or its header is damaged"]


@pytest.mark.parametrize("given", [[], (), iter([])])
def test_nothing_is_an_empty_table_with_all_columns(model, given):
    table = model.predict(given)
    assert list(table.columns) == ["file", "class", "confidence", "unlike", *toys.CLASSES, "reason"]
    assert table.empty


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("photos/b.jpg", "there is no photos/b.jpg; photos has b.png"),
        ("photos/bb.png", "there is no photos/bb.png; photos has b.png"),
        ("photos/*.bmp", "no file is like photos/*.bmp; photos has .hidden.png, a.PNG, b.png and 3 more"),
        ("photo/*.png", "no file is like photo/*.png, for there is no photo in .; . has photos"),
        ("fotos/b.png", "there is no fotos/b.png, for there is no fotos in .; . has photos"),
        ("photos\\b.png", "there is no photos\\b.png; give photos/b.png"),
        ("/photos/b.png", "there is no /photos/b.png; give photos/b.png"),
        (" photos/b.png", "give photos/b.png"),
        ("", "an empty path leads to no image; give a path, a folder"),
        ("empty", "empty is a folder in which no image lies (.jpg, .jpeg,"),
    ],
)
def test_path_that_leads_nowhere_is_refused_with_what_was_perhaps_meant(model, folder, monkeypatch, given, words):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    with pytest.raises(UserError, match=re.escape(words)):
        model.predict(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros(24, np.uint8), r"array 0 has the shape \(24,\)"),
        (np.zeros((3, 24, 24), np.uint8), r"\(3, 24, 24\); an image is \(height, width\)"),
        (np.zeros((5, 24, 24, 3), np.uint8), r"\(5, 24, 24, 3\).*a list of images"),
        (np.zeros((0, 24), np.uint8), r"\(0, 24\)"),
        (np.zeros((24, 24)), r"array 0 holds float32, which no train image does.*uint8"),
        ([np.zeros((9, 9), np.uint8), np.zeros((9, 9), int)], "array 1 holds int64"),
        (np.zeros((24, 24, 3), np.uint16), "array 0 holds uint16 colour"),
        (7, "int is nothing to predict; give a path, a folder"),
        (["a.png", None], "item 1 is of type NoneType; give a path"),
    ],
)
def test_what_is_no_image_is_refused_by_name(model, given, words):
    with pytest.raises(UserError, match=words):
        model.predict(given)


def test_numbers_of_a_known_range_are_predicted_and_of_another_kind_refused(images, tmp_path):
    model = build(HEADS[3:4], ranges={"uint16": (0, 4095), "uint16 colour": (0, 4095), "float32": (0, 1)})
    with Image.open(images[0]) as image:
        grey, colours = np.asarray(image.convert("L")), np.asarray(image)
    counts = np.round(grey * (4095 / 255)).astype(np.uint16)
    for name, array in {"0.png": grey, "1.png": counts, "2.tif": grey.astype(np.int32)}.items():
        Image.fromarray(array).save(tmp_path / name)
    table = model.predict([*sorted(tmp_path.glob("?.*")), counts, grey / 255])
    assert table["reason"].isna().tolist() == [True, True, False, True, True]
    assert table["reason"][2].startswith("holds int32, which no train image does")
    assert np.allclose(table[toys.CLASSES].iloc[[1, 3, 4]], table[toys.CLASSES].iloc[0], atol=1e-3)
    same(model, np.round(colours * (4095 / 255)).astype(np.uint16), images[:1])


def test_class_called_as_a_column_does_not_take_its_place(images):
    model = build(HEADS[3:4])
    model.classes = ["confidence", "p(class)", "class"]
    table = model.predict(images[:2])
    columns = ["p(confidence)", "p(class)", "p(p(class))"]
    assert list(table.columns) == ["file", "class", "confidence", "unlike", *columns, "reason"]
    assert set(table["class"]) <= set(model.classes)
    assert np.allclose(table[columns].sum(axis=1), 1)
    assert np.allclose(table[columns].max(axis=1), table["confidence"])


def test_images_are_drawn_from_an_iterable_as_they_are_needed(model, monkeypatch):
    drawn, at_first, inputs = [], [], model._inputs

    def draw():
        for _ in range(300):
            drawn.append(0)
            yield np.zeros((24, 24), np.uint8)

    monkeypatch.setattr(model, "_inputs", lambda pixels: at_first.append(len(drawn)) or inputs(pixels))
    assert len(model.predict(draw())) == 300
    assert at_first[0] <= 3 * 32  # these may be large


@pytest.mark.parametrize(("sizes", "threads"), [([1], 4), ([1, 1], 2), ([1, 1, 1], 1), ([2, 2, 2], 1), ([3, 3, 3], 1)])
def test_few_images_are_shared_out_to_four_cores(model, monkeypatch, sizes, threads):
    told = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    monkeypatch.setattr("torch.set_num_threads", told.append)
    assert [len(part) for part in model.tables([np.zeros((24, 24), np.uint8)] * sum(sizes))] == sizes
    assert told == [threads] * len(sizes) + [4]


def test_prediction_leaves_the_number_of_threads_as_it_was(model):
    """torch gives a new thread the number that was set last in any thread."""
    before = torch.get_num_threads()
    model.predict([np.zeros((24, 24), np.uint8)] * 300)
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before


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
