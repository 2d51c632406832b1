import numpy as np
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
    accuracy = options_of(finished.run)["validation_accuracy"]
    assert accuracy["searched", 1] == pytest.approx(fomo.train_head(finished.run).kept["validation_accuracy"])
    assert accuracy["finetuned", 1] == pytest.approx(fomo.finetune_best(finished.run).kept["validation_accuracy"])


@pytest.mark.parametrize("heads", final.HEADS)
@pytest.mark.parametrize("views", final.VIEWS)
def test_composed_model_is_the_option_taken_on_images(copied, heads, views):
    """What is told of an option is what its model computes, image by image."""
    path = copied.folder / "9_final" / "options.csv"
    options = fomo.compose(copied).options
    taken = (options["heads"] == heads) & (options["views"] == views)
    options.loc[taken, "validation_loss"] -= 100  # as if it were the best
    options.to_csv(path, index=False)
    composed, expected = fomo.compose(copied), options_of(copied).loc[heads, views]
    classifier, data = composed.model.classifier, fomo.preprocess(copied)
    assert len(classifier.heads) == (2 if heads == "both" else 1)
    assert classifier.mirror == composed.model.description["mirror"] == (views == 2)
    batches = image_loader(copied, data.part("validation"), classifier.backbone)
    logits, labels = predict(classifier, batches, copied.device)
    assert (logits.argmax(1) == labels).double().mean() == pytest.approx(expected["validation_accuracy"])
    assert log_loss(labels.numpy(), logits.double().numpy()) == pytest.approx(
        expected["validation_loss"] + 100, abs=1e-5
    )
    assert composed.chosen["temperature"] == composed.model.description["temperature"] == classifier.temperature


def test_validation_chooses_the_least_loss_and_the_report_its_searched_head(finished, copied, dataset):
    import toys

    composed = fomo.compose(finished.run)
    assert composed.chosen["validation_loss"] == composed.options["validation_loss"].min()
    path = copied.folder / "9_final" / "stage.json"
    path.write_text(path.read_text().replace('"validation"', '"searched"'))
    chosen = fomo.compose(toys.tiny_run(dataset, final="searched")).chosen
    assert (chosen["heads"], chosen["views"]) == ("searched", 1)


def test_calibrated_loss_is_not_above_that_of_the_probabilities_as_they_come(finished):
    options, run = options_of(finished.run), finished.run
    features = fomo.extract_features(run)
    logits = fomo.train_head(run).model(torch.tensor(features.validation)).detach().double().numpy()
    assert options.loc[("searched", 1), "validation_loss"] <= log_loss(features.validation_labels, logits) + 1e-6
    assert np.isfinite(options.to_numpy()).all()
