"""How numbers are written."""

from __future__ import annotations

import math

import pytest

from atlas.harness.registry import Metric
from atlas.report.inline import is_wide
from atlas.report.latex import escape as latex
from atlas.report.markdown import escape as markdown
from atlas.report.markdown import fenced, grid
from atlas.report.numbers import duration, effect_text, memory, quantity


@pytest.mark.parametrize(
    ("form", "mean", "sd", "expected"),
    [
        (".1%", 0.8131, 0.0229, "81.3 ± 2.3 %"),
        (".1%", 1.0, 0.0, "100.0 %"),
        (".3f", -0.0512, 0.0041, "−0.051 ± 0.004"),
        (",.0f", 103658.0, 0.0, "103,658"),
        (".3g", 2.1975, 0.1352, "2.20 ± 0.14"),
        (".3g", 0.00123, 0.0000456, "0.001230 ± 0.000046"),
        (".3g", 1.4924e-16, 2.69e-18, "(1.492 ± 0.027) × 10⁻¹⁶"),
        (".3g", 1.66e11, math.nan, "166 G"),
        (".3g", 3790976.0, 0.0, "3.79 M"),
        ("si", 3790976.0, 0.0, "3.79 M"),
        ("si", 1234.0, 56.0, "1.234 ± 0.056 k"),
        ("si", 12.5, math.nan, "12.5"),
        (".2g", 170.0, math.nan, "170"),
        (".3g", 1e5, math.nan, "100 k"),
        (".3g", 1e3, math.nan, "1000"),
        ("si", 1e3, math.nan, "1 k"),
        ("si", 1e6, math.nan, "1 M"),
        (".3g", 1e-3, math.nan, "0.001"),
        (".3g", 9e-4, math.nan, "9 × 10⁻⁴"),
        (".3g", 1e18, math.nan, "1 × 10¹⁸"),
        (".3g", 0.0, 0.0, "0"),
        (".3g", 0.0, 0.02, "0.000 ± 0.020"),
        (".3g", math.nan, math.nan, "–"),
    ],
)
def test_quantities(form: str, mean: float, sd: float, expected: str) -> None:
    assert quantity(form, mean, sd).replace("\u202f", " ").replace("\u00a0", " ") == expected


def test_effects_are_in_the_unit_of_the_metric() -> None:
    accuracy, loss, count = (
        Metric("top1", "top-1", format=".1%"),
        Metric("loss", "loss", format=".3f"),
        Metric("n", "n", format=",.0f"),
    )
    assert effect_text(accuracy, "difference", -0.0303) == "−3.0"
    assert effect_text(accuracy, "difference", 0.0303) == "+3.0"
    assert effect_text(accuracy, "ratio", 1.0303) == "1.03"
    assert effect_text(accuracy, "value", 0.5) == "50.0\u202f%"
    assert effect_text(loss, "difference", 0.01234) == "+0.0123"
    assert effect_text(count, "difference", 48.0) == "+48"
    assert effect_text(None, "difference", 0.5) == "+0.5"


def test_durations_and_memory() -> None:
    texts = [duration(1.23), duration(45), duration(300), duration(7200), memory(512), memory(2048)]
    assert [text.replace("\u00a0", " ") for text in texts] == ["1.2 s", "45 s", "5 min", "2.0 h", "512 MiB", "2.0 GiB"]


def test_markdown_stays_text() -> None:
    assert markdown("<script>a|b</script> *x* _y_") == "&lt;script&gt;a\\|b&lt;/script&gt; \\*x\\* \\_y\\_"
    assert grid(["a"], [["**<b>**†"]]).splitlines()[-1] == "| **&lt;b&gt;**† |"
    assert fenced("```\nx").startswith("````text\n")


def test_latex_is_escaped() -> None:
    assert latex("50 % & #1_x {y} ω ≤ 10⁻¹⁶ <b>") == (r"50 \% \& \#1\_x \{y\} $\omega$ $\leq$ 10$^{-16}$ $<$b$>$")


def test_effects_of_large_counts_keep_their_prefix() -> None:
    metric = Metric("macs", "MACs", "si", "min")
    assert effect_text(metric, "difference", 1234000.0) == "+1.234\N{NO-BREAK SPACE}M"
    assert effect_text(metric, "difference", -1234000.0) == "−1.234\N{NO-BREAK SPACE}M"


def test_a_figure_is_wide_by_its_width() -> None:
    assert is_wide('<svg viewBox="0 0 1200 200">')
    assert not is_wide('<svg viewBox="0 0 200 1200">')
