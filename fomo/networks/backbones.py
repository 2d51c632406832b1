"""The networks that turn an image into features: by name, in four stages that can be fixed."""

from collections.abc import Iterable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import pandas as pd
import timm
import torch
from torch import nn

from fomo.config import UserError
from fomo.networks.weights import OFFLINE, imagenet_weights, read_weights, rename_packaged


class Backbone(nn.Module):
    """A timm network without its classifier: (images, 3, side, side) -> pooled features (images, `num_features`).

    `mean` and `std` are what its images are normalised with. `stages` holds its modules in four groups, from the image
    on: the last block of each resolution ends a stage, or, in a network of one resolution, each quarter of its blocks.
    """

    def __init__(self, name: str, image_size: int, state: dict[str, torch.Tensor] | None = None):
        super().__init__()
        options = {"img_size": image_size} if timm.models.get_pretrained_cfg(name).fixed_input_size else {}
        if state is not None:
            options["pretrained_cfg_overlay"] = {"state_dict": state}
        self.network = timm.create_model(name, pretrained=state is not None, num_classes=0, **options)
        missing = {weight for weight in self.network.state_dict() if not weight.endswith("num_batches_tracked")}
        if state is not None and (missing := missing - set(state)):  # timm would leave them random without a word
            raise KeyError(f"missing: {', '.join(sorted(missing)[:3])}")
        self.name = name
        self.network.to(memory_format=torch.channels_last)  # what processors and GPUs convolve fastest
        # what some networks widen their features to after the pooling
        self.num_features = getattr(self.network, "head_hidden_size", self.network.num_features)
        self.mean = tuple(self.network.default_cfg["mean"])
        self.std = tuple(self.network.default_cfg["std"])
        self.stages = [[module for _, module in stage] for stage in split_stages(name, self.network)]
        self.fix_until(1)

    @property
    def normalises_by_batch(self) -> bool:
        """Whether it has batch normalisation."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.network.modules())

    def fix_until(self, layer: int, *, statistics: bool = False) -> None:
        """Fixes the weights until stage `layer` (1 to 4): the stages before it keep weights and batch statistics. With
        `statistics`, all stages keep the latter, and are trained as they will be used."""
        self.fixed_until, self.fixed_statistics = layer, statistics
        for number, stage in enumerate(self.stages, start=1):
            for module in stage:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad = number >= layer
        self.train(self.training)

    def summary(self) -> pd.DataFrame:
        """One row a stage: its modules (first and last), its number of weights, and whether they are trained."""
        rows = []
        for number, stage in enumerate(split_stages(self.name, self.network), start=1):
            named = [name for name, module in stage if list(module.parameters(recurse=False))]
            count = sum(weight.numel() for _, module in stage for weight in module.parameters(recurse=False))
            state = "trained" if number >= self.fixed_until else "fixed"
            rows.append({"stage": number, "from": named[0], "to": named[-1], "weights": count, "state": state})
        return pd.DataFrame(rows)

    def train(self, mode: bool = True) -> "Backbone":
        """As `nn.Module.train`, but what is fixed stays in eval mode."""
        super().train(mode)
        for stage in self.stages[: self.fixed_until - 1]:
            for module in stage:
                module.training = False
        for module in self.network.modules() if self.fixed_statistics else ():
            module.training &= not isinstance(module, nn.modules.batchnorm._BatchNorm)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=computes_in_half(images.device)):
            return self.network(images.contiguous(memory_format=torch.channels_last)).float()


def computes_in_half(device: torch.device) -> bool:
    """Whether networks compute in bfloat16 where that is safe (mixed precision): on GPUs that are made for it.

    Processors do not, though some could: training gains nothing there, and results would depend on the machine.
    """
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def split_stages(name: str, network: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """The named modules of a timm network, in order, in four stages."""
    info = list(getattr(network, "feature_info", []))
    by_reduction = {entry["reduction"]: entry["module"] for entry in info}  # the last module of each resolution
    ends = [module for _, module in sorted(by_reduction.items())][-4:]
    if len(ends) < 4:
        ends = [info[(number + 1) * len(info) // 4 - 1]["module"] for number in range(4)] if len(info) >= 4 else []
    stages, inside_end = [[]], False
    for path, module in network.named_modules():
        if len(stages) <= len(ends):
            inside = f"{path}.".startswith(f"{ends[len(stages) - 1]}.")
            if inside_end and not inside and len(stages) < 4:
                stages.append([])
                inside = f"{path}.".startswith(f"{ends[len(stages) - 1]}.")
            inside_end = inside
        stages[-1].append((path, module))
    if len(stages) < 4:
        raise UserError(f"backbone '{name}' does not divide into four stages; choose another, such as convnext_tiny")
    return stages


def load_backbone(name: str, weights: str, image_size: int) -> Backbone:
    """The `Backbone` called `name` with its ImageNet weights, random ones, or those of a file.

    Never falls back to other weights: raises `UserError` where the ones asked for are missing, damaged, or of another
    network, or where there is no such network for images of `image_size` pixels.
    """
    if weights == "random":
        return _build(name, image_size)
    path = Path(weights).expanduser() if weights != "imagenet" else imagenet_weights(name)
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    return deepcopy(_read(name, path, image_size, stamp, packaged=name in OFFLINE and weights == "imagenet"))


@lru_cache(maxsize=2)
def _read(name: str, path: Path, image_size: int, stamp: int, *, packaged: bool) -> Backbone:
    """The backbone with the weights of a file, read once: each stage asks for it several times. (`stamp`: a file that
    has changed is another one.) Draws no random numbers."""
    state = read_weights(path)
    if packaged:
        state = rename_packaged(name, state, path)
    try:
        with torch.random.fork_rng(devices=[]):
            return _build(name, image_size, state)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"weights {path} do not fit backbone '{name}' ({str(error)[:300]})") from error


def _build(name: str, image_size: int, state: dict[str, torch.Tensor] | None = None) -> Backbone:
    try:
        return Backbone(name, image_size, state)
    except (AssertionError, TypeError) as error:
        raise _unfit(name, image_size, error) from error


def check_sides(backbone: Backbone, sides: Iterable[int]) -> None:
    """Raises `UserError` unless `backbone` can see images of each of `sides` (pixels)."""
    device = next(backbone.parameters()).device
    for side in sorted(set(sides)):
        try:
            with torch.inference_mode():
                backbone.eval()(torch.zeros(2, 3, side, side, device=device))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a network can say of a size that it is not made for
            raise _unfit(backbone.name, side, error) from error


def _unfit(name: str, side: int, error: Exception) -> UserError:
    return UserError(
        f"backbone '{name}' is not made for images of {side} pixels ({type(error).__name__}: {str(error)[:200]}); "
        "another IMAGE_SIZE (image_size) may do, such as 224, or another backbone"
    )
