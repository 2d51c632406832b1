"""`python -m fomo predict`: a model's predictions as csv."""

import errno
import io

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from PIL import Image
from test_model import build

from fomo import predictions
from fomo.__main__ import main
from fomo.networks.heads import LINEAR


@pytest.fixture(scope="module")
def model():
    """It names the middle class, however probable another one is."""
    torch.manual_seed(0)
    return build([LINEAR], handicaps=(0.0, -100.0, 0.0))


@pytest.fixture
def photos(model, tmp_path, monkeypatch):
    """The current folder has a model, and six images in a folder."""
    monkeypatch.chdir(tmp_path)
    model.save(tmp_path / "model.safetensors")
    (tmp_path / "photos").mkdir()
    for number in range(6):
        Image.fromarray(toys.draw(number % 3, seed=number)).save(tmp_path / "photos" / f"{number}.png")


def asked(capsys, *arguments, status: int = 0) -> pd.DataFrame:
    """What the command prints."""
    assert main(["predict", "model.safetensors", *arguments]) == status
    return pd.read_csv(io.StringIO(capsys.readouterr().out))


@pytest.mark.parametrize("given", [["photos"], ["photos/*.png"], [f"photos/{number}.png" for number in range(6)]])
def test_rows_are_those_of_the_model(photos, model, capsys, given):
    expected = model.predict("photos").drop(columns="reason")
    pd.testing.assert_frame_equal(asked(capsys, *given).drop(columns="reason"), expected, check_dtype=False)


def test_best_classes_stand_in_place_of_all_probabilities_the_one_that_is_named_first(photos, model, capsys):
    table, expected = asked(capsys, "photos", "--top", "3"), model.predict("photos")
    ranks = ["class_2", "confidence_2", "class_3", "confidence_3"]
    assert list(table.columns) == ["file", "class", "confidence", "unlike", *ranks, "reason"]
    assert table["class"].tolist() == expected["class"].tolist()
    for row, values in zip(table.itertuples(), expected.to_dict("records"), strict=True):
        assert {row._2, row.class_2, row.class_3} == set(toys.CLASSES)
        assert row.confidence_2 >= row.confidence_3
        assert (row.confidence_2, row.confidence_3) == pytest.approx((values[row.class_2], values[row.class_3]))
    assert (expected[toys.CLASSES].max(axis=1) > expected["confidence"]).any()  # so it is not their order alone


def test_class_below_the_threshold_is_unsure_and_keeps_its_confidence(photos, model, capsys):
    expected = model.predict("photos")
    table = asked(capsys, "photos", "--threshold", str(expected["confidence"].median()))
    assert ((table["class"] == "unsure") == (expected["confidence"] < expected["confidence"].median())).all()
    assert 0 < (table["class"] == "unsure").sum() < 6
    assert np.allclose(table["confidence"], expected["confidence"])


def test_threshold_is_refused_where_a_class_is_called_as_it_would(photos, monkeypatch, capsys):
    monkeypatch.setattr(predictions, "UNSURE", toys.CLASSES[0])
    assert main(["predict", "model.safetensors", "photos", "--threshold", "0.9"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"a class called {toys.CLASSES[0]!r}" in said.err
    asked(capsys, "photos")


def test_status_says_whether_some_or_all_images_cannot_be_read(photos, tmp_path, capsys):
    (tmp_path / "photos" / "3.png").write_bytes(b"no image")
    table = asked(capsys, "photos", "--top", "2", status=1)
    assert table["reason"].notna().tolist() == [number == 3 for number in range(6)]
    assert table.drop(columns=["file", "reason"]).isna().all(axis=1).tolist() == [number == 3 for number in range(6)]
    asked(capsys, "photos/3.png", "none.png", status=2)
    main(["predict", "model.safetensors", "photos"])
    assert "1 of 6 images cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.safetensors", "photos"], "none.safetensors cannot be read"),
        (["model.safetensors", "fotos"], "there is no fotos; . has photos"),
        (["model.safetensors", "photos", "--top", "4"], "the model has 3 classes"),
        (["model.safetensors", "photos", "--threshold", "90"], "a confidence is from 0 to 1"),
        (["model.safetensors", "photos", "--to", "none/table.csv"], "No such file"),
        (["model.safetensors", "photos", "--to", "photos"], "photos is no file that can be replaced"),
        (["model.safetensors", "photos", "--to", ""], ". is no file that can be replaced"),
        (["model.safetensors", "photos", "--explain", "model.safetensors"], "File exists"),
        (["model.safetensors", "photos", "--explain", "photos"], "photos holds images that are predicted"),
        (["model.safetensors", ""], "an empty path leads to no image"),
        (["", "photos"], "give the model.safetensors of a run"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(photos, capsys, arguments, message):
    assert main(["predict", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1


def test_file_is_whole_or_not_there(photos, tmp_path, model, capsys, monkeypatch):
    assert asked_for_file() == 0
    assert len(pd.read_csv("table.csv")) == 6
    (tmp_path / "table.csv").unlink()
    table = model.predict("photos/0.png")

    def interrupted(*_):
        yield table
        raise KeyboardInterrupt

    monkeypatch.setattr("fomo.model.Model.tables", interrupted)
    assert asked_for_file() == 130
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "photos"}
    assert capsys.readouterr().err == "fomo: interrupted\n"


def test_full_disk_is_said_without_advice_for_a_run(photos, tmp_path, capsys, monkeypatch):
    def full(*_, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(predictions, "write_predictions", full)
    assert asked_for_file() == 2
    assert capsys.readouterr().err == "fomo: [Errno 28] No space left on device; free some space\n"
    assert not (tmp_path / "table.csv").exists()


def asked_for_file() -> int:
    return main(["predict", "model.safetensors", "photos", "--to", "table.csv"])


def test_rows_are_written_as_they_are_computed_under_one_line_of_names(photos, model):
    written = []

    class File(io.StringIO):
        def write(self, text):
            written.append(text)
            return len(text)

    assert predictions.write_predictions(model, ["photos/0.png"] * 150, File()) == (150, 0)
    assert len(written) >= 3
    assert "".join(written).count("confidence") == 1
    assert "".join(written).count("\n") == 151
