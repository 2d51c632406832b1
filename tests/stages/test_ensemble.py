import shutil

import pandas as pd
import pytest
import torch
import toys

import fomo
from fomo.config import UserError
from fomo.stages.preprocessing import image_loader
from fomo.storage import read_json
from fomo.training.loop import evaluate


def test_each_network_has_its_own_division_and_knows_all_images_together(finished):
    data = [member.data.images.set_index("file") for member in fomo.train_members(finished.run)]
    assert data[0].index.sort_values().equals(data[1].index.sort_values())
    validation = [set(images.index[images["split"] == "validation"]) for images in data]
    assert len(validation[0]) == len(validation[1]) == 12
    assert validation[0] != validation[1]


def test_rows_stay_with_their_images_in_every_division(finished):
    first, second = (member.data for member in fomo.train_members(finished.run))
    columns = ["label", "row"]
    pd.testing.assert_frame_equal(
        first.images.set_index("file")[columns].sort_index(), second.images.set_index("file")[columns].sort_index()
    )


def test_second_network_is_another_one_kept_at_its_own_best_epoch(finished):
    run = finished.run
    first, second = fomo.train_members(run)
    assert not torch.equal(first.network.head[0].weight, second.network.head[0].weight)
    history = pd.read_csv(run.folder / "10_ensemble" / "history_2.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    batches = image_loader(run, second.data.part("validation"), second.network.backbone)
    loss, accuracy = evaluate(second.network, batches, run.device)
    best = history.loc[history["validation_loss"].idxmin()]
    assert (loss, accuracy) == pytest.approx((best["validation_loss"], best["validation_accuracy"]), abs=1e-5)


def test_finished_run_can_be_given_a_further_network(copied, finished, dataset):
    """It ends as if all had been asked for at once, has trained the new one only, and cost what all of them took."""
    folder, before = copied.folder / "10_ensemble", finished.run.folder / "10_ensemble"
    for later in ("11_final", "12_evaluation"):
        shutil.rmtree(copied.folder / later)
    run = toys.tiny_run(dataset, members=3)
    assert len(fomo.train_members(run)) == 3
    old, stored = (read_json(path / "stage.json") for path in (before, folder))
    assert stored["done"]
    assert stored["seconds"] > old["seconds"]
    assert not stored["resumed"]
    for path in before.glob("*_2.*"):
        assert (folder / path.name).stat().st_mtime_ns == path.stat().st_mtime_ns
    extended = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "stage.json"}
    shutil.rmtree(folder)
    fomo.train_members(run)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "stage.json"} == extended
    assert "weights_3.pt" in extended


def test_number_of_networks_is_refused_before_any_is_trained(copied, dataset):
    with pytest.raises(UserError, match=r"11_final was .*members: stored 2, asked 3.* delete this folder and those of"):
        fomo.train_members(toys.tiny_run(dataset, members=3))
    assert not (copied.folder / "10_ensemble" / "weights_3.pt").exists()


def test_one_network_is_the_one_that_all_choices_were_made_on(tmp_path):
    folder = toys.write_dataset(tmp_path / "own", train=5, test=2)
    run = toys.tiny_run(folder, members=1, **toys.SHORT)
    (only,) = fomo.train_members(run)
    assert torch.equal(only.network.head[0].weight, fomo.finetune_best(run).model.head[0].weight)
    metrics = fomo.evaluate(run).metrics
    assert "one network" not in metrics["model"].to_numpy()
    assert len(fomo.load_model(fomo.evaluate(run).model_path).classifier.networks) == 1
