"""How numbers are written: a deviation with two digits, a mean to the same place, large ones with a prefix.

The text is the same in Markdown and HTML; LaTeX translates its signs.
"""

from __future__ import annotations

import math

from atlas.harness.registry import Metric

NARROW = "\u202f"  # narrow no-break space, before the per cent sign
SPACE = "\u00a0"  # no-break space, between a number and its unit
MINUS = "−"
LARGE = 1e5  # from here on a number gets a prefix
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def quantity(form: str, mean: float, sd: float = math.nan) -> str:
    """Mean ± standard deviation in a metric's format; a dash where there is no mean.

    Parameters
    ----------
    form : str
        Format specification of the metric. With ``g``, digits follow the deviation, and numbers of 100,000 or more or below
        0.001 are scaled; ``si`` gives three digits and a prefix from 1,000 on.
    """
    if math.isnan(mean):
        return "–"
    spread = not (math.isnan(sd) or sd == 0)
    if form.endswith("%"):
        text = format(mean, form)[:-1] + (f" ± {format(sd, form)[:-1]}" if spread else "") + f"{NARROW}%"
    elif form == "si":
        text = _general(".3g", mean, sd if spread else math.nan, large=1e3)
    elif form.endswith("g"):
        text = _general(form, mean, sd if spread else math.nan)
    else:
        text = format(mean, form) + (f" ± {format(sd, form)}" if spread else "")
    return text.replace("-", MINUS)


def _general(form: str, mean: float, sd: float, large: float = LARGE) -> str:
    scale, unit = _scale(max(abs(mean), 0.0 if math.isnan(sd) else sd), large)
    mean, sd = mean / scale, sd / scale
    if math.isnan(sd):
        return _plain(form, mean) + unit
    places = min(max(1 - math.floor(math.log10(sd)), 0), 6)
    text = f"{mean:.{places}f} ± {sd:.{places}f}"
    return f"({text}){unit}" if unit.startswith(" ×") else text + unit


def _plain(form: str, value: float) -> str:
    """A number in ``g`` format, but never in E notation."""
    text = format(value, form)
    return text if "e" not in text else f"{value:.0f}"


def _scale(size: float, large: float) -> tuple[float, str]:
    """Factor and its name, for numbers that are too large or too small to be written out."""
    if size == 0 or 1e-3 <= size < large:
        return 1.0, ""
    if large <= size < 1e18:
        return next((factor, SPACE + name) for factor, name in PREFIXES if size >= factor)
    power = math.floor(math.log10(size))
    return 10.0**power, f" × 10{str(power).translate(SUPERSCRIPT)}"


def metric_text(metric: Metric, mean: float, sd: float = math.nan) -> str:
    """A value of a metric, as tables show it."""
    return quantity(metric.format, mean, sd)


def effect_text(metric: Metric | None, compare: str, value: float) -> str:
    """An effect in the metric's unit: differences of fractions in percentage points, ratios as plain numbers."""
    form = metric.format if metric is not None and compare != "ratio" else ".3g"
    if compare != "difference":
        return quantity(form, value)
    sign = "+" if value > 0 else ""
    if form.endswith("%"):
        return sign + format(100 * value, f".{max(_places(form), 1)}f").replace("-", MINUS)
    return sign + quantity(form if form.endswith(("g", "si")) else _finer(form), value)


def margin_text(metric: Metric | None, compare: str, value: float) -> str:
    """A margin as its author wrote it, in the unit of the effect."""
    percent = metric is not None and metric.format.endswith("%") and compare != "ratio"
    text = format(100 * value if percent else value, ".6g").replace("-", MINUS)
    return text + (f"{NARROW}%" if percent and compare == "value" else "")


def _places(form: str) -> int:
    digits = form.rstrip("%fg").rpartition(".")[2]
    return int(digits) if digits.isdigit() else 0


def _finer(form: str) -> str:
    """A fixed-point format with one place more, for a mean of differences; whole numbers stay general."""
    places = _places(form)
    return ",.6g" if places == 0 else f".{places + 1}f"


def effect_unit(metric: Metric | None, compare: str) -> str:
    """Return the unit to print after an effect: percentage points, or nothing."""
    return " points" if compare == "difference" and metric is not None and metric.format.endswith("%") else ""


def duration(seconds: float) -> str:
    """Say a number of seconds as people do, in s, min or h."""
    if seconds < 90:
        return f"{seconds:.0f}{SPACE}s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f}{SPACE}s"
    if seconds < 5400:
        return f"{seconds / 60:.0f}{SPACE}min"
    return f"{seconds / 3600:.1f}{SPACE}h"


def memory(mebibytes: float) -> str:
    """Say a number of mebibytes as people do, in MiB or GiB."""
    return f"{mebibytes / 1024:.1f}{SPACE}GiB" if mebibytes >= 1024 else f"{mebibytes:.0f}{SPACE}MiB"
