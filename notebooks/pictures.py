"""What the notebooks share: where the project lies, how pictures look, and how a
prediction stands beside the answer."""

import pathlib

import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
PURPLE, RED, SKY = "#CC79A7", "#D55E00", "#56B4E9"
GREY, LIGHT = "#666666", "#DDDDDD"
SHADES = "cividis"  # for heat maps: light and dark in the same order for every eye

plt.rcParams.update({
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, PURPLE, RED, SKY]),
    "legend.frameon": False,
})


def text_of(length):
    """The first bytes of the README, the text that `moe compare` takes."""
    text = (ROOT / "README.md").read_bytes()[:length]
    assert len(text) == length, f"README.md has only {len(text)} bytes"
    return text


def figure(title, width=7.0, height=3.2, across=1, down=1, **options):
    """A figure and its axes, with one title over all."""
    drawn, axes = plt.subplots(down, across, figsize=(width, height), **options)
    drawn.suptitle(title, fontsize=10, fontweight="bold")
    return drawn, axes


def say(prediction, answer, unit=""):
    """One line: what you said, and what it is."""
    said = prediction
    if prediction is None:
        said = "nothing (fill it in above and run again)"
    print(f"You predicted: {said}. It is: {answer} {unit}".rstrip() + ".")


def draw_prediction(axes, prediction, upright=False, label="your prediction"):
    """A dashed line across the axes; none where nothing was predicted."""
    if prediction is None:
        return
    line = axes.axvline if upright else axes.axhline
    line(prediction, color=RED, linestyle="--", linewidth=1.5, label=label)


def heat_map(axes, values, written="{:.0f}", **options):
    """A matrix as coloured cells with their numbers in them; NaN is an empty one."""
    image = axes.imshow(values, cmap=SHADES, aspect="auto", **options)
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if value == value:
                axes.text(column, row, written.format(value), ha="center", va="center",
                          fontsize=7, color="white" if value < middle else "black")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    return image
