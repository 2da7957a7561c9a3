"""Rows of learned optimization, network → records → equation → optimizer, and an equation for image classification."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import REPORTED, Metric, method, paper
from atlas.methods.symbolic_l2o.settings import (
    CosineSettings,
    EquationSettings,
    OptimizerSettings,
    RecordSettings,
    RecoverySettings,
    SymbolicSettings,
    TeacherSettings,
    TemplateSettings,
    TunedTemplateSettings,
)

PAPER = paper(
    "symbolic-l2o",
    title="Symbolic Learning to Optimize: Towards Interpretability and Scalability",
    citation="W. Zheng, T. Chen, T.-K. Hu, Z. Wang, ICLR 2022",
    url="https://arxiv.org/abs/2203.06578",
)
R2 = Metric("r2_test", "R², held-out run", "higher", ".3f")
NODES = Metric("mapping_complexity", "nodes", "lower", ".0f")
FIDELITY = (
    R2,
    Metric("r2_bound", "R² of gradient boosting", "neither", ".3f", table=False),
    NODES,
    Metric("tpf_max", "temporal field", "lower", ".2f"),
)
TINY_SEARCH = {"generations": 3, "population": 20, "searches": 1, "rows": 200}

row = partial(method, paper=PAPER, task="learned-optimization")
meta_trained = partial(
    row,
    smallest={"meta": {"windows": 4, "unroll": 3, "depth": 2}},
    rehearsal={"meta": {"windows": 1}},
    amounts="atlas.tasks.learned_optimization.competitors:meta_training_amounts",
    stacks=True,
)
network = partial(meta_trained, role="baseline", settings=TeacherSettings, plugin="plugin:Teacher")

network(
    "rp-small",
    title="RP, small",
    summary="RNNprop with one LSTM cell of 7, plainly meta-trained: the network that the equation imitates.",
    preset={"size": "rp-small"},
)
network(
    "rp",
    title="RP",
    summary="RNNprop with two LSTM cells of 20, plainly meta-trained.",
)
for _teacher, _symbolic, _title in (
    ("rp-small", "symbolic", "Equation of RP, small"),
    ("rp", "symbolic-rp", "Equation of RP"),
    ("l2o-dm", "symbolic-dm", "Equation of L2O-DM"),
):
    row(
        f"{_teacher}-records",
        title=f"Records of {_teacher}",
        summary="What the network sees and does on training runs: rows.npz.",
        role="stage",
        settings=RecordSettings,
        preset={"lags": 20, "runs": 12, "steps": 300},
        plugin="plugin:Recorder",
        needs={"teacher": _teacher},
        metrics=(),
        smallest={"lags": 3, "runs": 2, "steps": 20, "coordinates": 4},
        rehearsal={"runs": 2},  # a template is as wide as the records have lags
        amounts="plugin:recording_amounts",
    )
    row(
        f"{_teacher}-equation",
        title=f"Symbolic regression of {_teacher}",
        summary="The front of equations that imitate the network, and the one selected: rule.json.",
        role="stage",
        settings=EquationSettings,
        preset={"rows": 10_000, "time_limit_s": 600.0, "searches": 3},
        plugin="plugin:Regression",
        needs={"records": f"{_teacher}-records", "teacher": _teacher},
        metrics=(),
        smallest=TINY_SEARCH,
        rehearsal={**TINY_SEARCH, "engine": "operon"},
    )
    row(
        _symbolic,
        title=_title,
        summary="The distilled equation as an optimizer, as the search found it.",
        settings=SymbolicSettings,
        plugin="plugin:Symbolic",
        needs={"equation": f"{_teacher}-equation", "teacher": _teacher},
        extra_metrics=(*FIDELITY, Metric("network_tpf_max", "temporal field of the network", "neither", ".2f", table=False)),
        combines=False,
    )
row(
    "template",
    title="Template, least squares",
    summary="A sum of squashed features fitted to what the small network does.",
    role="ablation",
    settings=TemplateSettings,
    plugin="plugin:Template",
    needs={"records": "rp-small-records", "teacher": "rp-small"},
    extra_metrics=(R2, NODES),
)
meta_trained(
    "template-tuned",
    title="Template, meta-tuned",
    summary="The template with its numbers fine-tuned by meta-training: the paper's symbolic optimizer.",
    settings=TunedTemplateSettings,
    preset={"meta": {"windows": 400, "unroll": 10, "lr": 1e-2}},
    plugin="plugin:TunedTemplate",
    needs={"template": "template", "teacher": "rp-small"},
    extra_metrics=(NODES,),
)
row(
    "momentum-cosine",
    title="Momentum, cosine",
    summary="Heavy ball with a cosine schedule, the strong baseline on residual networks; step size tuned.",
    role="baseline",
    settings=CosineSettings,
    plugin="baselines:TunedCosine",
    traits=("hand-made",),
    extra_metrics=(Metric("tuned_lr", "step size", "neither", ".3g", table=False),),
    combines=False,
)
row(
    "recovery",
    title="recovery",
    summary="Whether the search finds the equation of an optimizer that is known.",
    settings=RecoverySettings,
    preset={"steps": 300, "coordinates": 20, "search": {"generations": 100, "time_limit_s": 600.0}},
    metrics=FIDELITY,
    train="stages:recover",
    evaluate=REPORTED,
    smallest={"steps": 60, "coordinates": 4, "runs": 2, "search": TINY_SEARCH},
    rehearsal={"search": TINY_SEARCH},
)
method(
    "symbolic-optimizer",
    paper=PAPER,
    task="image-classification",
    title="symbolic optimizer",
    summary="An equation takes AdamW's place; it stands in any recipe.",
    settings=OptimizerSettings,
    plugin="plugin:SymbolicTraining",
    phase="training",
)
