"""What all figures share: colours, style, and axes to draw on."""

import matplotlib.pyplot as plt
import seaborn as sns

BLUE, ORANGE, GREEN, GREY = "#3b6ea5", "#d9822b", "#4f9d69", "#9aa0a6"

sns.set_theme(style="whitegrid", rc={"axes.spines.right": False, "axes.spines.top": False, "figure.dpi": 80})


def new_axes(ax: plt.Axes | None, width: float = 6.4, height: float = 4.0) -> plt.Axes:
    """`ax`, or that of a new figure, `width` x `height` inches."""
    return ax or plt.subplots(figsize=(width, height), layout="constrained")[1]
