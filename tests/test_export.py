import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_examples import EXAMPLES
from test_model import build

import fomo
from fomo import exporting, load_model
from fomo.__main__ import main
from fomo.config import UserError
from fomo.data.images import as_seen, to_pixels
from fomo.networks.heads import HEADS, LINEAR

SHAPES = [(24, 24), (1, 1), (3, 200), (200, 3), (90, 41), (32, 32)]


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


# ---- the pixels that a network sees


class Described:
    """A model as far as its pixels go."""

    def __init__(self, **description):
        self.description = description
        self.classifier = torch.nn.Module()


@pytest.fixture
def at_once(monkeypatch):
    """Outside of a graph, torch compiles both branches for each size."""
    monkeypatch.setattr(torch, "cond", lambda which, one, other, operands: (one if which else other)(*operands))


@pytest.mark.parametrize("fit", ["crop", "squish", "pad"])
def test_pixels_are_those_of_pillow_to_the_last_bit(fit, at_once):
    length = st.one_of(st.integers(1, 40), st.integers(1, 700))

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(length, length, st.integers(8, 64), st.sampled_from([0.8, 0.875, 1.0]), st.sampled_from([1, 3]))
    def same(height, width, size, crop, channels):
        image = noise((height, width))
        expected = to_pixels(Image.fromarray(image), size, channels, crop, fit)
        model = Described(image_size=size, crop=crop, fit=fit, channels=channels)
        pixels = exporting.Exported(model).square(torch.from_numpy(image)[None])[0]
        assert np.array_equal(pixels, expected)

    same()


# ---- the files


def test_several_networks_views_heads_and_handicaps_are_in_the_file_and_16_bits_are_mapped_before(tmp_path):
    parts = {"views": (0, 1, 4, 5), "temperatures": (0.5, 2.5), "handicaps": (-3.0, 0.0, -0.1)}
    model = build([HEADS[0], LINEAR], **parts, fit="squish", ranges={"uint16": [100.0, 50000.0]})
    model.save(tmp_path / "model.safetensors")
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        values = np.random.default_rng(number).integers(0, 2**16, (30, 20 + number), dtype=np.uint16)
        Image.fromarray(values).save(path)
    (tmp_path / "text.png").write_text("no image")
    table = fomo.export(tmp_path / "model.safetensors", "torch", tmp_path)
    assert table["images"].item() == len(paths)
    assert table["largest_difference"].item() < 1e-5
    named = model.predict(paths)
    module = torch.export.load(tmp_path / "model.pt2").module()
    for path, (_, row) in zip(paths, named.iterrows(), strict=True):
        with Image.open(path) as image:
            seen = np.array(as_seen(image, model.ranges).convert("RGB"))
        probabilities, (number,) = module(torch.from_numpy(seen)[None])
        assert np.allclose(probabilities, row[model.classes].to_numpy(float), atol=1e-5)
        assert model.classes[number] == row["class"]
    assert (named["class"] != named[model.classes].idxmax(axis=1)).any()  # by the handicaps


@pytest.fixture(scope="module")
def files(finished, tmp_path_factory):
    """The toy run's model in both formats, the tables that tell how equal they are, and the model itself."""
    folder = tmp_path_factory.mktemp("exported")
    source = finished.evaluation.model_path
    suffixes = {"onnx": "onnx", "torch": "pt2"}
    tables = {to: fomo.export(source, to, path=folder / f"model.{suffix}") for to, suffix in suffixes.items()}
    return folder, tables, load_model(source)


def test_file_and_model_agree_on_the_test_images_of_the_run(files, finished):
    folder, tables, _ = files
    for to, name in {"onnx": "model.onnx", "torch": "model.pt2"}.items():
        row = tables[to].iloc[0]
        assert row["images"] == len(finished.evaluation.predictions)
        assert row["equal_classes"] == 1
        assert row["largest_difference"] < 1e-5
        pd.testing.assert_frame_equal(pd.read_csv(folder / f"{name}.csv"), tables[to])
    assert sorted(path.name for path in folder.iterdir()) == [
        *("model.onnx", "model.onnx.csv", "model.pt2", "model.pt2.csv")
    ]


CODE = """
import json, sys
import numpy as np, onnxruntime
images = [value for _, value in sorted(np.load("images.npz").items())]
session = onnxruntime.InferenceSession("model.onnx")
found = {"onnx": [session.run(["probabilities", "class"], {"images": one}) for one in images]}
said = {"onnx": session.get_modelmeta().custom_metadata_map}
assert not {"torch", "timm", "fomo"} & set(sys.modules)

import torch
said["torch"] = {"classes": "", "format": "", "ranges": ""}
module = torch.export.load("model.pt2", extra_files=said["torch"]).module()
found["torch"] = [[part.numpy() for part in module(torch.from_numpy(one))] for one in images]
assert not {"timm", "fomo"} & set(sys.modules)
plain = {to: [[part.tolist() for part in one] for one in parts] for to, parts in found.items()}
print(json.dumps([plain, said]))
"""


def test_files_predict_the_same_without_fomo_images_of_any_size_and_number(files):
    folder, _, model = files
    images = [np.stack([noise(shape)] * count) for count, shape in enumerate(SHAPES, start=1)]
    np.savez(folder / "images.npz", *images)
    result = subprocess.run([sys.executable, "-c", CODE], cwd=folder, capture_output=True, text=True)
    (folder / "images.npz").unlink()
    assert result.returncode == 0, result.stderr
    found, said = json.loads(result.stdout.splitlines()[-1])
    for to in ("onnx", "torch"):
        assert json.loads(said[to]["classes"]) == model.classes
        for batch, (probabilities, named) in zip(images, found[to], strict=True):
            table = model.predict(list(batch))
            assert np.allclose(probabilities, table[model.classes], atol=1e-5)
            assert [model.classes[number] for number in named] == table["class"].tolist()


def test_example_of_the_readme_runs(files, monkeypatch, capsys):
    folder, _, model = files
    (example,) = (one for one in EXAMPLES if "onnxruntime" in one)
    Image.fromarray(noise((30, 40))).save(folder / "boot.png")
    monkeypatch.chdir(folder)
    exec(compile(example, "example", "exec"), {})
    row = model.predict("boot.png").iloc[0]
    (folder / "boot.png").unlink()
    assert capsys.readouterr().out == f"{row['class']} {row['confidence']:.3f}\n"


# ---- what is refused


@pytest.fixture
def quick(monkeypatch):
    """An export that takes no time, of a file that predicts as it is told to: (probabilities, class) of an image."""

    def says(answer):
        monkeypatch.setattr(torch.export, "export", lambda *args, **options: None)
        monkeypatch.setitem(exporting.FORMATS, "onnx", (".onnx", lambda program, metadata: (b"file", answer)))

    return says


@pytest.mark.parametrize("wrong", ["class", "probability", "nan"])
def test_file_that_predicts_otherwise_is_not_stored(wrong, quick, copied):
    path, model = copied.folder / "model.safetensors", load_model(copied.folder / "model.safetensors")

    def answer(images):
        row = model.predict(images[0])
        probabilities, named = row[model.classes].to_numpy(), model.classes.index(row["class"][0])
        if wrong == "class":
            named = 0
        return probabilities + {"class": 0, "probability": 2e-4, "nan": np.nan}[wrong], [named]

    quick(answer)
    with pytest.raises(UserError, match=r"as onnx is not stored.*of 24 images"):
        fomo.export(path, "onnx")
    assert not list(copied.folder.glob("model.onnx*"))


def test_file_that_predicts_the_same_is_stored_beside_the_model(quick, copied):
    path, model = copied.folder / "model.safetensors", load_model(copied.folder / "model.safetensors")
    rows = lambda images: model.predict(images[0])  # noqa: E731
    quick(lambda images: (rows(images)[model.classes].to_numpy(), [model.classes.index(rows(images)["class"][0])]))
    fomo.export(path, "onnx")
    assert (copied.folder / "model.onnx").read_bytes() == b"file"
    assert (copied.folder / "model.onnx.csv").exists()


def test_unknown_format_and_missing_model_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match=r"unknown format 'tflite'; choose from onnx, torch"):
        fomo.export("model.safetensors", "tflite")
    with pytest.raises(UserError, match=r"none.safetensors cannot be read"):
        fomo.export(tmp_path / "none.safetensors", "onnx")
    assert main(["export", str(tmp_path / "none.safetensors"), "--to", "torch"]) == 2
    assert "none.safetensors cannot be read" in capsys.readouterr().err


def test_model_outside_of_its_run_asks_for_images(finished, tmp_path):
    path = shutil.copy(finished.evaluation.model_path, tmp_path)
    with pytest.raises(UserError, match=r"no folder of a run.*--images"):
        fomo.export(path, "onnx")
    with pytest.raises(UserError, match=r"there is no .*photos"):
        fomo.export(path, "onnx", tmp_path / "photos")


def test_run_whose_data_set_has_gone_asks_for_images(copied):
    (copied.folder / "dataset.json").write_text('{"name": "/nowhere", "columns": "", "on_rare": "refuse"}')
    with pytest.raises(UserError, match=r"unknown data set '/nowhere'.*--images"):
        fomo.export(copied.folder / "model.safetensors", "onnx")


def test_images_that_cannot_be_read_are_no_comparison(quick, finished, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    quick(None)
    with pytest.raises(UserError, match="none of the images"):
        fomo.export(finished.evaluation.model_path, "onnx", tmp_path, tmp_path / "model.onnx")


def test_network_that_the_exporter_cannot_take_is_named(finished, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.export, "export", fail)
    (tmp_path / "model.onnx").write_bytes(b"before")
    message = r"test_efficientnet cannot be exported to onnx .*no such operator.*model.onnx is of an earlier export"
    with pytest.raises(UserError, match=message):
        fomo.export(finished.evaluation.model_path, "onnx", path=tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"before"
