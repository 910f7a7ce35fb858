"""The ladder as a page: one HTML file with its pictures inside, to open anywhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError
from octavo.simulator.ladder import Rung
from octavo.simulator.report import Percentiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD, FILLED, URGENT, ORDINARY, GREY = "#c9d7e6", "#33658a", "#d1495b", "#33658a", "#9aa5b1"

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Octavo: the ladder</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #d9e2ec; text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; } h2 { margin-top: 2.5rem; font-size: 1.2rem; } .about { color: #52606d; }
</style></head><body>
<h1>The ladder</h1>
<p class="about">{{ about }}</p>
<table><tr>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% for title, text, picture in pictures %}<h2>{{ title }}</h2><p class="about">{{ text }}</p>
{{ picture | safe }}
{% endfor %}</body></html>
"""


def write_page(path: Path, rungs: list[Rung], about: str, names: list[str], rows: list[list[str]]) -> None:
    """Write the report.

    Args:
        path: the file.
        rungs: what became of the load, preset by preset.
        about: a sentence on the load and the machine.
        names: the table's columns.
        rows: its lines.

    Raises:
        ConfigError: matplotlib, which draws, is not installed, or the file cannot be written.
    """
    import jinja2

    pictures = [
        (
            "Memory over time",
            "Pale: blocks held by requests; dark: the part of them that holds a token. The line above is all there is.",
            _memory(rungs),
        ),
        (
            "Time to first token",
            "Median (bar) and 99th percentile (whisker), seconds, on a logarithmic scale.",
            _first_tokens(rungs),
        ),
        (
            "What it cost",
            "Requests that failed for lack of memory, and preemptions: each of those computes its tokens again.",
            _costs(rungs),
        ),
    ]
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    text = page.render(about=about, names=names, rows=rows, pictures=pictures)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html {path} cannot be written: {error}") from None


def check_can_draw() -> None:
    """Refuse early what would fail at the end.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("--html draws with matplotlib: pip install 'octavo[plots]'") from None


def _figure(rows: int, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    sheet = io.StringIO()
    figure.savefig(sheet, format="svg", metadata={"Date": None, "Creator": None})
    text = sheet.getvalue()
    return text[text.index("<svg") :]


def _memory(rungs: list[Rung]) -> str:
    figure, axes = _figure(len(rungs), 1.5 * len(rungs))
    for axis, rung in zip(axes, rungs, strict=True):
        seconds = [moment.seconds for moment in rung.timeline]
        axis.fill_between(seconds, [100 * moment.held for moment in rung.timeline], color=HELD, step="post")
        axis.fill_between(seconds, [100 * moment.filled for moment in rung.timeline], color=FILLED, step="post")
        axis.axhline(100, color=GREY, linewidth=1)
        axis.set_ylim(0, 108)
        axis.set_ylabel(f"{rung.preset}\n% of blocks", fontsize=9)
    axes[-1].set_xlabel("seconds")
    return _svg(figure)


def _first_tokens(rungs: list[Rung]) -> str:
    figure, (axis,) = _figure(1, 3.2)
    for shift, (label, color) in zip((-0.2, 0.2), (("urgent", URGENT), ("ordinary", ORDINARY)), strict=True):
        times: list[Percentiles | None] = [getattr(rung, f"ttft_{label}") for rung in rungs]
        known = [(place, each) for place, each in enumerate(times) if each is not None]
        axis.bar(
            [place + shift for place, _ in known],
            [each.p50 for _, each in known],
            0.36,
            yerr=([0.0] * len(known), [each.p99 - each.p50 for _, each in known]),
            label=label,
            color=color,
            ecolor=GREY,
            capsize=4,
        )
    axis.set_yscale("log")
    axis.set_xticks(range(len(rungs)), [rung.preset for rung in rungs])
    axis.set_ylabel("seconds")
    axis.legend(frameon=False)
    return _svg(figure)


def _costs(rungs: list[Rung]) -> str:
    figure, (axis,) = _figure(1, 2.8)
    columns = (("failed", URGENT, "num_failed"), ("preemptions", FILLED, "num_preemptions"))
    for shift, (label, color, name) in zip((-0.2, 0.2), columns, strict=True):
        values = [getattr(rung, name) for rung in rungs]
        bars = axis.bar([place + shift for place in range(len(rungs))], values, 0.36, label=label, color=color)
        axis.bar_label(bars, fontsize=9)
    axis.set_xticks(range(len(rungs)), [rung.preset for rung in rungs])
    axis.legend(frameon=False)
    return _svg(figure)
