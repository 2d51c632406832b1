import numpy as np
import torch
import toys

import fomo
from fomo.heads import HEADS
from fomo.preprocessing import image_loader
from fomo.training import predict

LOSSES = ["train_loss", "validation_loss", "validation_accuracy"]


def test_features_are_what_the_finetuned_backbone_computes(finished):
    features = fomo.extract_features(finished.run)
    backbone = fomo.finetune_best(finished.run).model.backbone
    part = fomo.preprocess(finished.run).part("validation")
    computed, labels = predict(backbone, image_loader(finished.run, part, backbone), torch.device("cpu"))
    assert np.allclose(features.validation, computed, atol=1e-5)
    assert features.validation_labels.tolist() == labels.tolist()


def test_features_are_read_as_a_memory_map(finished):
    assert isinstance(fomo.extract_features(finished.run).train, np.memmap)


def test_derived_head_is_the_operation_of_largest_alpha(finished):
    search = fomo.search_head(finished.run)
    alphas = search.history.filter(like="alpha_")
    assert search.head == HEADS[int(alphas.iloc[-1].argmax())]
    assert search.ranking["alpha"].tolist() == alphas.iloc[-1].tolist()
    assert len(alphas) == 1 + toys.SETTINGS["darts_epochs"]
    assert search.judgement().notna().all()


def test_final_head_is_the_best_trial_of_the_second_study(finished):
    study = fomo.tune_head(finished.run)
    assert fomo.train_head(finished.run).kept[LOSSES].tolist() == study.best[LOSSES].tolist()
