"""Plugs As-ViT into image classification: search → grow → train, each a job, the ranking study, their baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import Field, model_validator

from atlas.harness.registry import Amount, Amounts, Metric, method, paper
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.settings import Settings
from atlas.tasks.image_classification.entry import METRICS, training_amount

if TYPE_CHECKING:
    from atlas.methods.as_vit.ingredient import Network, Retokenize

PAPER = paper(
    "as-vit",
    title="Auto-scaling Vision Transformers without Training",
    citation="W. Chen, W. Huang, X. Du, X. Song, Z. Wang, D. Zhou, ICLR 2022",
    url="https://arxiv.org/abs/2202.11921",
)
TASK = "image-classification"
Natural = Annotated[int, Gt(0)]
Positive = Annotated[float, Gt(0)]
Fraction = Annotated[float, Ge(0), Lt(1)]


class MeasureSettings(Settings):
    """How untrained networks are measured (Sec. 3.1): draws of the weights, points of the circle, images of the kernel."""

    repeats: Natural = 5
    points: Annotated[int, Ge(3)] = 10
    images: Annotated[int, Ge(2)] = 16
    average: Literal["mean", "median"] = "mean"


class SpaceSettings(MeasureSettings):
    """The search space, and the small network in which topologies are measured.

    ``choices`` replaces groups of the published space, for example ``{K1: [2, 3, 4]}`` for a stem of stride 2.
    """

    width: Natural = 32
    stride: Natural = 4
    max_width: Natural = 1024
    choices: dict[str, tuple[Natural, ...]] = Field(default_factory=dict)


class SearchSettings(SpaceSettings):
    """REINFORCE with the authors' settings, and random search of as many trials (Sec. 3.2).

    ``relative`` scales the measures by their first values before the authors' 1e-6 is added to their range.
    ``check_repeats`` draws of fresh weights compare what the searches found.
    """

    steps: Natural = 500
    learning_rate: Positive = 0.08
    window: Annotated[int, Ge(2)] = 20
    momentum: Fraction = 0.9
    relative: bool = False
    check_repeats: Natural = 5


class GrowthSettings(MeasureSettings):
    """Growth of the searched topology into a family (Sec. 3.3), and of others of the same size to compare it with.

    ``width0`` and its growth are the widths that are measured; the network has ``width_scale`` times as much. Growth stops once a
    member has ``target`` parameters, or after ``max_steps``. Baselines are within ``tolerance`` of the last member's size, where
    ``attempts`` draws find such a one. ``window`` and ``swin_depths`` describe the manual design.
    """

    width0: Natural = 8
    width_scale: Natural = 4
    ratios: tuple[Positive, ...] = (0.05, 0.10, 0.15, 0.20)
    limit: Natural = 110_000_000
    target: Natural = 80_000_000
    max_steps: Natural = 24
    tolerance: Positive = 0.05
    attempts: Natural = 200
    window: Natural = 7
    swin_depths: tuple[Natural, Natural, Natural, Natural] = (2, 2, 18, 2)


class RankingSettings(SpaceSettings):
    """Measures of untrained networks against the accuracy of trained ones, over topologies drawn uniformly.

    ``proxy_images`` are the images of the gradient norm; ``draws`` of the bootstrap. ``law_topologies`` further topologies at
    ``law_size`` pixels say how closely length follows the product of the merge kernels.
    """

    topologies: Annotated[int, Ge(4)] = 80
    proxy_images: Natural = 64
    draws: Natural = 2000
    law_topologies: Annotated[int, Ge(3)] = 30
    law_size: Natural = 64


class ModelSettings(Settings):
    """A trained network of the family; ``pos_embed`` adds a learned position embedding after the stem."""

    pos_embed: Literal["none", "absolute"] = "none"


class RetokenizeSettings(Settings):
    """``phases``: (progress of training at which it begins, stride of the stem). The default is the paper's."""

    phases: tuple[tuple[float, Natural], ...] = ((0.0, 16), (0.267, 8), (0.44, 4))

    @model_validator(mode="after")
    def _ordered(self) -> RetokenizeSettings:
        begins = [begin for begin, _ in self.phases]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)) or begins[-1] >= 1:
            raise ValueError("phases must begin at progress 0 and then at increasing progress below 1")
        return self


SMALL_MEASURES = {"repeats": 1, "points": 3, "images": 2}

# stages

SEARCH_METRICS = (
    Metric("merge_product", "K₂K₃K₄ found", "neither", ".0f"),
    Metric("random_merge_product", "K₂K₃K₄ by random search", "neither", ".0f"),
    Metric("length", "length of the found", "higher", ".3g"),
    Metric("random_length", "length by random search", "higher", ".3g"),
    Metric("merges_length", "length of the largest merges", "higher", ".3g"),
    Metric("ntk", "κ of the found", "lower", ".0f"),
    Metric("random_ntk", "κ by random search", "lower", ".0f"),
    Metric("merges_ntk", "κ of the largest merges", "lower", ".0f"),
    Metric("search_seconds", "search, s", "lower", ".0f", measured=True),
)
GROWTH_METRICS = (
    Metric("widest_share", "steps that took the widest", "neither", ".0%"),
    Metric("growth_steps", "steps", "neither", ".0f"),
    Metric("parameters", "parameters", "neither", ",.0f", cost=False),
    Metric("macs", "MACs / image", "neither", ".3g", cost=False),
    Metric("total_width", "total width", "neither", ".0f"),
    Metric("random_parameters_ratio", "random scaling's parameters ÷ ours", "neither", ".3f", cost=False),
    Metric("growth_seconds", "growth, s", "lower", ".0f", measured=True),
)
PROXIES = {
    "length": "length",
    "ntk": "−κ of the kernel",
    "merge_product": "K₂K₃K₄",
    "parameters": "parameters",
    "macs": "MACs",
    "curvature": "−curvature",
    "synflow": "SynFlow",
    "grad_norm": "gradient norm",
}
"""Measures of untrained networks, each oriented so that larger should mean more accurate."""

RANKING_METRICS = (
    Metric("tau_length", "τ length", "higher", ".2f"),
    Metric("tau_length_low", "τ length, lower bound", "higher", ".2f", table=False),
    Metric("tau_length_high", "τ length, upper bound", "higher", ".2f", table=False),
    *(Metric(f"tau_{name}", f"τ {label}", "higher", ".2f") for name, label in PROXIES.items() if name != "length"),
    Metric("tau_over_ntk", "τ length − τ −κ", "higher", ".2f", table=False),
    Metric("tau_over_ntk_low", "its lower bound", "higher", ".2f", table=False),
    Metric("tau_over_merge_product", "τ length − τ K₂K₃K₄", "higher", ".2f", table=False),
    Metric("tau_over_merge_product_low", "its lower bound", "higher", ".2f", table=False),
    Metric("law_r2", "R² of length on K₂K₃K₄", "higher", ".3f"),
    Metric("top1_mean", "top-1, mean topology", "higher", ".1%"),
    Metric("top1_sd", "its deviation", "neither", ".1%"),
    Metric("top1_best", "top-1, best by validation", "higher", ".1%"),
)


def _train(module: str, name: str) -> Any:
    """A function that loads the module when it is called."""

    def train(run: Run) -> Mapping[str, Any]:
        from importlib import import_module

        return getattr(import_module(f"atlas.methods.as_vit.{module}"), name)(run)

    return train


def _summary(metrics: tuple[Metric, ...]) -> Any:
    """Stages measure untrained networks: what training reports is what there is to evaluate."""

    def evaluate(run: Run) -> Mapping[str, float]:
        from atlas.harness.execute import training_summary

        found = training_summary(run)
        return {metric.name: found[metric.name] for metric in metrics}

    return evaluate


def _evaluate_ranking(run: Run) -> Mapping[str, float]:
    from atlas.methods.as_vit.baselines import judge_ranking

    return judge_ranking(run)


REHEARSED = 4
"""Topologies of a rehearsed ranking study."""


REINFORCE, RANDOM_SEARCH, CHECK, GROWTH = "reinforce", "random-search", "check", "growth"
"""Loops of the stages, and the comparison of what was found."""


def topology_phase(index: int) -> str:
    """Name of the loop that trains a topology of the ranking study."""
    return f"topology{index:03d}"


def _search_amounts(run: Run) -> Amounts:
    """Trials of either search, and the three topologies that are compared; draws of the weights in each."""
    settings: SearchSettings = run.settings_model("as-vit-search")
    trials = Amount(settings.steps, settings.repeats, 1)
    return {REINFORCE: trials, RANDOM_SEARCH: trials, CHECK: Amount(1, settings.check_repeats, 1)}


def _growth_amounts(run: Run) -> Amounts:
    """Steps of growth and draws of the weights in each; a family has about ten steps."""
    settings: GrowthSettings = run.settings_model("as-vit-growth")
    return {GROWTH: Amount(min(10, settings.max_steps), settings.repeats, 1)}


def _ranking_amounts(run: Run) -> Amounts:
    """A training of each topology that a rehearsal has, as if all the others cost the same; measures cost little beside it."""
    settings: RankingSettings = run.settings_model("as-vit-ranking")
    one = training_amount(run, run.protocol_model().epochs)
    share = one._replace(steps=one.steps * settings.topologies / REHEARSED)
    return {topology_phase(index): share for index in range(REHEARSED)}


def _retokenized_amounts(run: Run) -> Amounts:
    """A rehearsal trains at the finest tokenisation alone: its images are counted in images of the mean cost of all phases."""
    from atlas.methods.as_vit.ingredient import mean_share

    amount = training_amount(run, run.protocol_model().epochs)
    return {TRAIN: amount if run.limit is None else amount._replace(batch=amount.batch / mean_share(run))}


@method(
    "as-vit-search",
    paper=PAPER,
    task=TASK,
    title="As-ViT search",
    summary="Searches a topology by two measures of untrained networks, with REINFORCE and with random search.",
    role="stage",
    settings=SearchSettings,
    metrics=SEARCH_METRICS,
    smallest={**SMALL_MEASURES, "steps": 3, "check_repeats": 1},
    rehearsal={"repeats": 1, "check_repeats": 1},
    amounts=_search_amounts,
    train=_train("stages", "search_topology"),
    evaluate=_summary(SEARCH_METRICS),
)
def as_vit_search(run: Run, settings: SearchSettings) -> SearchSettings:
    """Leaves ``search.json``: the topologies found, the space, and the policy."""
    return settings


@method(
    "as-vit-growth",
    paper=PAPER,
    task=TASK,
    title="As-ViT growth",
    summary="Grows the searched topology into a family, and other scalings of the same size beside it.",
    role="stage",
    settings=GrowthSettings,
    needs={"search": "as-vit-search"},
    metrics=GROWTH_METRICS,
    smallest={**SMALL_MEASURES, "max_steps": 2},
    rehearsal={"repeats": 1},
    amounts=_growth_amounts,
    train=_train("stages", "grow_family"),
    evaluate=_summary(GROWTH_METRICS),
)
def as_vit_growth(run: Run, settings: GrowthSettings) -> GrowthSettings:
    """Leaves ``family.json``: every member, and the scalings that it is compared with."""
    return settings


@method(
    "as-vit-ranking",
    paper=PAPER,
    task=TASK,
    title="random topologies",
    summary="Trains topologies drawn at random and correlates measures of the untrained networks with their accuracy.",
    role="baseline",
    settings=RankingSettings,
    metrics=RANKING_METRICS,
    smallest={**SMALL_MEASURES, "topologies": 4, "proxy_images": 4, "draws": 20, "law_topologies": 4, "law_size": 32},
    rehearsal={"repeats": 1, "images": 2, "proxy_images": 2, "topologies": REHEARSED, "law_topologies": 3, "draws": 20},
    amounts=_ranking_amounts,
    train=_train("baselines", "rank_topologies"),
    evaluate=_evaluate_ranking,
)
def as_vit_ranking(run: Run, settings: RankingSettings) -> Any:
    """Leaves ``topologies.json`` and the weights of every topology."""
    from atlas.methods.as_vit.ingredient import Candidates

    return Candidates(settings)


# trained networks

NETWORK_METRICS = (
    *(metric for metric in METRICS if metric.name in {"top1", "nll", "ece", "parameters", "forward_flops", "train_flops"}),
    Metric("macs", "MACs / image", "lower", ".3g"),
)
OTHERS = ("attnscale", "featscale", "head-gain", "output-gain", "layerscale", "uvc")
"""Methods that rewrite the blocks of timm's VisionTransformer, which these networks do not have."""


def _evaluate_network(run: Run) -> Mapping[str, float]:
    from atlas.methods.as_vit.ingredient import evaluate

    return evaluate(run)


def _network(name: str, title: str, summary: str, role: str, source: str, key: str, needs: tuple[str, ...]) -> None:
    """Register a row that trains one network: ``key`` says which, in the file that ``source`` leaves."""

    def build(run: Run, settings: Settings) -> Network:
        from atlas.methods.as_vit.ingredient import Network, design_of

        return Network(design_of(source, key, getattr(settings, "pos_embed", "none")))

    method(
        name,
        paper=PAPER,
        task=TASK,
        title=title,
        summary=summary,
        role=role,
        settings=ModelSettings if needs else Settings,
        needs={role: f"as-vit-{role}" for role in needs},
        conflicts=OTHERS,
        metrics=NETWORK_METRICS,
        evaluate=_evaluate_network,
    )(build)


TOPOLOGIES = (
    ("as-vit-seed", "As-ViT seed", "The topology that REINFORCE found, not scaled.", "method", "topology"),
    ("random-topology", "random topology", "A topology drawn uniformly, at the same width and depth.", "baseline", "random"),
    (
        "random-search",
        "random search",
        "The best of as many random trials by the same measures.",
        "baseline",
        "random_search",
    ),
    (
        "merge-product",
        "largest merges",
        "K₂ = K₃ = K₄ at their largest, the rest median: no search.",
        "baseline",
        "largest_merges",
    ),
)
SCALINGS = (
    ("as-vit", "As-ViT", "The topology found by search, scaled by growth.", "method", "rank"),
    ("random-scaling", "random scaling", "The same topology and size, each step of growth random.", "baseline", "random"),
    ("max-width-scaling", "widest growth", "The same topology and size, always the widest step.", "baseline", "max-width"),
    ("uniform-scaling", "uniform scaling", "The same topology and size, equal depths.", "baseline", "uniform"),
    ("swin-like", "Swin-like", "A manual design of that size: merges of 2, expansion 4, depth in stage 3.", "baseline", "swin"),
)
PUBLISHED = (
    ("as-vit-small", "As-ViT-Small", "The published Small model; its depths are inferred from its size.", "method"),
    ("as-vit-base", "As-ViT-Base", "The published Base model; its depths are inferred from its size.", "method"),
    ("as-vit-large", "As-ViT-Large", "The published Large model.", "method"),
)
for _name, _title, _text, _role, _key in TOPOLOGIES:
    _network(_name, _title, _text, _role, "search", _key, ("search",))
for _name, _title, _text, _role, _key in SCALINGS:
    _network(_name, _title, _text, _role, "growth", _key, ("search", "growth"))
for _name, _title, _text, _role in PUBLISHED:
    _network(_name, _title, _text, _role, "published", _name, ())


@method(
    "retokenize",
    paper=PAPER,
    task=TASK,
    title="re-tokenisation",
    summary="Trains with few coarse tokens first and finer ones later, by stride and dilation of the stem alone.",
    settings=RetokenizeSettings,
    phase="training",
    conflicts=OTHERS,
    amounts=_retokenized_amounts,
)
def retokenize(run: Run, settings: RetokenizeSettings) -> Retokenize:
    """Stands behind a network of this paper: ``as-vit+retokenize``."""
    from atlas.methods.as_vit.ingredient import Retokenize

    return Retokenize(settings.phases)
