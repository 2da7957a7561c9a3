"""Per-layer diagnostics of vision transformers: likeness of tokens, heads and weight rows, and what is left of high frequencies.

DC is the mean over tokens (bin 0 of the Fourier transform over the token axis), HC the rest. Features are (batch, tokens,
dim), attention maps (batch, heads, tokens, tokens) with rows that sum to 1, weights (out, in). All averages over samples
are averages of per-sample values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from atlas.nn.anatomy import (
    Site,
    anatomy_of,
    attention_modules,
    attention_sites,
    prefix_tokens,
    require_one_sequence,
    transformer_blocks,
)
from atlas.nn.examples import as_tensor, in_type_of
from atlas.nn.kinds import require_whole
from atlas.nn.modes import mode_of
from atlas.nn.vit import at_least_float32, attention_maps, block_features, require_maps

if TYPE_CHECKING:
    import pandas as pd

EPSILON = 1e-8
SPECTRAL_IMAGES = 8
RESPONSE = "attn_freq_response"
OF_TOKENS = (
    "token_cosine", "token_cosine_abs", "hf_dc_ratio", "hf_energy_fraction", "dc_energy_fraction", "token_cross_layer",
)  # fmt: skip
OF_MAPS = (
    "attn_head_cosine", "attn_cross_layer", "attn_hf_gain", "attn_hf_gain_effective", "attn_lambda2", "attn_lambda2_effective",
    "attn_hf_norm", "attn_hf_norm_effective", RESPONSE,
)  # fmt: skip
OF_WEIGHTS = ("weight_row_cosine_abs", "weight_effective_rank", "weight_cond_gap", "weight_mhs", "weight_mgd")


def unit(vectors: Tensor) -> Tensor:
    """Scale the last axis of (…, dim) to unit length; vectors shorter than 1e-8 are divided by 1e-8."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(EPSILON)


def dc(tokens: Tensor, dim: int = -2) -> Tensor:
    """Mean over the token axis, repeated: the zero-frequency part. Same shape as ``tokens``."""
    return tokens.mean(dim, keepdim=True).expand_as(tokens)


def hc(tokens: Tensor, dim: int = -2) -> Tensor:
    """Everything but the mean over the token axis: the high-frequency part. Same shape as ``tokens``."""
    return tokens - tokens.mean(dim, keepdim=True)


def token_cosine(tokens: Tensor, *, abs: bool = False, diag: bool = False) -> Tensor:
    """Mean cosine between the tokens of a sample, averaged over the batch.

    Parameters
    ----------
    tokens : Tensor
        (batch, n, dim), n ≥ 2 unless ``diag``.
    abs : bool
        Average absolute values; costs n² instead of n.
    diag : bool
        Include each token with itself; then the value is ‖mean of unit tokens‖².
    """
    count = tokens.shape[-2]
    unit_tokens = unit(tokens)
    if abs:
        total = (unit_tokens @ unit_tokens.transpose(-2, -1)).abs().sum((-2, -1))
        own = unit_tokens.square().sum((-2, -1))
    else:
        total = unit_tokens.sum(-2).square().sum(-1)
        own = unit_tokens.square().sum((-2, -1))
    if diag:
        return (total / count**2).mean()
    return ((total - own) / (count * (count - 1))).mean()


def hf_dc_ratio(tokens: Tensor) -> Tensor:
    """Mean over samples of ‖HC‖_F / ‖DC‖_F; 0 when all tokens are equal. ``tokens``: (batch, n, dim)."""
    return (hc(tokens).norm(dim=(-2, -1)) / dc(tokens).norm(dim=(-2, -1))).mean()


def hf_energy_fraction(tokens: Tensor) -> Tensor:
    """Mean over samples of ‖HC‖² / ‖X‖², in [0, 1]. ``tokens``: (batch, n, dim)."""
    return (hc(tokens).square().sum((-2, -1)) / tokens.square().sum((-2, -1))).mean()


def dc_energy_fraction(tokens: Tensor) -> Tensor:
    """One minus :func:`hf_energy_fraction` of tokens (batch, n, dim).

    Of unit tokens it is :func:`token_cosine` with the diagonal.
    """
    return 1 - hf_energy_fraction(tokens)


def token_cross_layer(first: Tensor, later: Tensor, *, all_pairs: bool = False) -> Tensor:
    """Mean cosine between the tokens (batch, n, dim) of two layers: each with itself, or absolute over all pairs."""
    if all_pairs:
        return (unit(first) @ unit(later).transpose(-2, -1)).abs().mean()
    return (unit(first) * unit(later)).sum(-1).mean()


def attn_head_cosine(maps: Tensor, *, diag: bool = False) -> Tensor:
    """Mean cosine between the flattened maps (batch, heads, n, n) of the heads; ``nan`` for one head without the diagonal."""
    return token_cosine(maps.flatten(-2), diag=diag)


def attn_cross_layer(first: Tensor, later: Tensor, *, flattened: bool = False) -> Tensor:
    """Mean cosine between the maps (batch, heads, n, n) of two layers.

    It is per key over queries (DeepViT's measure), or of whole maps of the same head if ``flattened``.
    """
    if flattened:
        return (unit(first.flatten(-2)) * unit(later.flatten(-2))).sum(-1).mean()
    return (unit(first.transpose(-2, -1)) * unit(later.transpose(-2, -1))).sum(-1).mean()


def centred(maps: Tensor) -> Tensor:
    """P A P with P = I − 11ᵀ/n for maps (…, n, n): the part of a map that acts on, and leaves, high frequencies."""
    left = maps - maps.mean(-2, keepdim=True)
    return left - left.mean(-1, keepdim=True)


def attn_hf_gain(maps: Tensor) -> Tensor:
    """Largest singular value of P A P: the most that a map can amplify high frequencies. (…, n, n) → (…); nan for nan."""
    finite, maps = _finite_maps(maps)
    return torch.where(finite, torch.linalg.svdvals(centred(maps))[..., 0], torch.nan)


def attn_lambda2(maps: Tensor) -> Tensor:
    """Second largest absolute eigenvalue of a map: its asymptotic low-pass rate. (…, n, n) → (…); 0 for n = 1, nan for nan."""
    if maps.shape[-1] == 1:
        return maps.new_zeros(maps.shape[:-2])
    finite, maps = _finite_maps(maps)
    return torch.where(finite, torch.linalg.eigvals(maps).abs().sort(-1, descending=True).values[..., 1], torch.nan)


def _finite_maps(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Which maps (…, n, n) hold numbers only, and the maps with zeros in place of the others, which no decomposition takes."""
    finite = maps.isfinite().all(-1).all(-1)
    return finite, torch.where(finite[..., None, None], maps, 0.0)


def attn_hf_norm(maps: Tensor) -> Tensor:
    """‖A − 11ᵀ/n‖_F. (…, n, n) → (…)."""
    return (maps - 1 / maps.shape[-1]).norm(dim=(-2, -1))


def attn_freq_response(maps: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Gain ‖A f_k‖ / ‖f_k‖ of a map on every Fourier mode over tokens.

    Parameters
    ----------
    maps : Tensor
        (…, n, n). With ``grid``, rows and columns of the patch tokens only, rows summing to 1.
    grid : (int, int), optional
        Height and width of the patch grid: two-dimensional modes, averaged over rings of equal rounded radius.

    Returns
    -------
    Tensor
        (…, n) gains of the modes k = 0 … n − 1; with ``grid``, (…, rings).
    """
    count = maps.shape[-1]
    modes = torch.fft.fft(torch.eye(count, dtype=maps.dtype, device=maps.device))
    if grid is None:
        return (maps.to(modes.dtype) @ modes).norm(dim=-2) / math.sqrt(count)
    height, width = grid
    if height * width != count:
        raise ValueError(f"a grid of {height} × {width} has {height * width} patches, the map has {count} tokens")
    rows = torch.fft.fft(torch.eye(height, dtype=maps.dtype, device=maps.device))
    columns = torch.fft.fft(torch.eye(width, dtype=maps.dtype, device=maps.device))
    gains = (maps.to(modes.dtype) @ torch.kron(rows, columns)).norm(dim=-2) / math.sqrt(count)
    vertical = torch.fft.fftfreq(height, device=maps.device) * height
    horizontal = torch.fft.fftfreq(width, device=maps.device) * width
    ring = torch.hypot(vertical[:, None], horizontal[None, :]).round().long().flatten()
    sums = gains.new_zeros(*gains.shape[:-1], int(ring.max()) + 1).index_add_(-1, ring, gains)
    return sums / torch.bincount(ring)


def patch_maps(maps: Tensor, prefix: int) -> Tensor:
    """Drop the rows and columns of prefix tokens from maps (…, tokens, tokens), and let the rows sum to 1 again."""
    inner = maps[..., prefix:, prefix:]
    return inner / inner.sum(-1, keepdim=True).clamp_min(EPSILON)


def weight_row_cosine_abs(weight: Tensor) -> Tensor:
    """Mean absolute cosine between different rows of a weight (out, in)."""
    return token_cosine(weight[None], abs=True)


def weight_effective_rank(weight: Tensor) -> Tensor:
    """Exp of the entropy of the normalised singular values, between 1 and min(out, in)."""
    values = torch.linalg.svdvals(weight)
    share = values / values.sum()
    return torch.exp(-torch.xlogy(share, share).sum())


def weight_cond_gap(weight: Tensor) -> Tensor:
    """(λ_max − λ_min)² of W Wᵀ, exact; 0 for an orthogonal matrix. ``weight``: (out, in)."""
    wide = weight.detach().cpu().double()  # in single precision the iteration may fail on a weight that is almost all pruned
    eigenvalues = torch.linalg.eigvalsh(wide @ wide.T)
    return (eigenvalues[-1] - eigenvalues[0]).square().to(weight)


def _squared_distances(vectors: Tensor) -> Tensor:
    return 2 - 2 * unit(vectors) @ unit(vectors).transpose(-2, -1)


def mhs(vectors: Tensor) -> Tensor:
    """Smallest squared distance between two different unit rows: maximum hyperspherical separation. (n, d), n ≥ 2."""
    count = vectors.shape[-2]
    upper = torch.triu_indices(count, count, 1, device=vectors.device)
    return _squared_distances(vectors)[..., upper[0], upper[1]].amin(-1)


def mgd(vectors: Tensor) -> Tensor:
    """Log det of the Gaussian Gram matrix of the unit rows plus 1e-6·I: maximum Gram determinant. (n, d)."""
    gram = torch.exp(-_squared_distances(vectors))
    return torch.logdet(gram + 1e-6 * torch.eye(vectors.shape[-2], dtype=vectors.dtype, device=vectors.device))


def _layer_weights(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The projections of a block as (out, in) matrices: q, k, v, proj, fc1, fc2."""
    for _, attention in attention_modules(block):
        anatomy = anatomy_of(type(attention))
        if anatomy is None:
            yield "proj", attention.proj.weight.detach()
            continue
        site = Site("", "", attention, anatomy)
        yield from zip("qkv", (weight.detach() for weight in site.weights()), strict=True)
        yield "proj", site.projection.weight.detach()
    mlp: Any = getattr(block, "mlp", None)
    if mlp is not None and hasattr(mlp, "fc1"):
        yield "fc1", mlp.fc1.weight.detach()
        yield "fc2", mlp.fc2.weight.detach()


Rows = list[tuple[int, int | None, str, float]]


def _features(model: nn.Module, images: Tensor, prefix: int) -> Rows:
    rows: Rows = []
    features = [feature[:, prefix:] for feature in block_features(model, images)]
    for layer, tokens in enumerate(features):
        values = {
            "token_cosine": token_cosine(tokens),
            "token_cosine_abs": token_cosine(tokens, abs=True),
            "hf_dc_ratio": hf_dc_ratio(tokens),
            "hf_energy_fraction": hf_energy_fraction(tokens),
            "dc_energy_fraction": dc_energy_fraction(tokens),
        }
        if tokens.shape == features[0].shape:  # later stages have other tokens
            values["token_cross_layer"] = token_cross_layer(features[0], tokens)
        rows += [(layer, None, name, float(value)) for name, value in values.items()]
    return rows


def _attention(model: nn.Module, images: Tensor, spectrum: bool) -> Rows:
    rows: Rows = []
    prefix = prefix_tokens(model) if spectrum else 0
    grid = tuple(getattr(getattr(model, "patch_embed", None), "grid_size", None) or ())
    previous: Tensor | None = None
    for index, site, maps in attention_maps(model, images):
        layer = index + 1
        if maps.shape[1] > 1:
            rows.append((layer, None, "attn_head_cosine", float(attn_head_cosine(maps))))
        if previous is not None and previous.shape == maps.shape:
            rows.append((layer, None, "attn_cross_layer", float(attn_cross_layer(previous, maps))))
        few = maps[:SPECTRAL_IMAGES]
        factor = _amplification(site).to(maps)
        spectral = {
            "attn_hf_gain": attn_hf_gain(few),
            "attn_lambda2": attn_lambda2(few),
            "attn_hf_norm": attn_hf_norm(few),
        }
        for name, values in spectral.items():
            for head, value in enumerate(values.mean(0)):
                rows.append((layer, head, name, float(value)))
                rows.append((layer, head, f"{name}_effective", float(value * factor[head])))
        if spectrum:
            rows += [
                (layer, head, f"{RESPONSE}.{ring}", float(value))
                for head, gains in enumerate(_response(few, prefix, grid).mean(0))
                for ring, value in enumerate(gains)
            ]
        previous = maps
    return rows


def _response(maps: Tensor, prefix: int, grid: tuple[int, ...]) -> Tensor:
    """Gains of maps (batch, heads, tokens, tokens) by ring of the patch grid; by mode over all tokens where there is no grid."""
    if len(grid) == 2 and maps.shape[-1] == prefix + grid[0] * grid[1]:
        return attn_freq_response(patch_maps(maps, prefix), (grid[0], grid[1]))
    return attn_freq_response(maps)


def _amplification(site: Site) -> Tensor:
    """|1 + ω| of every head: what AttnScale multiplies high frequencies by; ones without it."""
    omegas = [part.omega for part in site.module.children() if isinstance(getattr(part, "omega", None), Tensor)]
    if not omegas:
        return torch.ones(site.heads)
    omega = omegas[0].detach()
    return (1 + omega.float()).abs().repeat_interleave(site.heads // len(omega))


def _weights(model: nn.Module) -> Rows:
    rows: Rows = []
    measures = dict(zip(OF_WEIGHTS, (weight_row_cosine_abs, weight_effective_rank, weight_cond_gap, mhs, mgd), strict=True))
    for layer, block in enumerate(transformer_blocks(model).values(), start=1):
        for name, weight in _layer_weights(block):
            if min(weight.shape) > 1:
                rows += [
                    (layer, None, f"{measure}.{name}", float(f(at_least_float32(weight)))) for measure, f in measures.items()
                ]
    return rows


@torch.no_grad()
def diagnose(
    model: nn.Module,
    images: Tensor,
    *,
    tokens: Literal["patch", "all"] = "patch",
    metrics: list[str] | None = None,
    attention: bool = True,
    weights: bool = True,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Measure redundancy and frequencies of a transformer of timm, layer by layer, at three levels.

    Parameters
    ----------
    model : nn.Module
        A transformer of timm (``atlas list backbones``); measured in evaluation mode, which is restored.
    images : Tensor
        (n, channels, height, width), normalised as for the model.
    tokens : {"patch", "all"}
        Whether prefix tokens (class, distillation, registers) are left out of the features.
    metrics : list of str, optional
        Names to keep, by default all but one: ``attn_freq_response``, the gain of every head's map on a ring of spatial
        frequencies (on a Fourier mode over tokens where there is no grid of patches), is measured where it is named. Weight
        metrics are named ``weight_mhs.q``, by measure and matrix, and kept by the whole, by ``weight_mhs`` or by ``mhs``.
    attention, weights : bool
        Whether to measure attention maps and weights.
    batch_size : int
        Images per forward pass; values are averaged over images, and ``attn_hf_gain``, ``attn_lambda2``, ``attn_hf_norm`` and
        ``attn_freq_response`` over the first eight of every pass. A value is ``nan`` where one of its images makes it so.

    Returns
    -------
    DataFrame
        Columns layer (0 is the input of the first block, l the output of block l), head (missing where a value
        belongs to the layer), metric, value. Cosines between heads are left out where there is one head, and those between
        patches are ``nan`` where there is one patch.

    Raises
    ------
    TypeError
        The model has no ``blocks``, or they do not pass on one sequence or map of tokens. Or, with
        ``attention``, some block has no attention whose maps can be read.
        Or ``metrics`` is no list.
    ValueError
        ``tokens`` is neither "patch" nor "all", ``batch_size`` is less than 1, there is no image, or ``metrics`` names what is
        not measured here; says what is.
    """
    import pandas as pd

    if tokens not in ("patch", "all"):
        raise ValueError(f"tokens must be 'patch' or 'all', not {tokens!r}")
    if isinstance(metrics, str):
        raise TypeError(f"metrics must be a list of names, as [{metrics!r}], not one name")
    offered = [*OF_TOKENS, *(OF_MAPS if attention else ()), *(OF_WEIGHTS if weights else ())]
    for name in metrics or []:
        if not {name.split(".")[0], f"weight_{name.split('.')[0]}"} & {*offered}:
            raise ValueError(f"metrics: {name} is not measured here; choose from {', '.join(offered)}")
    require_whole(batch_size=batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    images = as_tensor(images, "images")
    if not len(images):
        raise ValueError("diagnose needs at least one image")
    require_one_sequence(model)  # refuses, like the next, before anything is computed
    if attention:
        require_maps(attention_sites(model))
    images = in_type_of(model, images, "images")
    prefix = prefix_tokens(model) if tokens == "patch" else 0
    spectrum = any(name.split(".")[0] == RESPONSE for name in metrics or [])
    frames = []
    with mode_of(model, "eval"):
        for batch in images.split(batch_size):
            rows = _features(model, batch, prefix) + (_attention(model, batch, spectrum) if attention else [])
            frames.append(pd.DataFrame(rows, columns=["layer", "head", "metric", "value"]).assign(share=len(batch)))
    table = pd.concat(frames)
    table["value"] *= table["share"] / len(images)
    keys = ["layer", "head", "metric"]
    spoiled = table["value"].isna().groupby([table[key] for key in keys], dropna=False, sort=False).any()
    sums = table.groupby(keys, dropna=False, sort=False)["value"].sum()  # passes over nan
    table = sums.mask(spoiled.to_numpy()).reset_index()
    if weights:
        rows = _weights(model)
        table = pd.concat([table, pd.DataFrame(rows, columns=["layer", "head", "metric", "value"])], ignore_index=True)
    table["head"] = table["head"].astype("Int64")
    if metrics is not None:
        measure = table["metric"].str.split(".").str[0]
        table = table[table["metric"].isin(metrics) | measure.isin(metrics) | measure.str.removeprefix("weight_").isin(metrics)]
    return table.reset_index(drop=True)
