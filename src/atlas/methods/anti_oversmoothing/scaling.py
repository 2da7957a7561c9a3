"""AttnScale and FeatScale on timm's vision transformers, without an n × n map and without leaving fused attention.

AttnScale (Wang et al., ICLR 2022, Sec. 3.1). With Â = J + (1 + ω)(A − J) and rows of A that sum to 1,

    Â V = A V′,   V′ = DC[V] + (1 + ω) HC[V] = V + ω (V − mean V):

amplify the high frequencies of V, then attend as ever. (Where tokens are many and channels few, in Hiera and in the first stages
of SAM 2's, the same by the weights: V′ = (1 + ω) W x + b − ω W mean x.) So the layer that makes the values also rewrites them,
and every attention kernel, normalisation of queries and keys, rotation and position bias keeps working. The layer stays the
object that it was, of another class and with one more parameter: hooks on it, pruning masks among them, stay in force. Where a
mask splits the tokens into groups (padding, shifted windows), J averages within a group. Of the two maps of differential
attention each is scaled by the formula, at once, since both mix the same V. Talking heads mix maps after the softmax, whose rows
then do not sum to 1: there the mixing layer, (1 + ω)(W a + b) − ω / n for the maps a of n tokens, gives Â itself.

Cross-covariance attention (XCiT) maps a head's channels on its channels, and its rows sum to 1 as well: the same formula, with J
and the mean over the head's channels, amplifies what sets channels apart. That is AttnScale's algebra, not its reason: such a map
mixes the channels of every token alike, so it filters no frequency over tokens, and the paper's theory says nothing of it. V is
linear in the weights and the mean over channels too, so the weights of the values are rewritten, W + ω (W − mean W), not the
values.

FeatScale (Sec. 3.2). SA′ = SA + s ⊙ DC[SA] + t ⊙ HC[SA] = (1 + t) ⊙ SA + (s − t) ⊙ mean SA, after the output projection and its
dropout, before LayerScale, drop-path and the residual sum: the last module of the attention is swapped. In Swin the mean is over
the feature map, once its windows are put together again; in blocks whose attention and feed-forward end in one layer, over what
attention adds to its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.anti_oversmoothing.rewriting import (
    Rewritten,
    RewrittenLinear,
    RewrittenOutput,
    RewrittenQKV,
    chosen_blocks,
    move_hooks,
    replace_outputs,
    require_effect,
    require_finite,
    require_outputs,
    require_separate,
    rewrite_values,
    tell_mask,
    tell_masks,
    token_axes,
)
from atlas.nn.anatomy import Site, attention_sites
from atlas.nn.examples import require_tensors
from atlas.nn.masks import HIDDEN, seen_tokens, token_mean

torch.fx.wrap("token_mean")  # one node of a traced graph: which dtype it gets is known only when the graph runs


class ScaledQKV(RewrittenQKV):
    """Amplifies the high frequencies of the values, head by head: AttnScale. Adds ``omega`` (heads,)."""

    scales = ("omega",)
    if TYPE_CHECKING:
        omega: nn.Parameter

    def high(self, values: Tensor) -> Tensor:
        """What is left of the values (…, tokens, width) without their mean over the tokens that attend to each other."""
        return values - token_mean(values, self.seen, self.axes)

    def forward(self, x: Tensor) -> Tensor:
        """Project (…, tokens, dim) to (…, tokens, queries + keys + values), each heads · its width; V is V + ω (V − mean V)."""
        width = self.omega.numel() * self.value_dim
        if self.over_channels:
            bias = None if self.bias is None else self._contrasted(self.bias, width)
            return functional.linear(x, self._contrasted(self.weight, width), bias)
        omega = self.omega.repeat_interleave(self.value_dim)
        if self.unit:
            return self._project_scaled(x.unflatten(1, (self.unit, -1)), (1,), omega, width).flatten(1, 2)
        if self.narrow:
            return self._project_scaled(x, self.axes, omega, width)
        projected = self.project(x)
        omega = omega.to(projected.dtype)
        if not torch.is_grad_enabled() and not torch.jit.is_tracing():  # nothing will ask for the values as they were
            values = projected[..., -width:]
            values.addcmul_(self.high(values), omega)
            return projected
        others, values = projected.split((self.out_features - width, width), -1)  # together: one gradient for both
        return torch.cat((others, torch.addcmul(values, self.high(values), omega)), -1)

    def _contrasted(self, weights: Tensor, width: int) -> Tensor:
        """Weights (out, dim) or biases (out,) that make V + ω (V − mean V), with means over the channels of a head."""
        others, values = weights.split((len(weights) - width, width))
        by_head = values.unflatten(0, (-1, self.value_dim))  # (heads, channels, …)
        omega = self.omega.view(-1, *(1,) * weights.ndim).to(weights.dtype)
        return torch.cat((others, torch.addcmul(by_head, by_head - by_head.mean(1, keepdim=True), omega).flatten(0, 1)))

    def _project_scaled(self, x: Tensor, axes: tuple[int, ...], omega: Tensor, width: int) -> Tensor:
        """The same for tokens (…, dim) on some axes, as (1 + ω) W x + b − ω W mean x.

        Where tokens are many and channels few, a pass over the weights, and one over the means, cost less than several over the
        values. The means are added with their sign, since the gradient of a difference would be a negated copy.
        """
        scale = functional.pad(omega, (self.out_features - width, 0))[:, None]
        shift = functional.linear(token_mean(x, axes=axes), -scale * self.weight)
        return functional.linear(x, (1 + scale) * self.weight, self.bias).add_(shift)


class ScaledHeads(RewrittenLinear):
    """Mixes maps of heads, (batch, queries, tokens, heads) a of n tokens, to (1 + ω)(W a + b) − ω / n: AttnScale's Â itself."""

    scales = ("omega",)
    if TYPE_CHECKING:
        omega: nn.Parameter

    def forward(self, maps: Tensor) -> Tensor:
        """Mix the maps of the heads with scaled weights: (batch, queries, tokens, heads) to the same shape."""
        mean = self.omega / maps.shape[-2]
        bias = -mean if self.bias is None else (1 + self.omega) * self.bias - mean
        return functional.linear(maps, (1 + self.omega)[:, None] * self.weight, bias)


class FeatScale(RewrittenOutput):
    """Dropout of the attention output, then re-weighting of its mean and mean-free parts; ``s`` and ``t`` are (dim,)."""

    scales = ("s", "t")

    def __init__(self, p: float, like: Tensor, init_dc: float, init_hc: float, gain: float) -> None:
        super().__init__(p)
        self.gain = gain
        self.s = nn.Parameter(like.new_full((like.shape[0],), init_dc))
        self.t = nn.Parameter(like.new_full((like.shape[0],), init_hc))

    def forward(self, x: Tensor) -> Tensor:
        """Re-weight the low and high frequencies of features (…, tokens, dim), after the dropout."""
        x = functional.dropout(x, self.p, self.training)
        s, t = (self.gain * self.s).to(x.dtype), (self.gain * self.t).to(x.dtype)
        return torch.addcmul((s - t) * token_mean(x, self.seen), x, 1 + t)


class MapFeatScale(FeatScale):
    """The same for a feature map, (batch, height, width, dim): the mean is over all of it."""

    def forward(self, x: Tensor) -> Tensor:
        """Re-weight (batch, height, width, dim)."""
        return super().forward(x.flatten(1, 2)).view_as(x)


class ScaledProjection(RewrittenLinear):
    """An output projection that re-weights what attention adds; adds ``s`` and ``t`` (dim,).

    ``attended`` of the incoming channels, the first ones, are attention's. Where there are others (the feed-forward's neurons),
    the bias belongs to neither, and stays as it is.
    """

    scales = ("s", "t")
    if TYPE_CHECKING:
        s: nn.Parameter
        t: nn.Parameter
        gain: float
        attended: int
        axes: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """Project (…, tokens, channels) to (…, tokens, dim)."""
        s, t = self.gain * self.s, self.gain * self.t
        if self.attended == self.in_features:
            output = functional.linear(x, self.weight, self.bias)
            s, t = s.to(output.dtype), t.to(output.dtype)
            return torch.addcmul((s - t) * token_mean(output, self.seen, self.axes), output, 1 + t)
        own, others = self.weight.split((self.attended, self.in_features - self.attended), -1)
        output = functional.linear(x, torch.cat(((1 + t)[:, None] * own, others), -1), self.bias)
        mean = functional.linear(token_mean(x[..., : self.attended], self.seen), own)
        return torch.addcmul(output, (s - t).to(output.dtype), mean)


def attnscale_output(attended: Tensor, values: Tensor, omega: Tensor) -> Tensor:
    """AttnScale applied after any attention: (1 + ω)·A V − ω·mean V.

    Needs no row-stochastic A, so it also serves attention whose maps are mixed after the softmax (talking heads).

    Parameters
    ----------
    attended, values : Tensor
        A V and V, (batch, heads, tokens, head_dim).
    omega : Tensor
        (heads,).
    """
    require_tensors(attended=attended, values=values, omega=omega)
    scale = omega[:, None, None].to(attended.dtype)
    return attended + scale * (attended - token_mean(values))


def _seen_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values (batch, heads, tokens, width) over the tokens that a mask of attention leaves together, kept."""
    if mask is None:
        return token_mean(values)
    if mask.ndim > 1 and mask.shape[-2] == 1:
        weights = (mask if mask.dtype == torch.bool else mask > HIDDEN).transpose(-2, -1).to(values.dtype)
        return (values * weights).sum(-2, keepdim=True) / weights.sum(-2, keepdim=True).clamp_min(1)
    seen = seen_tokens(mask[None] if mask.ndim == 3 else mask, causal=False)
    if seen is None:
        return token_mean(values)
    beside = values.transpose(1, 2).flatten(2)  # (batch, tokens, heads · width): all heads are masked alike
    return token_mean(beside, seen).unflatten(2, (values.shape[1], -1)).transpose(1, 2)


def attnscale_sdpa(
    q: Tensor, k: Tensor, v: Tensor, omega: Tensor, *, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Scaled dot-product attention with AttnScale, fused.

    Parameters
    ----------
    q, k, v : Tensor
        (batch, heads, tokens, head_dim).
    omega : Tensor
        (heads,).
    attn_mask : Tensor, optional
        Broadcasts to (batch, heads, tokens, tokens): boolean, true where a query sees a key, or a floating-point bias that is
        added to the logits and hides a key where it is −100 or less. With padding, (batch, 1, 1, tokens), the mean is over the
        tokens that are seen; with a mask that splits the tokens into groups, over each group. Whether a mask of all queries
        does so is read from its values, once for each mask.
    dropout_p : float
        Dropout on A, before scaling.

    Returns
    -------
    Tensor
        (batch, heads, tokens, head_dim).

    Raises
    ------
    ValueError
        ``omega`` does not hold one number for each head.
    NotImplementedError
        What the mask hides differs between queries otherwise than by groups (causal attention): the mean over tokens would leak
        what it hides. Or between heads, where it is a mask of all queries.
    """
    require_tensors(q=q, k=k, v=v, omega=omega)
    if omega.shape != v.shape[-3:-2]:
        raise ValueError(f"omega must hold one number for each of {v.shape[-3]} heads, not have the shape {tuple(omega.shape)}")
    mean = _seen_mean(v, attn_mask)
    amplified = torch.addcmul(v, v - mean, omega[:, None, None].to(v.dtype))
    return functional.scaled_dot_product_attention(q, k, amplified, attn_mask=attn_mask, dropout_p=dropout_p)


def apply_attnscale(model: nn.Module, *, init: float = 0.0, blocks: Sequence[int] | None = None) -> nn.Module:
    """Add AttnScale to a vision transformer of timm, in place; at ``init`` 0 its outputs do not change.

    Parameters
    ----------
    model : nn.Module
        A transformer of timm: VisionTransformer, Eva, BEiT, CaiT, Swin, SAM, NaFlexVit … (``atlas list backbones``).
    init : float
        Initial ω of every head.
    blocks : sequence of int, optional
        Blocks to treat; all by default.

    Returns
    -------
    nn.Module
        The same model; new parameters ``…attn.qkv.omega`` (heads,), or ``…attn.v_proj.omega`` where values have a projection of
        their own, ``…attn.proj_w.omega`` in talking heads, ``….in_proj.omega`` in parallel blocks. Heads share ω as values.
        In XCiT, whose maps are of channels, it sharpens contrasts between a head's channels, not between tokens.

    Raises
    ------
    TypeError
        Names the blocks whose attention is of an unknown kind; wrapped and parametrised layers
        (adapters, ``torch.nn.utils.parametrize``) are refused, hooks on a linear layer (``torch.nn.utils.prune``) are not.
    ValueError
        AttnScale is already there, several blocks share a layer, ``init`` is not finite, or ``blocks`` is empty or out of range.
    RuntimeError
        A trial shows that the attention bypasses the layer that makes its values.
    NotImplementedError
        Later, when the model is called causally, or with a mask that does not split the tokens into groups (padding does): a mean
        over tokens would show a token what it must not see.

    Whatever is raised here, the model is as it was before.
    """
    rewrite_values(model, blocks, ScaledQKV, init, mixing=ScaledHeads, averages=True)
    return model


def apply_featscale(
    model: nn.Module,
    *,
    init_dc: float = 0.0,
    init_hc: float = 0.0,
    gain: float = 1.0,
    blocks: Sequence[int] | None = None,
) -> nn.Module:
    """Add FeatScale to a vision transformer of timm, in place; at 0 its outputs do not change.

    Parameters
    ----------
    model : nn.Module
        A transformer of timm: VisionTransformer, Eva, BEiT, CaiT, Swin, SAM, NaFlexVit … (``atlas list backbones``).
    init_dc, init_hc : float
        Initial s and t.
    gain : float
        1 is the paper's formula. 2 applies the correction twice, as the authors' released DeiT models do: the same
        functions with twice the step on s and t.
    blocks : sequence of int, optional
        Blocks to treat; all by default.

    Returns
    -------
    nn.Module
        The same model; new parameters ``…attn.proj_drop.s`` and ``.t`` (dim,); in Swin ``….featscale.s`` and ``.t`` of the block;
        where no dropout follows the output projection, those of the projection.

    Raises
    ------
    TypeError, ValueError, RuntimeError, NotImplementedError
        As :func:`apply_attnscale`, for the module ``proj_drop`` at the end of the attention.
    """
    require_finite(init_dc=init_dc, init_hc=init_hc, gain=gain)
    sites = attention_sites(model, chosen_blocks(model, blocks))
    windows = [site for site in sites if site.anatomy.windows]
    projections = [site for site in sites if site.output_name == site.projection_name]
    dropouts = [site for site in sites if site not in windows and site not in projections]
    _require_unscaled(model, windows, projections)
    require_outputs(dropouts)
    with ExitStack() as undo:
        for site in windows:
            _scale_map(model.get_submodule(site.block), site, (init_dc, init_hc, gain), undo)
        for site in projections:
            layer = site.projection
            scales = {"s": (layer.out_features, init_dc), "t": (layer.out_features, init_hc)}
            attended = int(site.module.in_split[-1]) if hasattr(site.module, "in_split") else layer.in_features
            extras = {"gain": gain, "attended": attended, "axes": token_axes(site)}
            undo.callback(ScaledProjection.of(layer, scales, **extras).plain)
            require_effect(site, site.projection_name, layer.out_features)
        replace_outputs(dropouts, lambda p, like: FeatScale(p, like, init_dc, init_hc, gain))
        undo.pop_all()
    tell_masks([site for site in sites if not site.anatomy.windows])
    return model


def _require_unscaled(model: nn.Module, windows: list[Site], projections: list[Site]) -> None:
    """Refuse blocks of windows and output projections that are scaled already, of an unknown class, or shared."""
    from atlas.methods.anti_oversmoothing.timm_classes import MAPS, ScaledMap

    blocks = [(site.block, model.get_submodule(site.block)) for site in windows]
    for path, block in blocks:
        if isinstance(block, ScaledMap):
            raise ValueError(f"{path} is a {type(block).__name__}: the output of its attention is already scaled")
        if type(block) not in MAPS:
            raise TypeError(f"{path} is a {type(block).__name__}: where its windows are put together again is not known")
    layers = [(f"{site.path}.{site.projection_name}", site.projection) for site in projections]
    for path, layer in layers:
        if isinstance(layer, Rewritten):
            raise ValueError(f"{path} is a {type(layer).__name__}: the output is already scaled")
        if type(layer) is not nn.Linear:
            raise TypeError(f"{path} is a {type(layer).__name__}, not a plain nn.Linear: scale it first, then wrap it")
    require_separate(blocks + layers)


def _scale_map(block: Any, site: Site, start: tuple[float, float, float], undo: ExitStack) -> None:
    """Let a block of windows scale the output of its attention once the windows are a feature map again."""
    from atlas.methods.anti_oversmoothing.timm_classes import MAPS, become

    undo.callback(setattr, block, "__class__", become(block, MAPS))
    block.featscale = MapFeatScale(0.0, site.projection.weight, *start).train(block.training)
    undo.callback(delattr, block, "featscale")


def scale_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the added parameters by name: ω of AttnScale, s and t of FeatScale, and the gains of the controls."""
    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        if isinstance(module, RewrittenLinear | RewrittenOutput)
        for name, parameter in module.named_parameters(recurse=False)
        if name in module.scales
    }


def param_groups(model: nn.Module, lr: float, weight_decay: float, scale_lr_mult: float = 1.0) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser: vectors and scales without weight decay, scales at their own rate.

    Parameters
    ----------
    lr, weight_decay : float
        Of the ordinary weights.
    scale_lr_mult : float
        Learning rate of ω, s and t relative to ``lr``.

    Raises
    ------
    ValueError
        A number is negative or not finite.
    """
    given = {"lr": lr, "weight_decay": weight_decay, "scale_lr_mult": scale_lr_mult}
    require_finite(**given)
    if negative := [f"{name} must be at least 0, not {value}" for name, value in given.items() if value < 0]:
        raise ValueError(negative[0])
    scales = {id(parameter) for parameter in scale_parameters(model).values()}
    exempt = without_weight_decay(model)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    scaled: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in scales:
            scaled.append(parameter)
        elif parameter.ndim <= 1 or name in exempt:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": plain, "lr": lr, "weight_decay": 0.0},
        {"params": scaled, "lr": lr * scale_lr_mult, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def without_weight_decay(model: nn.Module) -> set[str]:
    """Names that a timm model exempts from weight decay: position embedding, class token and so on.

    The model may stand within others, as it does once it is compiled or part of a sequence.
    """
    exempt: set[str] = set()
    asked: list[str] = []
    for name, module in model.named_modules():
        if hasattr(type(module), "no_weight_decay") and not any(name.startswith(outer) for outer in asked):
            prefix = f"{name}." if name else ""
            asked.append(prefix)
            exempt |= {prefix + own for own in module.no_weight_decay()}
    return exempt


def remove_scales(model: nn.Module) -> nn.Module:
    """Turn a scaled model back into the plain timm model, in place.

    Raises
    ------
    ValueError
        Some scale is not 0, so the plain model would compute something else; names the first. Or a scaled layer is parametrised.
    """
    for name, parameter in scale_parameters(model).items():
        if bool((parameter != 0).any()):
            raise ValueError(f"{name} is not 0: without it the model would compute something else")
    for path, layer in model.named_modules():
        if isinstance(layer, RewrittenLinear) and "parametrizations" in layer._modules:
            raise ValueError(f"{path} is parametrised: call torch.nn.utils.parametrize.remove_parametrizations first")
    for module in list(model.modules()):
        _make_plain(module)
    return model


def _make_plain(module: Any) -> None:
    """Undo what was done to one module, and to its direct parts."""
    if isinstance(module, RewrittenQKV) and module.joined is not None:
        attention = module.joined
        attention.__class__ = type(attention).__bases__[-1]
    if isinstance(module, RewrittenLinear):
        module.plain()
    if isinstance(getattr(module, "featscale", None), RewrittenOutput):
        del module.featscale
        module.__class__ = type(module).__bases__[-1]
    for name, part in list(module.named_children()):
        if isinstance(part, RewrittenOutput):
            setattr(module, name, nn.Dropout(part.p).train(part.training))
            move_hooks(part, getattr(module, name))
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is tell_mask:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
