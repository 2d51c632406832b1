import shutil
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from PIL import Image
from sklearn.metrics import f1_score

import fomo
from fomo.config import UserError
from fomo.data.images import to_pixels
from fomo.networks.classifier import Network
from fomo.networks.inference import predict
from fomo.stages import final
from fomo.stages.evaluation import Steps
from fomo.stages.metrics import METRICS
from fomo.stages.preprocessing import image_loader
from fomo.stages.probing import Probe


def test_final_metrics_are_those_of_the_stored_predictions(finished):
    predictions = finished.evaluation.predictions
    metrics = finished.evaluation.metrics.set_index(["model", "metric"])["value"]
    for model in metrics.index.unique("model"):
        expected = f1_score(predictions["label"], predictions[model], average="macro")
        assert metrics[model, "macro F1"] == pytest.approx(expected)


def test_final_model_stands_beside_what_each_step_brought(finished):
    assert finished.evaluation.metrics["model"].unique().tolist() == [
        "majority class",
        "probe",
        "finetuned, first point",
        "finetuned",
        "with searched head",
        "one network",
        "final",
    ]
    assert finished.evaluation.confusion.to_numpy().sum() == len(finished.evaluation.predictions) == 24


def test_earlier_steps_are_judged_by_what_they_predict_alone(finished):
    run, predictions = finished.run, finished.evaluation.predictions
    network, head = fomo.finetune_best(run).model, fomo.train_head(run).model
    part = finished.evaluation.pixels, predictions["row"], predictions["label"]
    features, _ = predict(network.backbone, image_loader(run, part, network.backbone), run.device)
    assert predictions["finetuned"].tolist() == network.head(features).argmax(1).tolist()
    assert predictions["with searched head"].tolist() == head(features).argmax(1).tolist()


def test_probe_that_is_the_final_model_is_judged_as_such(copied, dataset, monkeypatch):
    monkeypatch.setattr(final, "choose", lambda judged, config: {"heads": "probe", "views": 1})
    for stage in ("11_final", "12_evaluation"):
        shutil.rmtree(copied.folder / stage)
    run = toys.tiny_run(dataset, final="validation")
    evaluation, tested = fomo.evaluate(run), fomo.probe(run)
    assert fomo.compose(run).chosen["heads"] == "probe"
    assert evaluation.metrics["model"].unique().tolist()[-2:] == ["with searched head", "final"]
    predictions = evaluation.predictions
    assert predictions["final"].tolist() == predictions["probe"].tolist()
    part = evaluation.pixels, predictions["row"], predictions["label"]
    logits, _ = predict(tested.model, image_loader(run, part, tested.backbone), run.device)
    assert predictions["probe"].tolist() == logits.argmax(1).tolist()
    head, network = fomo.train_head(run).model, fomo.finetune_best(run).model
    features, _ = predict(network.backbone, image_loader(run, part, network.backbone), run.device)
    assert predictions["finetuned"].tolist() == network.head(features).argmax(1).tolist()
    assert predictions["with searched head"].tolist() == head(features).argmax(1).tolist()


def test_validation_metrics_of_a_probe_are_of_one_that_has_not_learned_from_these_images(copied, dataset, monkeypatch):
    """As if the layer that is fitted to all images were worth nothing."""
    monkeypatch.setattr(final, "choose", lambda judged, config: {"heads": "probe", "views": 1})
    monkeypatch.setattr(Probe, "head_for", lambda self, data, *parts: deepcopy(self.head).apply(forget))
    for stage in ("11_final", "12_evaluation"):
        shutil.rmtree(copied.folder / stage)
    run = toys.tiny_run(dataset, final="validation")
    evaluation = fomo.evaluate(run)
    assert evaluation.predictions["final"].nunique() == 1
    accuracy = evaluation.validation.set_index("metric")["value"]["accuracy"]
    assert accuracy == pytest.approx(fomo.compose(run).chosen["validation_accuracy"])
    assert accuracy > 0.5


def forget(layer):
    for values in layer.parameters():
        torch.nn.init.zeros_(values)


def test_earlier_steps_see_the_image_as_it_is_whatever_views_the_final_model_has(finished):
    model = fomo.finetune_best(finished.run).model
    steps = Steps(Network(model.backbone, [model.head], views=(0, 1)), [model.head]).eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        both, alone = steps(images)
        assert torch.allclose(alone, model(images), atol=1e-6)
        assert torch.equal(both, steps.network(images))
    assert not torch.allclose(both, alone.log_softmax(1), atol=1e-4)


def test_final_models_validation_metrics_are_those_that_it_was_chosen_for(finished):
    validation = finished.evaluation.validation.set_index("metric")["value"]
    assert list(validation.index) == list(METRICS)
    chosen = fomo.compose(finished.run).chosen[["heads", "views"]]
    options = pd.read_csv(finished.run.folder / "11_final" / "options.csv").query("network == 1 and adjustment == 0")
    first = options.set_index(["heads", "views"]).loc[tuple(chosen)]  # it has not seen these images
    assert validation["accuracy"] == pytest.approx(first["validation_accuracy"])
    assert validation["macro F1"] == pytest.approx(first["macro F1"])


def test_calibration_is_that_of_the_stored_confidences(finished):
    calibration = finished.evaluation.calibration.set_index("probabilities")
    assert list(calibration.index) == ["as they come", "calibrated"]
    scored = finished.evaluation.predictions
    places = pd.cut(scored["confidence"], np.linspace(0, 1, 16))
    groups = (scored["confidence"] - (scored["label"] == scored["final"])).groupby(places, observed=True).sum()
    assert calibration.loc["calibrated", "calibration_error"] == pytest.approx(
        groups.abs().sum() / len(scored), abs=1e-6
    )


def stored(run, name: str) -> pd.DataFrame:
    return pd.read_csv(run.folder / "12_evaluation" / f"{name}.csv")


def test_metrics_of_a_labelled_test_split_are_taken_there(finished):
    assert finished.evaluation.split == "test"
    assert finished.evaluation.predictions["file"].str.startswith("images_test/").all()


def test_predictions_are_written_in_the_order_of_the_test_table(finished, dataset):
    predictions, scored = stored(finished.run, "predictions"), finished.evaluation.predictions
    names = "images_test/" + pd.read_csv(dataset / "test.csv")["image_file_name"]
    assert predictions["file"].tolist() == names.tolist()
    assert list(predictions.columns) == ["file", "prediction", "class", "confidence"]
    assert predictions["prediction"].tolist() == scored["final"].tolist()
    assert predictions["class"].tolist() == [toys.CLASSES[number] for number in predictions["prediction"]]
    numbers = np.load(finished.run.folder / "12_evaluation" / "predictions.npy")
    assert numbers.dtype == np.int64
    assert numbers.tolist() == predictions["prediction"].tolist()


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """A finished run on a data set whose test labels are hidden and whose test table is in no order; its folder."""
    root = tmp_path_factory.mktemp("hidden")
    folder = toys.write_dataset(root / "own", train=5, test=2)
    toys.write_csv(folder, "test", [f"{number:03}.png" for number in (4, 0, 5, 2, 1, 3)], [""] * 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOMO_RUNS", str(root / "runs"))
        run = toys.tiny_run(folder, **toys.SHORT)
        return folder, run, fomo.evaluate(run)


def test_hidden_labels_leave_metrics_of_validation_that_are_called_so(hidden):
    evaluation = hidden[2]
    validation = fomo.preprocess(hidden[1]).images.query("split == 'validation'")
    assert evaluation.split == "validation"
    assert evaluation.predictions["file"].tolist() == validation["file"].tolist()
    assert evaluation.predictions["label"].tolist() == validation["label"].tolist()
    assert evaluation.confusion.to_numpy().sum() == 3
    assert "one network" not in evaluation.metrics["model"].to_numpy()
    metrics = evaluation.metrics.query("model == 'final'").set_index("metric")["value"]
    assert metrics.tolist() == pytest.approx(evaluation.validation.set_index("metric")["value"].tolist())


def test_rows_of_the_predictions_are_places_in_the_pixels(hidden):
    folder, _, evaluation = hidden
    for image in evaluation.predictions.itertuples():
        with Image.open(folder / image.file) as opened:
            assert np.array_equal(evaluation.pixels[image.row], to_pixels(opened, 32, 3))


def test_predictions_for_hidden_labels_are_those_of_the_model_in_the_order_of_the_table(hidden):
    folder, run, evaluation = hidden
    files = [folder / "images_test" / f"{number:03}.png" for number in (4, 0, 5, 2, 1, 3)]
    expected = fomo.load_model(evaluation.model_path).predict(files)
    predictions = stored(run, "predictions")
    assert predictions["class"].tolist() == expected["class"].tolist()
    assert predictions["confidence"].tolist() == pytest.approx(expected["confidence"].tolist(), abs=1e-4)
    numbers = np.load(run.folder / "12_evaluation" / "predictions.npy")
    assert [toys.CLASSES[number] for number in numbers] == expected["class"].tolist()


def test_second_call_reads_the_metrics_of_validation_from_the_store(hidden):
    again = fomo.evaluate(hidden[1])
    assert again.split == "validation"
    pd.testing.assert_frame_equal(again.metrics, hidden[2].metrics)


def test_class_folder_goes_from_end_to_end_and_keeps_its_names(tmp_path):
    folder = toys.write_class_folders(tmp_path / "folders", count=8)
    evaluation = fomo.evaluate(toys.tiny_run(folder, **toys.SHORT))
    names = ["bottom", "middle", "top"]
    assert evaluation.split == "test"
    assert list(evaluation.confusion.index) == evaluation.per_class["class"].tolist() == names
    assert evaluation.confusion.to_numpy().sum() == 6
    assert [file.split("/")[0] for file in evaluation.predictions["file"]] == [
        names[label] for label in evaluation.predictions["label"]
    ]
    assert fomo.load_model(evaluation.model_path).classes == names


def test_test_image_that_cannot_be_read_has_no_prediction_and_no_score_and_none_at_all_is_an_error(tmp_path):
    folder = toys.write_dataset(tmp_path / "damaged", train=5, test=2)
    images = {file: file.read_bytes() for file in (folder / "images_test").iterdir()}
    for file in images:
        file.write_bytes(b"text")
    run = toys.tiny_run(folder, on_bad="skip", **toys.SHORT)
    with pytest.raises(UserError, match=r"none of the 6 test images of .* can be read"):
        fomo.evaluate(run)
    for file, content in images.items():
        if file.name != "003.png":
            file.write_bytes(content)
    run = toys.tiny_run(folder, on_bad="skip", **toys.SHORT)
    evaluation = fomo.evaluate(run)
    assert len(evaluation.predictions) == len(stored(run, "predictions")) == 5
    numbers = np.load(run.folder / "12_evaluation" / "predictions.npy")
    assert [number == -1 for number in numbers] == [row == 3 for row in range(6)]
