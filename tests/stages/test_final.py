import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toys

import fomo
from fomo.networks.inference import predict
from fomo.stages import choosing, final
from fomo.stages.preprocessing import image_loader
from fomo.storage import write_json
from fomo.training.calibration import log_loss
from fomo.training.logistic import fit_linear, temper


def options_of(run):
    return fomo.compose(run).options.set_index(["heads", "views"])


def test_options_are_all_heads_with_one_view_and_two_the_simplest_first(finished):
    options = fomo.compose(finished.run).options
    assert list(zip(options["heads"], options["views"], strict=True)) == [
        (heads, views) for heads in ("probe", "finetuned", "with probe", "searched", "both") for views in (1, 2)
    ]
    first = pd.read_csv(finished.run.folder / "11_final" / "options.csv").query("network == 1 and adjustment == 0")
    accuracy = first.set_index(["heads", "views"])["validation_accuracy"]
    assert accuracy["searched", 1] == pytest.approx(fomo.train_head(finished.run).kept["validation_accuracy"])
    assert accuracy["finetuned", 1] == pytest.approx(fomo.finetune_best(finished.run).kept["validation_accuracy"])


@pytest.fixture
def turned(copied, dataset):
    """The toy run as if it had been trained on turned images, so that all views are tried."""
    path = copied.folder
    for stage in path.glob("*/stage.json"):
        stage.write_text(stage.read_text().replace('"rotation": 30.0', '"rotation": 180.0'))
    shutil.rmtree(path / "11_final")
    return toys.tiny_run(dataset, rotation=180.0)


def test_turned_views_are_tried_where_training_turned_the_images(turned):
    assert fomo.compose(turned).options["views"].tolist() == [1, 2, 8] * 5


@pytest.mark.parametrize(
    ("flip", "rotation", "sets"),
    [
        ("none", 0.0, [(0,)]),
        ("none", 90.0, [(0,), (0, 2, 4, 6)]),
        ("horizontal", 89.0, [(0,), (0, 1)]),
        ("horizontal", 90.0, [(0,), (0, 1), tuple(range(8))]),
        ("both", 0.0, [(0,), (0, 1), (0, 1, 4, 5)]),
        ("both", 180.0, [(0,), (0, 1), tuple(range(8))]),
    ],
)
def test_views_are_what_training_has_shown(flip, rotation, sets):
    assert final.view_sets(flip, rotation) == sets


@pytest.mark.parametrize(("heads", "views"), [("finetuned", 8), ("searched", 2), ("both", 1)])
def test_composed_model_is_the_option_taken_on_images(turned, heads, views):
    """What is told of an option is what its model computes, image by image."""
    path = turned.folder / "11_final" / "options.csv"
    fomo.compose(turned)
    options = pd.read_csv(path)
    taken = (options["heads"] == heads) & (options["views"] == views)
    write_json(path.with_name("chosen.json"), {"heads": heads, "views": views})  # as if it were the best
    composed, members = fomo.compose(turned), fomo.train_members(turned)
    classifier, expected = composed.model.classifier, options[taken & (options["adjustment"] == 0)].set_index("network")
    temperatures = choosing.limit(expected["temperature"].tolist())
    assert classifier.temperatures == composed.model.description["temperatures"] == temperatures
    assert len(members) == 2
    for number, (network, member) in enumerate(zip(classifier.networks, members, strict=True), start=1):
        assert len(network.heads) == (2 if heads == "both" else 1)
        assert network.views == tuple(range(views))
        assert composed.model.description["views"] == list(range(views))
        batches = image_loader(turned, member.data.part("validation"), network.backbone)
        logits, labels = predict(network, batches, turned.device)
        loss = log_loss(labels.numpy(), logits.double().numpy() / expected.loc[number, "temperature"])
        assert (logits.argmax(1) == labels).double().mean() == pytest.approx(
            expected.loc[number, "validation_accuracy"]
        )
        assert loss == pytest.approx(expected.loc[number, "validation_loss"], abs=1e-5)


def test_mean_with_the_probe_is_judged_by_a_probe_that_has_not_seen_the_images(turned):
    """For each network with a probe of its own, fitted to the train images of its division."""
    fomo.compose(turned)
    options, probe = pd.read_csv(turned.folder / "11_final" / "options.csv"), fomo.probe(turned)
    taken = options.query("heads == 'with probe' and views == 1 and adjustment == 0").set_index("network")
    for number, member in enumerate(fomo.train_members(turned), start=1):
        head = probe.head if number == 1 else probe.head_for(member.data, "train")
        parts = []
        for backbone, layer in ((member.network.backbone, member.network.head), (probe.backbone, head)):
            batches = image_loader(turned, member.data.part("validation"), backbone)
            features, labels = predict(backbone, batches, turned.device)
            logits = layer.cpu()(features).detach().double()
            parts.append((logits / taken.loc[number, "temperature"]).softmax(1))
        mean = (0.75 * parts[0] + 0.25 * parts[1]).log().numpy()
        assert log_loss(labels.numpy(), mean) == pytest.approx(taken.loc[number, "validation_loss"], abs=1e-5)


@pytest.fixture
def validated(copied, dataset):
    """The toy run, whose final model is yet to be chosen on validation."""
    for stage in ("11_final", "12_evaluation"):
        shutil.rmtree(copied.folder / stage)
    return toys.tiny_run(dataset, final="validation")


@pytest.mark.parametrize(("heads", "weights"), [("probe", [1.0]), ("with probe", [0.375, 0.375, 0.25])])
def test_probe_that_is_taken_has_learned_from_all_images(turned, monkeypatch, heads, weights):
    monkeypatch.setattr(final, "choose", lambda judged, config: {"heads": heads, "views": 2})
    classifier = fomo.compose(turned).model.classifier
    network = classifier.networks[-1]
    data, probe = fomo.preprocess(turned), fomo.probe(turned)
    assert all(map(torch.equal, network.backbone.parameters(), probe.backbone.parameters()))
    assert network.views == (0, 1)
    assert classifier.weights == weights
    assert len(classifier.networks) == len(classifier.temperatures) == len(weights)
    rows, labels = (np.concatenate([data.part(name)[place] for name in ("train", "validation")]) for place in (1, 2))
    layer = fit_linear(probe.features[np.sort(rows)], labels[np.argsort(rows)], 3, probe.strengths["C"].iloc[0])
    expected = temper(layer, probe.strengths["temperature"].iloc[0])
    assert torch.allclose(network.heads[0][0].weight, expected.weight, rtol=1e-3, atol=1e-2)
    assert not torch.allclose(network.heads[0][0].weight, probe.head[0].weight, rtol=1e-2)


def test_validation_chooses_what_the_paired_tests_say(validated):
    composed, members = fomo.compose(validated), enumerate(fomo.train_members(validated))
    judged = [final.judge_options(validated, member, first=not number)[1] for number, member in members]
    assert composed.chosen[["heads", "views"]].to_dict() == choosing.choose(judged, validated.config)


def test_report_takes_its_searched_head_whatever_is_better(copied):
    path = copied.folder / "11_final" / "options.csv"
    table = pd.read_csv(path)
    table.loc[table["adjustment"] == 1, "macro F1"] = 2.0  # as if that were better
    table.loc[table["heads"] == "both", "validation_loss"] = -1.0
    table.to_csv(path, index=False)
    plain = fomo.compose(copied)
    assert (plain.chosen["heads"], plain.chosen["views"], plain.adjustment) == ("searched", 1, 0)


def test_calibrated_loss_is_not_above_that_of_the_probabilities_as_they_come(finished):
    run = finished.run
    stored = pd.read_csv(run.folder / "11_final" / "options.csv")
    options = stored.query("network == 1 and adjustment == 0")
    options = options.set_index(["heads", "views"])
    features = fomo.extract_features(run)
    logits = fomo.train_head(run).model(torch.tensor(features.validation)).detach().double().numpy()
    assert options.loc[("searched", 1), "validation_loss"] <= log_loss(features.validation_labels, logits) + 1e-6
    assert np.isfinite(options.to_numpy()).all()


def test_options_are_told_by_the_mean_of_all_networks(finished):
    stored = pd.read_csv(finished.run.folder / "11_final" / "options.csv")
    mean = stored.groupby(["heads", "views"])["validation_loss"].mean()
    assert options_of(finished.run)["validation_loss"].to_dict() == pytest.approx(mean.to_dict())


def test_adjustment_taken_is_in_the_model_and_in_the_classes_that_it_names(validated, monkeypatch):
    """As if the second class were rare beyond measure, and naming it more often were better."""
    monkeypatch.setattr(final, "log_shares", lambda data: np.array([0.0, -1e6, 0.0]))
    fomo.compose(validated)
    path = validated.folder / "11_final" / "options.csv"
    table = pd.read_csv(path)
    table.loc[table["adjustment"] == 1, ["validation_accuracy", "macro F1"]] = 2.0
    table.to_csv(path, index=False)
    write_json(path.with_name("chosen.json"), {"heads": "searched", "views": 2})
    assert fomo.compose(validated).adjustment == 1
    evaluation = fomo.evaluate(validated)
    assert evaluation.metrics["model"].unique().tolist()[-2:] == ["most probable class", "final"]
    assert set(evaluation.predictions["final"]) == {1}
    assert set(evaluation.predictions["most probable class"]) != {1}
    assert evaluation.validation.set_index("metric")["value"]["accuracy"] == pytest.approx(1 / 3)
    images = sorted(Path(validated.config.dataset, "images_test").iterdir())
    assert set(fomo.load_model(evaluation.model_path).predict(images)["class"]) == {toys.CLASSES[1]}


def test_adjustments_are_judged_by_the_classes_that_they_name(copied, monkeypatch):
    shutil.rmtree(copied.folder / "11_final")
    monkeypatch.setattr(final, "log_shares", lambda data: np.array([-1e6, 0.0, -1e6]))
    fomo.compose(copied)
    table = pd.read_csv(copied.folder / "11_final" / "options.csv")
    first = table.query("network == 1 and adjustment == 1")
    assert first["macro F1"].min() < table.query("network == 1 and adjustment == 0")["macro F1"].min()
    assert (first["validation_accuracy"] <= 2 / 3 + 1e-9).all()  # the second class is no longer named
    assert first.groupby(["heads", "views"])["validation_loss"].nunique().eq(1).all()


def test_share_of_a_class_is_that_of_its_train_images(copied):
    data = fomo.preprocess(copied)
    counts = np.bincount(data.part("train")[2])
    assert np.exp(final.log_shares(data)).tolist() == pytest.approx((counts / counts.sum()).tolist())
