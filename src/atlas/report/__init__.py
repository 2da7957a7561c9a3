"""Tables, figures, claim verdicts and the page: reads result files, runs no method, and needs no torch."""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "comparison": ["compare"],
        "tables": ["write_table"],
        "figures": ["write_figures"],
        "told": ["print_claims", "write_claims"],
        "page": ["write_report"],
        "series": ["write_series"],
    },
)

if TYPE_CHECKING:
    from atlas.report.comparison import compare as compare
    from atlas.report.figures import write_figures as write_figures
    from atlas.report.page import write_report as write_report
    from atlas.report.series import write_series as write_series
    from atlas.report.tables import write_table as write_table
    from atlas.report.told import print_claims as print_claims
    from atlas.report.told import write_claims as write_claims
