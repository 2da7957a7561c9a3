"""Verdicts of a study under other kernels of a processor, in ``results/<tier>/kernels.csv``: what differs is called fragile."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from atlas.errors import UserError
from atlas.harness.files import write_text
from atlas.harness.stale import KERNELS
from atlas.harness.study import Study
from atlas.report.comparison import FRAGILE, NOT_RUN, Results
from atlas.report.verdicts import other_kernels

COLUMNS = ("id", "kernel", "verdict")


def note_kernels(study: Study, source: str) -> Path:
    """Keep the verdicts of another results folder beside a study's own, under the name of the machine and kernels that made it.

    Verdicts that the folder does not give ("not run") are left out; those that were kept of the same machine and kernels before
    are replaced, and those of others stay.

    Parameters
    ----------
    study : Study
        The study whose verdicts are to be held against others; its results folder takes the file.
    source : str
        A results folder of the same study, or a git revision that holds one.

    Raises
    ------
    UserError
        The folder has no verdicts, its runs were not all made by one machine, or they were made as this study's own were.
    """
    folder = study.results.relative_to(study.root).as_posix()
    other = Results.at(source, folder)
    if not other.verdicts:
        raise UserError(f"{source} has no claims.csv; 'atlas claims' writes it where that study was computed")
    if len(other.machines) != 1:
        raise UserError(f"{source} was computed by {len(other.machines)} machines ({'; '.join(other.machines)}); one is needed")
    kernel = other.machines[0]
    if study.results.is_dir() and kernel in Results.at(str(study.results)).machines:
        raise UserError(f"{source} was computed with the kernels of {study.results} ({kernel}), so it tells nothing about others")
    known = other_kernels(study)
    for claim, told in other.verdicts.items():
        known.setdefault(claim, {}).pop(kernel, None)
        if (verdict := told.removesuffix(FRAGILE)) != NOT_RUN:
            known[claim][kernel] = verdict
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((claim, *pair) for claim, verdicts in known.items() for pair in verdicts.items())
    path = study.results / KERNELS
    write_text(path, stream.getvalue())
    return path
