"""What all figures share: colours, style, and axes to draw on."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

BLUE, ORANGE, GREEN, GREY = "#3b6ea5", "#d9822b", "#4f9d69", "#9aa0a6"

sns.set_theme(style="whitegrid", rc={"axes.spines.right": False, "axes.spines.top": False, "figure.dpi": 80})


def new_axes(ax: plt.Axes | None, width: float = 6.4, height: float = 4.0) -> plt.Axes:
    """`ax`, or that of a new figure, `width` x `height` inches."""
    return ax or plt.subplots(figsize=(width, height), layout="constrained")[1]


def short(name: str, most: int = 32) -> str:
    """`name`, without its middle where it has more characters than there is room for."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"


def beside_map(pixels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """An image (channels, side, side), uint8, and beside it the same with `places` (side, side), 0 to 1, coloured, the
    stronger the more: uint8 (3, side, 2 side)."""
    image = np.broadcast_to(pixels, (3, *pixels.shape[1:]))
    colours = 255 * plt.cm.turbo(places)[..., :3].transpose(2, 0, 1)
    share = 0.6 * places
    return np.concatenate([image, ((1 - share) * image + share * colours).astype(np.uint8)], axis=2)
