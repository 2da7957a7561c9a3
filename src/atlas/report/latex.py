"""LaTeX with booktabs, for any engine: signs beyond ASCII become commands."""

from __future__ import annotations

import re
from collections.abc import Sequence

BOLD = ("\N{STX}", "\N{ETX}")  # marks that no text holds; they become \textbf{…}
SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"}
SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
SPECIAL |= {"<": "$<$", ">": "$>$", "|": "$|$", "\u202f": r"\,", "\u00a0": "~", "“": "``", "”": "''", "’": "'"}
SPECIAL |= {"±": r"$\pm$", "†": r"$^\dagger$", "–": "--", "—": "---", "−": "$-$", "·": r"$\cdot$", "…": r"\ldots{}"}
SPECIAL |= {"×": r"$\times$", "÷": r"$\div$", "≤": r"$\leq$", "≥": r"$\geq$", "‖": r"$\|$", "→": r"$\to$", "∞": r"$\infty$"}
GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi o pi rho  sigma tau upsilon phi chi psi omega"
SPECIAL |= {chr(0x3B1 + offset): f"$\\{name}$" for offset, name in enumerate(GREEK.split(" ")) if name}
SPECIAL |= {chr(0x391 + offset): f"$\\{name}$" for offset, name in ((2, "Gamma"), (3, "Delta"), (7, "Theta"), (10, "Lambda"))}
SPECIAL |= {chr(0x391 + offset): f"$\\{name}$" for offset, name in ((15, "Pi"), (18, "Sigma"), (21, "Phi"), (24, "Omega"))}
SPECIAL |= {BOLD[0]: r"\textbf{", BOLD[1]: "}"}
DIGITS = dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True))
DIGITS |= dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
RAISED = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")


def escape(text: str) -> str:
    """Escape the characters of a text that mean something to LaTeX."""
    escaped = "".join(SPECIAL.get(character, character) for character in text)
    escaped = RAISED.sub(lambda match: f"$^{{{_digits(match[0])}}}$", escaped)
    return LOWERED.sub(lambda match: f"$_{{{_digits(match[0])}}}$", escaped)


def _digits(text: str) -> str:
    return "".join(DIGITS[character] for character in text)


def table_latex(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A ``tabular`` with booktabs; the notes stand above it as comments."""
    lines = [
        r"% needs \usepackage{booktabs}",
        *(f"% {note}" for note in notes),
        f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(map(escape, header)) + r" \\",
        r"\midrule",
        *(" & ".join(map(escape, row)) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    return "\n".join(lines)
