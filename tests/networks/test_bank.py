import copy
from contextlib import contextmanager
from functools import partial

import pandas as pd
import pytest
import torch
from torch.func import functional_call

from fomo.data.batches import FeatureBatches, loader
from fomo.networks.bank import HeadBank
from fomo.networks.heads import HEADS, LINEAR, Head
from fomo.training.bank_optimizer import BankOptimizer
from fomo.training.bank_training import deal, fit_bank
from fomo.training.loop import DivergedError, cross_entropy, make_optimizer

FEATURES, CLASSES, BATCH = 12, 5, 16
CPU = torch.device("cpu")
MIXED = [
    LINEAR,
    Head(32, "ReLU", 2),
    Head(16, "Tanh", 4),
    Head(16, "ReLU", 3),
    Head(32, "ReLU", 2),  # the same once more
    Head(32, "Sigmoid", 4),
    Head(16, "Sigmoid", 2),
    Head(32, "Tanh", 3),
    Head(32, "ReLU", 3),
    LINEAR,
    Head(1024, "Tanh", 2),
    Head(1024, "ReLU", 3),
]


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(BATCH, FEATURES, generator=generator)
    return inputs, torch.randint(CLASSES, (BATCH,), generator=generator)


def pair(heads, seed=1, **options):
    """A bank, and the same heads as separate modules of the same seed."""
    torch.manual_seed(seed)
    modules = [head.build(FEATURES, CLASSES) for head in heads]
    torch.manual_seed(seed)
    return HeadBank(heads, FEATURES, CLASSES, **options), modules


def together(modules, inputs):
    return torch.stack([module(inputs) for module in modules])


def configurations(count):
    """So many different configurations of all three optimizers."""
    choices = [("adam", 1e-3, None), ("sgd", 1e-1, 0.9), ("rmsprop", 1e-4, None), ("sgd", 1e-2, None)]
    rows = [(*choices[number % 4], (0.0, 1e-2, 1e-4)[number % 3], 1 + number / count) for number in range(count)]
    return [{"optimizer": o, "lr": lr * f, "momentum": m, "weight_decay": decay} for o, lr, m, decay, f in rows]


def train(bank, modules, chosen, steps=88):
    """Trains the bank by `BankOptimizer`, and the modules by optimizers of their own, on the same batches."""
    alone = [make_optimizer(module, **one) for module, one in zip(modules, chosen, strict=True)]
    for compute, optimizers in ((bank, [BankOptimizer(bank, chosen)]), (partial(together, modules), alone)):
        for step in range(steps):
            inputs, labels = batch(step)
            for optimizer in optimizers:
                optimizer.zero_grad()
            cross_entropy(compute(inputs.to(next(bank.parameters()))), labels).sum().backward()
            for optimizer in optimizers:
                optimizer.step()


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


# ---- forward and backward


@pytest.mark.parametrize("heads", [MIXED, HEADS, [LINEAR], [Head(32, "Tanh", 3)] * 5], ids=["mixed", "37", "one", "5"])
def test_bank_computes_what_separate_modules_compute(heads):
    bank, modules = pair(heads)
    inputs, labels = batch()
    gradients = []
    for compute in (bank, lambda x: together(modules, x)):
        x = inputs.clone().requires_grad_()
        logits = compute(x)
        cross_entropy(logits, labels).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(bank(inputs), together(modules, inputs), atol=1e-5, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
    for place, module in enumerate(modules):  # `module` puts what the bank has where it belongs: gradients too
        for parameter in bank.parameters():
            parameter.data = parameter.grad if place == 0 else parameter.data
        for alone, banked in zip(module.parameters(), bank.module(place).parameters(), strict=True):
            torch.testing.assert_close(banked, alone.grad, atol=1e-5, rtol=0, check_dtype=True)


def test_any_order_of_the_heads_gives_the_logits_in_that_order():
    _, modules = pair(MIXED)
    inputs, _ = batch()
    expected = HeadBank(MIXED, FEATURES, CLASSES, modules=modules)(inputs)
    for seed in range(5):
        order = torch.randperm(len(MIXED), generator=torch.Generator().manual_seed(seed)).tolist()
        heads = [MIXED[place] for place in order]
        bank = HeadBank(heads, FEATURES, CLASSES, modules=[modules[place] for place in order])
        torch.testing.assert_close(bank(inputs), expected[order], atol=1e-5, rtol=0)


def test_module_is_one_head_alone_with_the_weights_of_the_bank():
    bank, modules = pair(MIXED)
    train(bank, modules, configurations(len(MIXED)), steps=3)
    inputs, _ = batch(100)
    torch.manual_seed(5)
    alone = [bank.eval().module(place) for place in range(len(MIXED))]
    torch.testing.assert_close(together(alone, inputs), bank(inputs), atol=1e-5, rtol=0)
    assert all(list(a.state_dict()) == list(b.state_dict()) for a, b in zip(alone, modules, strict=True))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)  # the random numbers of the caller are left alone


def test_second_derivative_and_functional_call_are_those_of_separate_modules():
    bank, modules = (part.double() if isinstance(part, HeadBank) else part for part in pair(MIXED[:9]))
    modules = [module.double() for module in modules]
    inputs, labels = batch()

    def penalty(compute):
        x = inputs.double().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(compute(x), labels).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    state = dict(bank.named_parameters()) | {name: value.clone() for name, value in bank.named_buffers()}
    expected = penalty(lambda x: together(modules, x))
    torch.testing.assert_close(penalty(bank), expected)
    torch.testing.assert_close(penalty(lambda x: functional_call(bank, state, (x,))), expected)


# ---- training


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


def test_selected_heads_keep_what_they_are_and_can_be_given_back():
    bank, modules = pair(MIXED)
    inputs, _ = batch()
    places = [8, 3, 0, 10]
    part = bank.select(places)
    torch.testing.assert_close(part(inputs), bank(inputs)[places], atol=1e-5, rtol=0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(1.0)
    bank.take(places, part)
    expected = together(modules, inputs)
    expected[places] = part(inputs)
    torch.testing.assert_close(bank(inputs), expected, atol=1e-5, rtol=1e-5)


def test_resumed_fit_of_a_bank_ends_at_the_same_weights(tmp_path):
    whole, curves = fitted()
    fitted(tmp_path / "checkpoint.pt", epochs=2)
    resumed, resumed_curves = fitted(tmp_path / "checkpoint.pt")
    assert curves.equals(resumed_curves)
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
