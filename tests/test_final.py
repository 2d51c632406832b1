import numpy as np
import pandas as pd
import pytest
import torch

import fomo
from fomo import final
from fomo.metrics import log_loss
from fomo.preprocessing import image_loader
from fomo.training import predict


def options_of(run):
    return fomo.compose(run).options.set_index(["heads", "views"])


def test_options_are_all_heads_with_one_view_and_two(finished):
    options = fomo.compose(finished.run).options
    assert list(zip(options["views"], options["heads"], strict=True)) == [
        (views, heads) for views in (1, 2) for heads in ("searched", "finetuned", "both")
    ]
    first = pd.read_csv(finished.run.folder / "10_final" / "options.csv").query("network == 1")
    accuracy = first.set_index(["heads", "views"])["validation_accuracy"]
    assert accuracy["searched", 1] == pytest.approx(fomo.train_head(finished.run).kept["validation_accuracy"])
    assert accuracy["finetuned", 1] == pytest.approx(fomo.finetune_best(finished.run).kept["validation_accuracy"])


@pytest.mark.parametrize("heads", final.HEADS)
@pytest.mark.parametrize("views", final.VIEWS)
def test_composed_model_is_the_option_taken_on_images(copied, heads, views):
    """What is told of an option is what its model computes, image by image."""
    path = copied.folder / "10_final" / "options.csv"
    fomo.compose(copied)
    options = pd.read_csv(path)
    taken = (options["heads"] == heads) & (options["views"] == views)
    options.loc[taken, "validation_loss"] -= 100  # as if it were the best
    options.to_csv(path, index=False)
    composed, members = fomo.compose(copied), fomo.train_members(copied)
    classifier, expected = composed.model.classifier, options[taken].set_index("network")
    assert classifier.temperatures == composed.model.description["temperatures"] == expected["temperature"].tolist()
    assert len(classifier.networks) == len(members) == 2
    for number, (network, member) in enumerate(zip(classifier.networks, members, strict=True), start=1):
        assert len(network.heads) == (2 if heads == "both" else 1)
        assert network.mirror == composed.model.description["mirror"] == (views == 2)
        batches = image_loader(copied, member.data.part("validation"), network.backbone)
        logits, labels = predict(network, batches, copied.device)
        loss = log_loss(labels.numpy(), logits.double().numpy() / expected.loc[number, "temperature"])
        assert (logits.argmax(1) == labels).double().mean() == pytest.approx(
            expected.loc[number, "validation_accuracy"]
        )
        assert loss == pytest.approx(expected.loc[number, "validation_loss"] + 100, abs=1e-5)


def test_validation_chooses_the_least_loss_and_the_report_its_searched_head(finished, copied, dataset):
    import toys

    composed = fomo.compose(finished.run)
    assert composed.chosen["validation_loss"] == composed.options["validation_loss"].min()
    path = copied.folder / "10_final" / "stage.json"
    path.write_text(path.read_text().replace('"validation"', '"searched"'))
    chosen = fomo.compose(toys.tiny_run(dataset, final="searched")).chosen
    assert (chosen["heads"], chosen["views"]) == ("searched", 1)


def test_calibrated_loss_is_not_above_that_of_the_probabilities_as_they_come(finished):
    run = finished.run
    options = pd.read_csv(run.folder / "10_final" / "options.csv").query("network == 1").set_index(["heads", "views"])
    features = fomo.extract_features(run)
    logits = fomo.train_head(run).model(torch.tensor(features.validation)).detach().double().numpy()
    assert options.loc[("searched", 1), "validation_loss"] <= log_loss(features.validation_labels, logits) + 1e-6
    assert np.isfinite(options.to_numpy()).all()


def test_options_are_told_by_the_mean_of_all_networks(finished):
    stored = pd.read_csv(finished.run.folder / "10_final" / "options.csv")
    mean = stored.groupby(["heads", "views"])["validation_loss"].mean()
    assert options_of(finished.run)["validation_loss"].to_dict() == pytest.approx(mean.to_dict())
