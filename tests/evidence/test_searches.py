"""What is judged of the searches, where it can be told without hours of training."""

import pandas as pd
import pytest
import torch

from fomo.evidence import searches as evidence
from fomo.networks.heads import HEADS


def test_mean_of_heads_is_judged_on_images_that_did_not_rank_them(finished, tmp_path, monkeypatch):
    """Three useful heads, each wrong on images of its own; the others always name the first class."""
    labels = torch.arange(240) % 3
    logits = torch.zeros(len(HEADS), 240, 3)
    logits[:, :, 0] = 0.1
    for head in range(3):
        right = torch.arange(240) % 4 != head
        logits[5 + head, right, labels[right]] = 8.0
        logits[5 + head, ~right, (labels[~right] + 1) % 3] = 4.0
    monkeypatch.setattr(evidence, "train_alone", lambda *_: (None, logits, labels))
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    table = evidence.ensembles(finished.run, counts=(1, 3))
    assert table.loc[1, "accuracy"] == pytest.approx(0.75, abs=0.06)
    assert table.loc[3, "accuracy"] == 1
    assert table.loc[3, "gain"] == pytest.approx(1 - table.loc[1, "accuracy"])
    assert table.loc[1, "gain"] == 0
    assert table.loc[3, "loss"] < table.loc[1, "loss"]
    stored = pd.read_csv(tmp_path / "head_ensembles.csv")
    assert len(stored) == 2 * finished.run.config.head_seeds
