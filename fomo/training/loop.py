"""The training loop, for every network that fomo trains; its checkpoints, and how a model is judged."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from fomo.networks.inference import predict
from fomo.progress import Bar
from fomo.storage import load_state, save_state


class DivergedError(ArithmeticError):
    """A loss is no longer a finite number."""


def make_optimizer(
    model: nn.Module, optimizer: str, lr: float, weight_decay: float, momentum: float | None = None
) -> torch.optim.Optimizer:
    """The optimizer called adam, adamw, sgd or rmsprop for all weights that are not fixed; momentum is sgd's only."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if optimizer == "adam":  # fused: one pass over the memory, which is most of a step of the bank
        return torch.optim.Adam(weights, lr, weight_decay=weight_decay, fused=True)
    if optimizer == "adamw":
        return torch.optim.AdamW(weights, lr, weight_decay=weight_decay, fused=True)
    if optimizer == "sgd":
        return torch.optim.SGD(weights, lr, momentum=momentum or 0.0, weight_decay=weight_decay, fused=True)
    return torch.optim.RMSprop(weights, lr, weight_decay=weight_decay)


def cosine(progress: float) -> float:
    """The learning rate's factor at a `progress` from 0 to 1: up from 0 in the first tenth, then down a half cosine to
    0 (Loshchilov and Hutter, arXiv:1608.03983; warm-up: Goyal et al., arXiv:1706.02677)."""
    warm_up = 0.1
    if progress < warm_up:
        return progress / warm_up
    return (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of logits (batch, classes), a number, or (heads, batch, classes), one for each head.

    `smoothing`: this share of each label is spread evenly over all classes (Szegedy et al., arXiv:1512.00567).
    """
    if logits.dim() == 3:  # torch has the classes second, and what follows them as further labels
        logits, labels = logits.permute(1, 2, 0), labels[:, None].expand(-1, len(logits))
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing).mean(0)


def mix(inputs: torch.Tensor, labels: torch.Tensor, parameter: float) -> tuple[torch.Tensor, list[tuple]]:
    """Each input mixed with its neighbour in the batch, and the (share, labels) of both: mixup (`fit`)."""
    share = torch.distributions.Beta(parameter, parameter).sample().item()
    return inputs.lerp(inputs.roll(1, 0), share), [(1 - share, labels), (share, labels.roll(1, 0))]


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: DataLoader,
    validation: DataLoader,
    epochs: int,
    *,
    seed: int,
    device: torch.device,
    schedule: str = "constant",
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    averaging: float = 0.0,
    keep: str = "loss",
    checkpoint: Path | None = None,
    report: Callable[[float, float], None] | None = None,
    pace: Callable[[int, int], int] | None = None,
    description: str = "training",
) -> pd.DataFrame:
    """Trains `model` in place and leaves it at the epoch to `keep`: that of lowest validation loss, of highest
    validation accuracy, or the last; returns its learning curves.

    The table has the columns epoch (from 1), model, train_loss (mean over the epoch's batches, augmentation included),
    validation_loss and validation_accuracy; its `attrs` have the seconds that it took. A bank is several models in one
    (`model` = 0, 1, ...), whose logits have one dimension more: their losses add up, so each is trained as if alone,
    and left at its own best epoch (by the bank's `merge`).

    `schedule` is that of the learning rate (constant, cosine), `label_smoothing` that of the training loss. With
    `mixup`, each input is mixed with another one of its batch, and so is the loss, by a share drawn from a Beta
    distribution of that parameter, one a batch (H. Zhang et al., arXiv:1710.09412). With `averaging`, what is validated
    and kept is a moving average of the weights (and batch statistics), which moves by 1 - `averaging` a step, faster in
    the beginning (Polyak; Tarvainen and Valpola, arXiv:1703.01780).

    With a `checkpoint`, an interrupted training goes on after its last whole epoch, to the same weights: whatever is
    random in an epoch is drawn anew from `seed` and the epoch's number. Raises `DivergedError` when the loss of a model
    alone is not finite; a bank goes on.

    `report` is told (epochs so far, loss), and may raise to end a hopeless training: after each quarter of the first
    epoch but the last the mean training loss of that quarter, which is as honest as a validation loss, for these images
    are still new to the network; after each epoch but the last the validation loss.

    `pace` is asked before each step for the number of steps in all, by (steps done, steps in all as it stands): it may
    take some away where time is short, and give them back. The schedule is laid anew over what is left, so the learning
    rate still ends at 0. The last epoch may then be a part of one.
    """
    history, best, best_state, start = [], None, None, time.perf_counter()
    steps, step, progress = epochs * len(train), 0, 0.0
    rates = [group["lr"] for group in optimizer.param_groups] if schedule == "cosine" else []
    average = AveragedModel(model, use_buffers=True) if averaging else None
    if average:  # it counts its steps on the processor; what it passes on lies on the GPU, which one would wait for
        average.multi_avg_fn = lambda *weights: _move(averaging, *weights[:2], int(average.n_averaged))
    shown = average.module if average else model
    if checkpoint and checkpoint.exists():
        stored = load_state(checkpoint, device)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        if average:
            average.load_state_dict(stored["average"])
        history, best, best_state = stored["history"], stored["best"].cpu().numpy(), stored["best_state"]
        steps, step, progress = stored["steps"], stored["step"], stored["progress"]
        start -= stored["seconds"]
    epoch = len({row["epoch"] for row in history})
    quarters = [len(train) * part // 4 for part in (1, 2, 3)] if len(train) >= 4 else []
    with Bar(total=steps, initial=step, desc=description, unit="batch", leave=False) as bar:
        while step < steps:
            epoch += 1
            with torch.random.fork_rng():
                torch.manual_seed(1000 * seed + epoch)  # dropout, mixup
                train.generator.manual_seed(1000 * seed + epoch)  # batch order, augmentation
                model.train()
                losses = []
                for inputs, labels in train:
                    inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                    steps = bar.total = pace(step, steps) if pace else steps
                    share = (1 - progress) / (steps - step)
                    for number, rate in enumerate(rates):
                        optimizer.param_groups[number]["lr"] = rate * cosine(progress + share / 2)
                    progress += share
                    optimizer.zero_grad()
                    inputs, targets = mix(inputs, labels, mixup) if mixup else (inputs, [(1.0, labels)])
                    logits = model(inputs)
                    loss = sum(share * cross_entropy(logits, target, label_smoothing) for share, target in targets)
                    loss.sum().backward()
                    optimizer.step()
                    if average:
                        average.update_parameters(model)
                    losses.append(loss.detach())
                    step += 1
                    bar.update()
                    if report and epoch == 1 and len(losses) in quarters:
                        part = torch.stack(losses[-quarters[0] :]).mean()
                        report(0.25 * (1 + quarters.index(len(losses))), float(part))
                    if step >= steps:
                        break
            train_loss = torch.stack(losses).mean(0).cpu().numpy()
            validation_loss, accuracy = evaluate(shown, validation, device)
            if train_loss.ndim == 0 and not np.isfinite(train_loss + validation_loss):
                raise DivergedError(f"the loss is not finite in epoch {epoch}; a smaller learning rate may help")
            history += _rows(epoch, train_loss, validation_loss, accuracy)
            error = {"loss": validation_loss, "accuracy": 1 - accuracy, "last": np.full_like(accuracy, -epoch)}[keep]
            better = error < (np.inf if best is None else best)
            best_state = _keep(shown, best_state, better)
            best = error if best is None else np.fmin(best, error)
            if report and step < steps:
                report(epoch, float(validation_loss.sum()))
            if checkpoint:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
                state |= {"best": torch.tensor(best), "best_state": best_state, "seconds": time.perf_counter() - start}
                state |= {"steps": steps, "step": step, "progress": progress}
                state |= {"average": average.state_dict()} if average else {}
                save_state(checkpoint, state)
    model.load_state_dict(best_state)
    curves = pd.DataFrame(history)
    curves.attrs["seconds"] = time.perf_counter() - start
    return curves


def _move(decay: float, averages: list[torch.Tensor], current: list[torch.Tensor], steps: int) -> None:
    """Moves the `averages` towards the `current` weights: by 1 - `decay`, but early by more, so that a short training
    has forgotten where it began."""
    get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averages, current, steps)


def _keep(model: nn.Module, kept: dict | None, better: np.ndarray) -> dict:
    """The state of `model` where it is better than the one `kept` so far; of a bank, model by model."""
    if kept is not None and better.ndim:
        return model.merge(kept, better)
    if kept is None or better:
        return {key: value.clone() for key, value in model.state_dict().items()}
    return kept


def _rows(epoch: int, train_loss: np.ndarray, validation_loss: np.ndarray, accuracy: np.ndarray) -> list[dict]:
    """The rows of one epoch in the learning curves, one for each model."""
    values = np.stack([train_loss, validation_loss, accuracy], axis=-1).reshape(-1, 3).tolist()
    names = ("train_loss", "validation_loss", "validation_accuracy")
    return [{"epoch": epoch, "model": model} | dict(zip(names, row, strict=True)) for model, row in enumerate(values)]


def evaluate(model: nn.Module, batches: DataLoader, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """(mean cross-entropy, accuracy) over `batches`: two numbers, or, for a bank, two arrays (models)."""
    logits, labels = predict(model, batches, device)
    accuracy = (logits.argmax(-1) == labels).double().mean(-1)
    return cross_entropy(logits.double(), labels).numpy(), accuracy.numpy()
