import numpy as np
import pandas as pd
import pytest
import torch

from fomo.data.batches import FeatureBatches, loader
from fomo.networks.bank import HeadBank
from fomo.networks.heads import LINEAR, Head
from fomo.training.halving import best_epochs, rungs, successive_halving

CPU = torch.device("cpu")
HOPELESS = Head(1, "Sigmoid", 4)  # one unit, three times squashed: it learns next to nothing in a few epochs


def halved(heads, epochs=8, lr=0.03, seed=0, noise=0.0):
    """The scores of `heads` on features whose first three tell the class, but for a share of `noise`."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(160, 6, generator=generator)
    labels = features[:, :3].argmax(1)
    wrong = torch.rand(160, generator=generator) < noise
    labels = torch.where(wrong, torch.randint(3, (160,), generator=generator), labels).numpy()
    parts = [FeatureBatches(features[rows].numpy(), labels[rows]) for rows in (slice(100), slice(100, None))]
    torch.manual_seed(1)
    bank = HeadBank(heads, 6, 3)
    loaders = loader(parts[0], 20, torch.Generator()), loader(parts[1], 20)
    return successive_halving(bank, *loaders, epochs, lr=lr, seed=seed, device=CPU)


def test_rungs_add_up_to_the_epochs():
    for epochs in range(1, 40):
        found = rungs(epochs)
        assert sum(found) == epochs
        assert all(length >= 1 for length in found)


def test_each_rung_doubles_the_epochs_so_far():
    assert [rungs(epochs) for epochs in (1, 2, 4, 5, 8)] == [[1], [1, 1], [1, 1, 2], [1, 1, 2, 1], [1, 1, 2, 4]]


def test_each_model_is_judged_at_its_own_best_epoch():
    curves = pd.DataFrame({"epoch": [1, 1, 2, 2], "model": [0, 1, 0, 1]})
    curves["validation_loss"] = [0.5, 0.3, 0.4, 0.6]
    curves["validation_accuracy"] = [0.7, 0.9, 0.8, 0.95]
    assert best_epochs(curves).tolist() == [0.8, 0.9]
    shuffled = curves.sample(frac=1, random_state=1)
    assert best_epochs(shuffled).tolist() == [0.8, 0.9]


def test_epochs_of_no_finite_loss_are_left_out_and_a_diverged_model_has_zero():
    curves = pd.DataFrame({"epoch": [1, 1, 1, 2, 2, 2], "model": [0, 1, 2] * 2})
    curves["validation_loss"] = [0.5, np.nan, np.nan, np.nan, np.inf, 0.4]
    curves["validation_accuracy"] = [0.7, 0.3, 0.3, 0.2, 0.3, 0.6]
    assert best_epochs(curves).tolist() == [0.7, 0.0, 0.6]


@pytest.mark.parametrize("place", [0, 3, 5])
def test_halving_finds_the_one_head_that_learns(place):
    heads = [HOPELESS] * 6
    heads[place] = LINEAR
    scores = halved(heads)
    assert scores.argmax() == place
    assert scores[place] > 3.8  # three halvings, and nearly all images right


def test_half_of_the_heads_survive_each_halving():
    scores = halved([LINEAR, Head(8, "ReLU", 2), Head(8, "Tanh", 3), HOPELESS] * 2 + [LINEAR], noise=0.3)
    assert (scores % 1 < 0.95).all()  # so that the whole part is the number of halvings
    assert np.bincount(scores.astype(int)).tolist() == [4, 2, 1, 2]  # 9, 5, 3, 2 train on


def test_all_heads_are_trained_at_least_once():
    assert (halved([HOPELESS] * 4) > 0).all()


def test_last_heads_are_trained_for_all_epochs(monkeypatch):
    trained = []

    def fit_bank(bank, configurations, train, validation, epochs, **options):
        trained.append((len(bank.heads), epochs))
        accuracy = np.linspace(0.9, 0.1, len(bank.heads))
        rows = {"epoch": 1, "model": range(len(bank.heads)), "validation_loss": 1.0, "validation_accuracy": accuracy}
        return pd.DataFrame(rows)

    monkeypatch.setattr("fomo.training.halving.fit_bank", fit_bank)
    scores = halved([LINEAR] * 8, epochs=8)
    assert trained == [(8, 1), (4, 1), (2, 2), (1, 4)]
    assert scores.argmax() == 0


def test_survivors_train_on_and_do_not_begin_anew():
    """With a learning rate of zero, the accuracy of a survivor stays what it was with its first weights."""
    first, all_rungs = halved([LINEAR] * 4, epochs=1, lr=1e-30), halved([LINEAR] * 4, epochs=4, lr=1e-30)
    assert np.allclose(all_rungs % 1, first % 1)
    assert all_rungs.argmax() == first.argmax()


def test_halving_is_deterministic():
    heads = [Head(8, "ReLU", 2)] * 5
    first = halved(heads, noise=0.3)
    assert halved(heads, noise=0.3).tolist() == first.tolist()
    assert halved(heads, noise=0.3, seed=1).tolist() != first.tolist()
