import pytest
import torch
from banks import CLASSES, FEATURES, MIXED, batch, configurations, pair, together, train
from torch.func import functional_call

from fomo.networks.bank import HeadBank
from fomo.networks.heads import HEADS, LINEAR, Head
from fomo.training.loop import cross_entropy


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
