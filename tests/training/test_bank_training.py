import copy
from contextlib import contextmanager

import pandas as pd
import pytest
import torch
from banks import BATCH, CLASSES, FEATURES, MIXED, batch, configurations, pair, together, train

from fomo.data.batches import FeatureBatches, loader
from fomo.networks.bank import HeadBank
from fomo.networks.heads import HEADS, LINEAR
from fomo.training import loop
from fomo.training.bank_training import deal, fit_bank
from fomo.training.loop import DivergedError

CPU = torch.device("cpu")


@contextmanager
def threads(count):
    """torch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fitted(checkpoint=None, epochs=4, chosen=None, heads=MIXED[:6]):
    """A bank trained by `fit_bank`, and its learning curves."""
    torch.manual_seed(0)
    chosen = chosen or configurations(len(heads))
    bank = HeadBank(heads, FEATURES, CLASSES)
    inputs, labels = (torch.cat(parts).numpy() for parts in zip(*(batch(n) for n in range(4)), strict=True))
    batches = FeatureBatches(inputs, labels)
    options = {"seed": 3, "device": CPU, "checkpoint": checkpoint}
    loaders = loader(batches, BATCH, torch.Generator()), loader(batches, BATCH)
    return bank, fit_bank(bank, chosen, *loaders, epochs, **options)


def test_each_head_is_trained_as_by_an_optimizer_of_its_own():
    chosen = configurations(len(MIXED))
    bank, modules = pair(MIXED)
    for module in (bank, *modules):  # in float32, rounding grows in 88 steps
        module.double()
    train(bank, modules, chosen)
    for module in (bank, *modules):
        module.eval()
    inputs = batch(100)[0].double()
    torch.testing.assert_close(bank(inputs), together(modules, inputs), atol=1e-9, rtol=0)


def test_head_that_diverges_does_not_touch_the_others():
    chosen = configurations(len(MIXED))
    bank, modules = pair(MIXED)
    calm = copy.deepcopy(bank)
    train(calm, modules, chosen, steps=8)
    wild = [1, 3, 8]
    train(bank, modules, [one | {"lr": 1e30 if n in wild else one["lr"]} for n, one in enumerate(chosen)], steps=8)
    inputs, _ = batch(100)
    finite = bank.eval()(inputs).isfinite().all(-1).all(-1)
    assert [place for place, fine in enumerate(finite) if not fine] == wild
    torch.testing.assert_close(bank(inputs)[finite], calm.eval()(inputs)[finite], atol=1e-5, rtol=0)


def test_fit_goes_on_with_one_diverged_head_and_raises_when_all_have_diverged():
    chosen = configurations(6)
    wild = {"optimizer": "sgd", "lr": 1e38, "weight_decay": 0.0, "momentum": 0.9}
    _, curves = fitted(chosen=[wild, *chosen[1:]])
    _, expected = fitted()
    fine = curves[curves["model"] > 0].reset_index(drop=True)
    assert curves[curves["model"] == 0]["validation_loss"].iloc[1:].isna().all()
    torch.testing.assert_close(
        *(torch.tensor(table.to_numpy()) for table in (fine, expected[expected["model"] > 0])), atol=1e-5, rtol=0
    )
    with pytest.raises(DivergedError):
        fitted(chosen=[wild] * 6)


@pytest.mark.parametrize("equal", [True, False])
def test_number_of_threads_changes_nothing(equal):
    """Equal ones are trained by sgd: on some processors products round otherwise in a bank of another size."""
    chosen = configurations(4)[1:2] * 6 if equal else None
    found = []
    for count in (1, 2, 3, 64):
        torch.manual_seed(7)
        with threads(count):
            found.append(fitted(chosen=chosen))
            assert torch.get_num_threads() == count
    inputs, _ = batch(9)
    for bank, curves in found[1:]:
        torch.testing.assert_close(bank.eval()(inputs), found[0][0].eval()(inputs), atol=1e-5, rtol=0)
        pd.testing.assert_frame_equal(curves, found[0][1], check_exact=False, atol=1e-5, rtol=0)


def test_heads_are_dealt_out_in_parts_of_about_equal_work():
    bank = HeadBank(HEADS, 512, 7)
    parts = deal(bank, 2)
    assert sorted(place for part in parts for place in part) == list(range(37))
    work = [sum(HEADS[place].multiply_adds(512, 7) for place in part) for part in parts]
    assert max(work) < 1.05 * min(work)
    assert deal(HeadBank([LINEAR] * 2, FEATURES, CLASSES), 8) == [[0], [1]]


def test_training_a_bank_leaves_the_random_numbers_of_the_caller_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    bank = HeadBank(MIXED[:6], FEATURES, CLASSES)
    batches = FeatureBatches(batch()[0].numpy(), batch()[1].numpy())
    torch.manual_seed(5)
    loaders = loader(batches, BATCH, torch.Generator()), loader(batches, BATCH)
    fit_bank(bank, configurations(6), *loaders, 1, seed=0, device=CPU)
    assert torch.rand(1) == expected


def test_resumed_fit_of_a_bank_ends_at_the_same_weights(tmp_path, monkeypatch):
    """Broken off in the third of four epochs."""
    evaluate, left = loop.evaluate, iter(range(2))

    def interrupted(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    with threads(1):
        whole, curves = fitted()
        with monkeypatch.context() as patch:
            patch.setattr(loop, "evaluate", interrupted)
            with pytest.raises(KeyboardInterrupt):
                fitted(tmp_path / "checkpoint.pt")
        resumed, resumed_curves = fitted(tmp_path / "checkpoint.pt")
    assert curves.equals(resumed_curves)
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
