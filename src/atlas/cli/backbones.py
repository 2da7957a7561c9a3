"""Which of timm's transformers every method acts on: found by trying, on one small model of each family.

``python -m atlas.cli.backbones`` looks at every entrypoint of the installed timm and tries every family anew: minutes. It writes
``backbones.json`` beside this file, for the timm that is installed, and ``docs/backbones.md``. ``atlas list backbones`` reads it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from atlas.nn.families import Look

FILE = Path(__file__).with_name("backbones.json")
PAGE = Path("docs", "backbones.md")
METHODS = {"attnscale": "AttnScale", "featscale": "FeatScale", "diagnose": "diagnose", "diverse-vit": "Diverse-ViT", "uvc": "UVC"}
WORKS = "works"
CHANNELS = "works (over channels)"
"""The formula holds, of maps of channels on channels, which are no filter over tokens."""


@dataclass(frozen=True)
class Family:
    """One family and what every method says of it.

    Attributes
    ----------
    words : str
        What decides how a method acts; see :mod:`atlas.nn.families`.
    example : str
        The smallest of its entrypoints, whose small model was tried.
    entrypoints : list of str
        All of them.
    verdicts : dict of str
        By method: "works", perhaps "works (over channels)"; or why it is refused, before anything is changed.
    """

    words: str
    example: str
    entrypoints: list[str]
    verdicts: dict[str, str]


@dataclass(frozen=True)
class Backbones:
    """The table for one version of timm: families of transformers, and the entrypoints that are none."""

    timm: str
    families: list[Family]
    others: list[str]

    @classmethod
    def read(cls, path: Path = FILE) -> Backbones:
        """Read the table.

        Raises
        ------
        UserError
            It is for another version of timm than the one that is installed.
        """
        content = json.loads(path.read_text())
        if content["timm"] != version("timm"):
            raise UserError(
                f"the table of backbones was made with timm {content['timm']}, installed is {version('timm')}: "
                "make it anew with `python -m atlas.cli.backbones`"
            )
        return cls(content["timm"], [Family(**family) for family in content["families"]], content["others"])

    def write(self, path: Path = FILE) -> None:
        """Write the table of families and methods to a file, as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    def share(self, method: str) -> tuple[int, int]:
        """How many entrypoints a method acts on, and how many have blocks that attend."""
        counts = [(len(family.entrypoints), family.verdicts[method]) for family in self.families]
        return sum(count for count, found in counts if found in (WORKS, CHANNELS)), sum(count for count, _ in counts)


def rows() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the table, one for each family."""
    header = ("example", "entrypoints", *METHODS.values(), "family")
    return header, [
        (family.example, str(len(family.entrypoints)), *(family.verdicts[method] for method in METHODS), family.words)
        for family in Backbones.read().families
    ]


def examined(looks: dict[str, Look]) -> Backbones:
    """Try every family of entrypoints, by what a look at them found."""
    members: dict[str, list[str]] = {}
    for entrypoint, found in sorted(looks.items()):
        members.setdefault(found.family, []).append(entrypoint)
    others = members.pop("", [])
    families = []
    for words, entrypoints in sorted(members.items()):
        example = min(entrypoints, key=lambda entrypoint: looks[entrypoint].weights)
        families.append(Family(words, example, entrypoints, verdicts(example, looks[example])))
    return Backbones(version("timm"), families, others)


def verdicts(entrypoint: str, found: Look) -> dict[str, str]:
    """What every method says of a small model of an entrypoint's family."""
    checks: dict[str, Callable[[Any, Tensor], str | None]] = {
        "attnscale": _attnscale,
        "featscale": _featscale,
        "diagnose": _diagnose,
        "diverse-vit": _diverse_vit,
        "uvc": _uvc,
    }
    return {method: verdict(checks[method], entrypoint, found) for method in METHODS}


def verdict(check: Callable[[Any, Tensor], str | None], entrypoint: str, found: Look) -> str:
    """Try one method: "works", or why it is refused; "fails: …" for anything else, which no family may end in.

    ``check`` is called with a small model and images (batch, channels, height, width) for it. It may return the verdict, where
    "works" does not say all.
    """
    from atlas.nn.families import small_model

    model, images = small_model(entrypoint, found)
    before = state_of(model)
    try:
        return check(model, images) or WORKS
    except TypeError as error:
        return f"fails: {error}" if state_of(model) != before else _first(str(error))
    except Exception as error:
        return f"fails: {type(error).__name__}: {error}"


def _first(reason: str) -> str:
    """A reason that names many blocks, cut after the first of them."""
    start, comma, rest = reason.partition("), ")
    return f"{start}) …{rest.rpartition(')')[2]}" if comma else reason


def state_of(model: nn.Module) -> dict[str, Any]:
    """What a call could leave behind in a model: modules and their classes, names and values of the state, hooks, modes."""
    return {
        "modules": {path: (id(module), type(module), module.training) for path, module in model.named_modules()},
        "state": {
            name: (value.data_ptr(), value._version, value.shape) for name, value in model.state_dict(keep_vars=True).items()
        },
        "hooks": {path: (list(m._forward_hooks), list(m._forward_pre_hooks)) for path, m in model.named_modules()},
    }


def _outputs(model: nn.Module, images: Any) -> Tensor:
    """Everything that a model returns, in one vector."""
    import torch

    found = model(images)
    return torch.cat([part.flatten() for part in (found if isinstance(found, tuple | list) else [found])])


def _attnscale(model: Any, images: Tensor) -> str:
    from atlas.methods.anti_oversmoothing import apply_attnscale
    from atlas.methods.anti_oversmoothing.textbook import textbook_attnscale
    from atlas.nn.anatomy import attention_sites

    _against_the_formula(model, images, apply_attnscale, textbook_attnscale, 1)
    return WORKS if all(site.anatomy.over_tokens for site in attention_sites(model)) else CHANNELS


def _featscale(model: Any, images: Tensor) -> None:
    from atlas.methods.anti_oversmoothing import apply_featscale
    from atlas.methods.anti_oversmoothing.textbook import textbook_featscale

    _against_the_formula(model, images, apply_featscale, textbook_featscale, 2)


def _against_the_formula(model: Any, images: Tensor, apply: Callable[..., Any], textbook: Callable[..., Any], each: int) -> None:
    """At 0 nothing may change but for roundings; elsewhere it must be the textbook's formula; in bfloat16 close to it."""
    import torch

    from atlas.methods.anti_oversmoothing import scale_parameters
    from atlas.nn.anatomy import attention_sites

    apply(model)  # a refusal must leave this very model alone; what follows acts on it in better precision
    treated, images, tolerance = _widest(model, images)
    scales = list(scale_parameters(treated).values())
    plain = _plain(treated)
    with torch.no_grad():
        before, after = _outputs(plain, images), _outputs(treated, images)
        roundings = 16 * torch.finfo(before.dtype).eps * float(before.abs().max())  # kernels may sum in another order
        _require(torch.allclose(after, before, rtol=0, atol=roundings), "at 0 the outputs change")
        random = torch.Generator().manual_seed(4)
        for scale in scales:
            scale.copy_(1.2 * torch.rand(scale.shape, generator=random) - 0.4)
        paths = [site.path for site in attention_sites(plain)]
        groups = [scales[at : at + each] for at in range(0, len(scales), each)]
        known = {path: group[0] if each == 1 else tuple(group) for path, group in zip(paths, groups, strict=True)}
        with textbook(plain, known):
            expected = _outputs(plain, images)
        found = _outputs(treated, images)
    _close(found, expected, tolerance, "differs from the formula")
    _close(_outputs(treated, images).detach(), expected, tolerance, "with gradients, differs from the formula")
    with torch.no_grad():
        half = _outputs(treated.bfloat16(), images.bfloat16()).to(expected)
    _close(half, expected, 0.25, "in bfloat16, is far from the formula")
    _require(len(scales) == each * len(paths), "has other scales than attentions")


def _plain(treated: Any) -> Any:
    from atlas.methods.anti_oversmoothing import remove_scales

    return remove_scales(copy.deepcopy(treated))


def _widest(model: Any, images: Tensor) -> tuple[Any, Tensor, float]:
    """The model and images in double precision; in single precision where timm's model itself cannot be computed in double."""
    import torch

    wide = copy.deepcopy(model).double()
    try:
        with torch.no_grad():
            _outputs(wide, images.double())
    except RuntimeError:
        return copy.deepcopy(model), images, 1e-4
    return wide, images.double(), 1e-9


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ArithmeticError(otherwise)


def _close(found: Tensor, expected: Tensor, tolerance: float, otherwise: str) -> None:
    error, scale = float((found - expected).abs().max()), float(expected.abs().max())
    _require(error <= tolerance * (1 + scale), f"{otherwise} by {error:.2g}, where outputs reach {scale:.2g}")


def _diagnose(model: Any, images: Tensor) -> None:
    from atlas.nn.diagnostics import diagnose

    before = state_of(model)
    values = diagnose(model, images)["value"]
    _require(bool(values.notna().all()), "some values are missing")
    _require(state_of(model) == before, "the model is not as it was")


def _diverse_vit(model: Any, images: Tensor) -> None:
    import torch

    from atlas.methods.diverse_vit import DiversityConfig, DiversityTrainer
    from atlas.methods.diverse_vit.mixing import MixTarget

    before = state_of(model)
    with DiversityTrainer(model, DiversityConfig()) as trainer:
        out = trainer(images)
        tokens = out.token_logits
        assert tokens is not None
        patches = torch.full((tokens.shape[1] - trainer.prefix,), 0.5)
        target = MixTarget(torch.tensor([0, 1]), torch.tensor([1, 0]), 0.5, patches, 0.1, tokens.shape[-1])
        trainer.loss(out, target)[0].backward()
    model.zero_grad(set_to_none=True)
    _require(state_of(model) == before, "the model is not as it was")


def _uvc(model: Any, images: Tensor) -> None:
    from atlas.methods.uvc import CompressionPlan, ViTShape, export
    from atlas.methods.uvc.compression import smallest_cut

    shape = ViTShape.from_timm(model)
    plan: CompressionPlan = smallest_cut(shape)
    export(model, plan)
    if shape.depth > 1:
        plan.keep[0] = False
        plan.dims[:, 0] = plan.dims[:, 0] & (plan.dims.shape[1] == 1)
        export(model, plan)


YES = {WORKS: "yes", CHANNELS: "over channels"}


def page(table: Backbones) -> str:
    """Render the table of families and methods as the page of the documentation."""
    reasons: dict[str, int] = {}
    lines = []
    for family in table.families:
        cells = []
        for method in METHODS:
            verdict_ = family.verdicts[method]
            no = f"no ({reasons.setdefault(verdict_, len(reasons) + 1)})" if verdict_ not in YES else ""
            cells.append(YES.get(verdict_, no))
        lines.append(f"| `{family.example}` | {len(family.entrypoints)} | {' | '.join(cells)} | {family.words} |")
    shares = "\n".join(
        f"| {label} | {count} of {total} | {100 * count / total:.1f} % |"
        for method, label in METHODS.items()
        for count, total in [table.share(method)]
    )
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return PAGE_TEXT.format(
        version=table.timm,
        shares=shares,
        header=" | ".join(METHODS.values()),
        rule="|".join("---" for _ in METHODS),
        lines="\n".join(lines),
        notes=notes,
        others=len(table.others),
    )


PAGE_TEXT = """# Backbones

<!-- Written by `python -m atlas.cli.backbones`; do not edit. -->

Which vision transformers of timm {version} each method acts on. It was found by trying: one small model of every family, that
is of every combination of the classes of model, block, attention and feed-forward, and of their optional parts. A family counts
as a transformer if the model has blocks, one after another or in stages, that attend. {others} entrypoints do not count, and
every method refuses them: convolutional networks, mixers, hybrids with convolutional stages, and the pyramids that attend in
stages by attentions of their own, or keep their blocks elsewhere (CoaT, DaViT, GC ViT, LeViT, MViT, NesT, PiT, PVT, TinyViT,
VOLO: 86 entrypoints of timm 1.0.31).

| method | entrypoints whose blocks attend | share |
|---|---|---|
{shares}

"yes" for AttnScale and FeatScale says: at 0 the model's outputs are unchanged to the last bit; elsewhere they are those of the
textbook formula with explicit maps, in double precision; and they are close to it in bfloat16. For diagnose and Diverse-ViT, that
maps and features were read and the model left as it was. For UVC, that the exported model equals the masked one. "no" is a
`TypeError` that is raised before anything is changed or computed; the numbers stand for its text, below.

"over channels" is XCiT. The maps of its cross-covariance attention are of a head's channels on its channels, and their rows sum
to 1, so Â = J + (1 + ω)(A − J) is as well defined there, with J a mean of channels, and it is checked against explicit maps
like all others. But what it sharpens are contrasts between channels, not between tokens: the same map mixes the channels of
every token, all frequencies over tokens pass it alike, and the paper's theory, of maps that smooth tokens, does not speak about
it. Whether it helps there is open. XCiT's last two layers, class attention of one query, stay apart, as in CaiT. FeatScale asks
for no map: it re-weights the mean over tokens, and the rest, of what any attention makes.

`atlas list backbones` prints the same table.

| smallest entrypoint | entrypoints | {header} | family |
|---|---|{rule}|---|
{lines}

## Reasons

{notes}
"""


def main() -> None:
    """Look, try, and write the table and the page."""
    from atlas.nn.families import looks

    table = examined(dict(looks()))
    table.write()
    PAGE.write_text(page(table))
    for method in METHODS:
        print(method, *table.share(method))


if __name__ == "__main__":
    main()
