import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toys

import fomo
from fomo.networks.inference import predict
from fomo.stages import final
from fomo.stages.metrics import log_loss
from fomo.stages.preprocessing import image_loader


def options_of(run):
    return fomo.compose(run).options.set_index(["heads", "views"])


def test_options_are_all_heads_with_one_view_and_two(finished):
    options = fomo.compose(finished.run).options
    assert list(zip(options["views"], options["heads"], strict=True)) == [
        (views, heads) for views in (1, 2) for heads in ("searched", "finetuned", "both")
    ]
    first = pd.read_csv(finished.run.folder / "10_final" / "options.csv").query("network == 1 and adjustment == 0")
    accuracy = first.set_index(["heads", "views"])["validation_accuracy"]
    assert accuracy["searched", 1] == pytest.approx(fomo.train_head(finished.run).kept["validation_accuracy"])
    assert accuracy["finetuned", 1] == pytest.approx(fomo.finetune_best(finished.run).kept["validation_accuracy"])


@pytest.fixture
def turned(copied, dataset):
    """The toy run as if it had been trained on turned images, so that all views are tried."""
    path = copied.folder
    for stage in path.glob("*/stage.json"):
        stage.write_text(stage.read_text().replace('"rotation": 30.0', '"rotation": 180.0'))
    shutil.rmtree(path / "10_final")
    return toys.tiny_run(dataset, rotation=180.0)


def test_turned_views_are_tried_where_training_turned_the_images(turned):
    assert fomo.compose(turned).options["views"].tolist() == [1, 1, 1, 2, 2, 2, 8, 8, 8]


@pytest.mark.parametrize(("heads", "views"), list(zip(final.HEADS, final.VIEWS[::-1], strict=True)))
def test_composed_model_is_the_option_taken_on_images(turned, heads, views):
    """What is told of an option is what its model computes, image by image."""
    path = turned.folder / "10_final" / "options.csv"
    fomo.compose(turned)
    options = pd.read_csv(path)
    taken = (options["heads"] == heads) & (options["views"] == views)
    options.loc[taken, "validation_loss"] -= 100  # as if it were the best
    options.to_csv(path, index=False)
    composed, members = fomo.compose(turned), fomo.train_members(turned)
    classifier, expected = composed.model.classifier, options[taken & (options["adjustment"] == 0)].set_index("network")
    temperatures = final.limit(expected["temperature"].tolist())
    assert classifier.temperatures == composed.model.description["temperatures"] == temperatures
    assert len(classifier.networks) == len(members) == 2
    for number, (network, member) in enumerate(zip(classifier.networks, members, strict=True), start=1):
        assert len(network.heads) == (2 if heads == "both" else 1)
        assert network.views == composed.model.description["views"] == views
        batches = image_loader(turned, member.data.part("validation"), network.backbone)
        logits, labels = predict(network, batches, turned.device)
        loss = log_loss(labels.numpy(), logits.double().numpy() / expected.loc[number, "temperature"])
        assert (logits.argmax(1) == labels).double().mean() == pytest.approx(
            expected.loc[number, "validation_accuracy"]
        )
        assert loss == pytest.approx(expected.loc[number, "validation_loss"] + 100, abs=1e-5)


def test_validation_chooses_the_least_loss_and_the_report_its_searched_head(finished, copied, dataset):
    composed = fomo.compose(finished.run)
    assert composed.chosen["validation_loss"] == composed.options["validation_loss"].min()
    path = copied.folder / "10_final" / "stage.json"
    path.write_text(path.read_text().replace('"validation"', '"searched"'))
    table = pd.read_csv(path.with_name("options.csv"))
    table.loc[table["adjustment"] == 1, "macro F1"] = 2.0  # as if that were better
    table.to_csv(path.with_name("options.csv"), index=False)
    plain = fomo.compose(toys.tiny_run(dataset, final="searched"))
    assert (plain.chosen["heads"], plain.chosen["views"], plain.adjustment) == ("searched", 1, 0)


def test_calibrated_loss_is_not_above_that_of_the_probabilities_as_they_come(finished):
    run = finished.run
    stored = pd.read_csv(run.folder / "10_final" / "options.csv")
    options = stored.query("network == 1 and adjustment == 0")
    options = options.set_index(["heads", "views"])
    features = fomo.extract_features(run)
    logits = fomo.train_head(run).model(torch.tensor(features.validation)).detach().double().numpy()
    assert options.loc[("searched", 1), "validation_loss"] <= log_loss(features.validation_labels, logits) + 1e-6
    assert np.isfinite(options.to_numpy()).all()


def test_options_are_told_by_the_mean_of_all_networks(finished):
    stored = pd.read_csv(finished.run.folder / "10_final" / "options.csv")
    mean = stored.groupby(["heads", "views"])["validation_loss"].mean()
    assert options_of(finished.run)["validation_loss"].to_dict() == pytest.approx(mean.to_dict())


def test_several_networks_are_made_surer_but_not_less_sure():
    assert final.limit([1.5]) == [1.5]
    assert final.limit([1.5, 0.8, 1.0]) == [1.0, 0.8, 1.0]


@pytest.mark.parametrize(
    ("accuracy", "f1", "taken"),
    [
        ((0.8, 0.8, 0.8), (0.6, 0.6, 0.6), 0.0),  # of equals the first
        ((0.8, 0.81, 0.8), (0.6, 0.61, 0.62), 0.5),
        ((0.8, 0.81, 0.79), (0.6, 0.61, 0.7), 0.25),  # the last one costs accuracy
        ((0.8, 0.79, 0.78), (0.6, 0.7, 0.7), 0.0),
        ((0.9661458333333334, 0.9661458333333333, 0.96), (0.6, 0.61, 0.7), 0.25),  # equal but for the rounding
    ],
)
def test_adjustment_of_best_f1_is_taken_that_does_not_cost_accuracy(accuracy, f1, taken):
    columns = {"adjustment": [0.0, 0.25, 0.5], "validation_accuracy": accuracy, "macro F1": f1}
    assert final.choose_adjustment(pd.DataFrame(columns)) == taken


def test_adjustment_taken_is_in_the_model_and_in_the_classes_that_it_names(copied, monkeypatch):
    """As if the second class were rare beyond measure, and naming it more often were better."""
    monkeypatch.setattr(final, "log_shares", lambda data: np.array([0.0, -1e6, 0.0]))
    path = copied.folder / "10_final" / "options.csv"
    table = pd.read_csv(path)
    table.loc[table["adjustment"] == 1, ["validation_accuracy", "macro F1"]] = 2.0
    table.to_csv(path, index=False)
    assert fomo.compose(copied).adjustment == 1
    shutil.rmtree(copied.folder / "11_evaluation")
    evaluation = fomo.evaluate(copied)
    assert evaluation.metrics["model"].unique().tolist()[-2:] == ["most probable class", "final"]
    assert set(evaluation.predictions["final"]) == {1}
    assert set(evaluation.predictions["most probable class"]) != {1}
    assert evaluation.validation.set_index("metric")["value"]["accuracy"] == pytest.approx(1 / 3)
    images = sorted(Path(copied.config.dataset, "images_test").iterdir())
    assert set(fomo.load_model(evaluation.model_path).predict(images)["class"]) == {toys.CLASSES[1]}


def test_adjustments_are_judged_by_the_classes_that_they_name(copied, monkeypatch):
    shutil.rmtree(copied.folder / "10_final")
    monkeypatch.setattr(final, "log_shares", lambda data: np.array([-1e6, 0.0, -1e6]))
    fomo.compose(copied)
    table = pd.read_csv(copied.folder / "10_final" / "options.csv")
    first = table.query("network == 1 and adjustment == 1")
    assert first["macro F1"].min() < table.query("network == 1 and adjustment == 0")["macro F1"].min()
    assert (first["validation_accuracy"] <= 2 / 3 + 1e-9).all()  # the second class is no longer named
    assert first.groupby(["heads", "views"])["validation_loss"].nunique().eq(1).all()


def test_share_of_a_class_is_that_of_its_train_images(copied):
    data = fomo.preprocess(copied)
    counts = np.bincount(data.part("train")[2])
    assert np.exp(final.log_shares(data)).tolist() == pytest.approx((counts / counts.sum()).tolist())
