"""What there is to do, judged from small files: missing, failed, made of other things, and what must be there for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from atlas.harness.agenda import Demands, agenda, note_made_here
from atlas.harness.code import changed_code, code_of
from atlas.harness.files import sha256, write_json, write_text
from atlas.harness.run import Run
from atlas.harness.stale import KERNELS, artefacts_digest, evaluation_gap, training_gap
from atlas.harness.study import Study
from atlas.report import write_claims, write_figures, write_report, write_table

STUDY = """
seeds: [0]
image-classification:
  datasets:
    toy:
      data: null
      methods:
        deit: {}
        attnscale: {}
        uvc: {}
"""
DENSE, UVC, OTHER = (f"image-classification/toy/{name}/seed0" for name in ("deit", "uvc", "attnscale"))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    write_text(tmp_path / "config" / "mine.yaml", STUDY)
    return Study.read("mine", tmp_path)


def trained(run: Run, weights: str = "weights") -> None:
    """Leave what a training leaves."""
    write_text(run.weights, weights)
    needs = {role: artefacts_digest(json.loads(needed.record.read_text())) for role, needed in run.needs.items()}
    write_json(run.record, {"fingerprint": run.fingerprint, "files": {run.weights.name: sha256(run.weights)}, "needs": needs})


def evaluated(run: Run) -> None:
    """Leave what an evaluation leaves."""
    record = json.loads(run.record.read_text())
    provenance = {"trained": artefacts_digest(record), "code": code_of(run)}
    write_json(run.metrics, {"run": {"fingerprint": run.fingerprint}, "metrics": {"top1": 0.5}, "provenance": provenance})


def finished(study: Study) -> Study:
    for cell in (DENSE, OTHER, UVC):
        run = study.find(cell)
        trained(run)
        evaluated(run)
    return study


def todo(study: Study, **demands: bool) -> tuple[set[str], set[str]]:
    """Runs to train and runs to evaluate."""
    found = agenda(study, Demands(**demands))
    return set(found.training), set(found.evaluation)


def test_nothing_is_there(study: Study) -> None:
    assert todo(study) == ({DENSE, OTHER, UVC}, {DENSE, OTHER, UVC})
    assert set(agenda(study).training.values()) == {"not trained"}


def test_everything_is_there(study: Study) -> None:
    assert todo(finished(study)) == (set(), set())


def test_why_the_page_is_written(study: Study) -> None:
    assert agenda(study).page == "its tables are written again"
    for write in (write_table, write_figures):
        write(finished(study), "image-classification", "toy")
    assert (agenda(study).tables, agenda(study).page) == ({}, "not written")
    write_claims(study)
    write_report(study)
    assert agenda(study).page == ""
    write_text(study.results / KERNELS, "id,kernel,verdict\n")
    assert (agenda(study).tables, agenda(study).page) == ({}, "its metrics, claims or limits changed")


def test_a_clone_without_checkpoints_needs_none(study: Study) -> None:
    finished(study)
    for cell in (DENSE, OTHER, UVC):
        run = study.find(cell)
        run.record.unlink()
        run.weights.unlink()
    assert todo(study) == (set(), set())
    # but whoever builds upon a run needs its weights, and what is trained is evaluated
    study.find(UVC).metrics.unlink()
    assert todo(study) == ({DENSE, UVC}, {DENSE, UVC})


def test_lost_weights_matter_to_those_who_need_them(study: Study) -> None:
    finished(study).find(DENSE).weights.unlink()
    assert training_gap(study.find(DENSE)) == "its model.safetensors is lost"
    assert todo(study) == (set(), set())
    study.find(UVC).record.unlink()
    study.find(UVC).metrics.unlink()
    assert todo(study) == ({DENSE, UVC}, {DENSE, UVC})


def test_weights_that_are_not_those_of_the_training_are_no_weights(study: Study) -> None:
    dense = finished(study).find(DENSE)
    write_text(dense.weights, "weighs")
    assert training_gap(dense) == "its model.safetensors is damaged"
    assert todo(study) == (set(), set())
    dense.metrics.unlink()
    assert todo(study) == ({DENSE, UVC}, {DENSE, UVC})
    # what a disk did is in no file's date; who reads the weights looks at them
    os.utime(dense.weights, ns=(0, 0))
    assert training_gap(dense) is None
    assert training_gap(dense, thorough=True) == "its model.safetensors is damaged"
    dense.weights.unlink()
    dense.weights.mkdir()
    assert training_gap(dense, thorough=True) == "its model.safetensors is not to be read (Is a directory)"


def test_what_builds_upon_a_run_follows_when_it_is_trained_again(study: Study) -> None:
    finished(study)
    trained(study.find(DENSE), "other weights")
    assert training_gap(study.find(UVC)) == f"its dense, {DENSE}, was trained again"
    assert evaluation_gap(study.find(DENSE)) == "it was trained again"
    assert todo(study) == ({UVC}, {DENSE, UVC})


def test_a_need_that_is_out_of_date_takes_its_dependents_along(study: Study) -> None:
    finished(study)
    record = study.find(DENSE).record
    write_json(record, {**json.loads(record.read_text()), "fingerprint": "other"})
    found = agenda(study)
    assert found.training == {DENSE: "its settings changed", UVC: f"its dense, {DENSE}, is trained again"}


def test_a_failure_is_planned_whatever_lies_beside_it(study: Study) -> None:
    run = finished(study).find(OTHER)
    write_json(run.failure, {"stage": "evaluate", "error": "no luck"})
    assert todo(study) == (set(), {OTHER})
    assert agenda(study).runs == {OTHER: "failed to evaluate: no luck"}
    assert agenda(study).lines()[0] == "3 runs: 1 to evaluate (1 failed to evaluate)"


@pytest.mark.parametrize("damage", ["", "[1", "[]"])
def test_damaged_files_are_made_again(study: Study, damage: str) -> None:
    run = finished(study).find(OTHER)
    run.metrics.write_text(damage)
    assert agenda(study).evaluation == {OTHER: "its metrics.json is damaged"}
    run.record.write_text(damage)
    assert agenda(study).training == {OTHER: "its settings.json is damaged"}


def test_metrics_that_do_not_say_what_they_were_made_of_do_not_count(study: Study) -> None:
    run = finished(study).find(OTHER)
    write_json(run.metrics, {"metrics": {"top1": 0.5}})
    assert agenda(study).evaluation == {OTHER: "what it was made of is not recorded"}


def test_what_was_made_elsewhere_counts_until_somebody_asks(study: Study) -> None:
    finished(study)
    run = study.find(OTHER)
    note_made_here(run, "record", run.record)
    note_made_here(run, "metrics", run.metrics)
    assert todo(study) == (set(), set())
    assert todo(study, here=True) == ({DENSE, UVC}, {DENSE, UVC})
    evaluated(run)
    run.metrics.write_text(run.metrics.read_text() + "\n")  # as after a checkout of committed results
    assert OTHER in todo(study, here=True)[0]
    assert todo(study, everything=True)[0] == {DENSE, OTHER, UVC}


def test_changed_code_is_told_and_trained_again_on_request(study: Study) -> None:
    run = finished(study).find(OTHER)
    content = json.loads(run.metrics.read_text())
    content["provenance"]["code"]["atlas.nn"] = "0" * 16
    write_json(run.record, {**json.loads(run.record.read_text()), "provenance": content["provenance"]})
    assert todo(study) == (set(), set())
    assert agenda(study).old_code == {OTHER: ["atlas.nn"]}
    assert "snakemake --config tier=mine code=new" in agenda(study).lines()[0]
    assert todo(study, new_code=True)[0] == {OTHER}


def test_code_of_a_run_is_that_of_its_task_its_papers_and_what_they_stand_on(study: Study) -> None:
    assert {"atlas.methods.uvc", "atlas.tasks.image_classification", "atlas.nn"} <= set(code_of(study.find(UVC)))
    assert "atlas.methods.uvc" not in code_of(study.find(OTHER))
    assert not any(name.startswith("atlas.harness") for name in code_of(study.find(UVC)))
    assert changed_code(study.find(OTHER), None) == []
    assert changed_code(study.find(OTHER), {**code_of(study.find(OTHER)), "atlas.gone": "1"}) == ["atlas.gone"]


def test_docstrings_and_comments_are_not_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas.harness import code

    monkeypatch.setattr(code, "SOURCES", tmp_path)
    module = tmp_path / "nn" / "one.py"

    def told(text: str) -> dict[str, str]:
        write_text(module, text)
        write_text(tmp_path / "nn" / "two.py", "X = 1\n")
        return code._Reader(tmp_path / "code.json").packages(("atlas.nn",))

    first = told('"""Words."""\nfrom atlas.nn.two import X\n\ndef f():\n    """Words."""\n    return X\n')
    assert told('"""Other."""\nfrom atlas.nn.two import X\n\n# why\ndef f():\n    return X\n') == first
    assert told('"""Words."""\nfrom atlas.nn.two import X\n\ndef f():\n    return X + 1\n') != first
