"""The chart of a run: a panel for each work, a bar for each contender, the fastest on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .report import Contender, Work

OWN_COLOUR, OTHER_COLOUR = "#d9481c", "#8a9ba8"


def draw(title: str, works: Sequence[Work], contenders: Sequence[Contender], path: Path) -> None:
    """Write the chart as a PNG. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(works), figsize=(4.2 * len(works), 4.6), squeeze=False, layout="constrained"
    )
    for panel, work in zip(panels[0], works, strict=True):
        bars = sorted((rate, c.name) for c in contenders if (rate := c.rate(work)) is not None)
        rates, names = [rate for rate, _ in bars], [name for _, name in bars]
        colours = [OWN_COLOUR if name.startswith("waferline") else OTHER_COLOUR for name in names]
        drawn = panel.barh(names, rates, color=colours)
        panel.bar_label(drawn, labels=[f" {rate:,.0f}" for rate in rates], fontsize=8)
        panel.set_title(work.name, fontsize=10)
        panel.set_xlabel("tokens/s")
        panel.margins(x=0.18)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="y", labelsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
