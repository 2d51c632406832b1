import pytest
import torch
import toys

import fomo
from fomo.finetuning import FINETUNING_FIRST, untrained
from fomo.training import DivergedError

LOSSES = ["train_loss", "validation_loss", "validation_accuracy"]


def test_first_finetuning_is_the_studys_first_trial(finished):
    trial = fomo.optimize_finetuning(finished.run).trials.iloc[0]
    trained = fomo.finetune(finished.run)
    assert trained.history.iloc[0][LOSSES].tolist() == trial[LOSSES].tolist()
    assert trained.configuration == FINETUNING_FIRST


def test_winner_is_the_best_trial_trained_on(finished):
    study = fomo.optimize_finetuning(finished.run)
    winner = fomo.finetune_best(finished.run)
    assert winner.configuration == study.configuration(study.best["trial"])
    assert winner.history.iloc[0][LOSSES].tolist() == study.best[LOSSES].tolist()
    assert len(winner.history) == 3


def test_stages_before_the_winners_layer_keep_their_first_weights(finished):
    winner = fomo.finetune_best(finished.run)
    start = untrained(finished.run, fomo.preprocess(finished.run)).backbone
    fixed = winner.configuration["layer"] - 1
    for number, (stage, first) in enumerate(zip(winner.model.backbone.stages, start.stages, strict=True)):
        weights = [[w for module in modules for w in module.parameters(recurse=False)] for modules in (stage, first)]
        assert all(map(torch.equal, *weights)) == (number < fixed)


def test_finetuning_that_diverges_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(FINETUNING_FIRST, "lr", 1e38)
    folder = toys.write_dataset(tmp_path / "own", train=5, test=2)
    with pytest.raises(DivergedError, match="a smaller learning rate may help"):
        fomo.finetune(toys.tiny_run(folder))
