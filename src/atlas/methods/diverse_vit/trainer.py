"""The training loss of Diverse-ViT on vision transformers of timm, read through hooks (Chen et al., CVPR 2022, Sec. 3).

L = L_base + c_cos L_cos + c_con L_con + c_att L_att + c_w L_w, where with mixing
L_base = (CE_cls + w Σ_p CE_p) / (1 + w P): the class token and every patch token predict their own soft label.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.diverse_vit.mixing import MixTarget
from atlas.methods.diverse_vit.settings import DiversityConfig
from atlas.methods.diverse_vit.terms import attn_cosine, cond_orth, emb_contrast, emb_cosine
from atlas.nn.anatomy import (
    Site,
    attention_sites,
    call_arguments,
    prefix_tokens,
    require_one_sequence,
    require_same_tokens,
    transformer_blocks,
)
from atlas.nn.examples import in_type_of
from atlas.nn.masks import seen_tokens
from atlas.nn.vit import MapTap, at_least_float32, require_maps
from atlas.nn.watching import Watch


@dataclass(frozen=True)
class DiversityOutputs:
    """What one forward pass gives the loss.

    Attributes
    ----------
    logits : Tensor
        (batch, classes), the model's own output.
    token_logits : Tensor or None
        (batch, tokens, classes), the head applied to every token; ``None`` where ``mix_weight`` is 0.
    h_first, h_last : Tensor
        (batch, tokens, dim): input of the first block, output of the last before the final norm.
    attn : Tensor or None
        (batch, heads, tokens, tokens), the attention map of the regularised block; ``None`` where its coefficient is 0.
    valid : Tensor or None
        (batch or 1, tokens) bool: which tokens the attention masks leave; ``None`` where they are all valid. The terms are over
        those.
    """

    logits: Tensor
    token_logits: Tensor | None
    h_first: Tensor
    h_last: Tensor
    attn: Tensor | None
    valid: Tensor | None = None


class DiversityTrainer:
    """Wraps a vision transformer of timm for training; a context manager, or call :meth:`close`.

    Parameters
    ----------
    model : nn.Module
        A vision transformer of timm whose blocks all have the same tokens; only hooks are added, and removed by :meth:`close`.
    config : DiversityConfig
        Coefficients.
    generator : torch.Generator, optional
        Draws the probes of the weight term.

    Raises
    ------
    TypeError
        A block has no attention of a known kind (they are named), the blocks stand in stages that merge tokens, or no norm and
        head follow them.
    ValueError
        ``attn_block`` is out of range.

    While it watches, a call of causal attention, or with a mask that hides more than padding, raises a ``NotImplementedError``:
    the terms average over all valid tokens.
    """

    def __init__(self, model: nn.Module, config: DiversityConfig, *, generator: torch.Generator | None = None) -> None:
        if not isinstance(config, DiversityConfig):
            raise TypeError(f"config is a {type(config).__name__}; DiversityConfig(…), or DiversityConfig.preset(name) is needed")
        self.model: Any = model
        self.config = config
        self.generator = generator
        blocks = transformer_blocks(model)
        require_one_sequence(model)
        require_same_tokens(model)
        sites = attention_sites(model)
        if config.attn_cos:
            require_maps(sites)
        self.attentions = {site.path: site for site in sites}
        if config.attn_block >= len(blocks):
            raise ValueError(f"attn_block must be one of 0 … {len(blocks) - 1}, not {config.attn_block}")
        for name in ("norm", "head"):
            if not isinstance(getattr(model, name, None), nn.Module):
                raise TypeError(f"{type(model).__name__} has no {name} after its blocks: expected a timm VisionTransformer")
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.block_prefix = prefix_tokens(model)
        chosen = list(blocks)[config.attn_block]
        self._seen: dict[str, Any] = {}
        self._always = False
        self._tap = MapTap(next(site for site in sites if site.block == chosen), self._watching) if config.attn_cos else None
        norm: Any = model.norm
        first, last = next(iter(blocks.values())), next(reversed(blocks.values()))
        self._last = last
        self._handles = [
            first.register_forward_pre_hook(Watch(lambda module, inputs: self._keep("h_first", inputs[0]))),
            last.register_forward_hook(Watch(lambda module, inputs, output: self._keep("h_last", output))),
            norm.register_forward_hook(Watch(lambda module, inputs, output: self._keep("normed", output))),
            *(
                site.module.register_forward_pre_hook(Watch(functools.partial(self._keep_mask, site)), with_kwargs=True)
                for site in sites
            ),
            *(self._tap.handles if self._tap is not None else ()),
        ]

    def __reduce__(self) -> tuple[Any, ...]:  # copy.deepcopy asks it too
        return _remade, (self.model, self.config, self.generator, bool(self._handles))

    def _keep_mask(self, site: Site, attention: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Remember which tokens are valid; raise ``NotImplementedError`` where attention hides others than padding."""
        arguments = call_arguments(site.anatomy, inputs, options)
        seen = seen_tokens(arguments.get("attn_mask", arguments.get("mask")), arguments.get("is_causal", False))
        if seen is not None and seen.members is not None:
            raise NotImplementedError(
                "an attention mask of several groups: the terms average over all tokens but padding or future"
            )
        self._keep("valid", None if seen is None else seen.chosen[:, 0] > 0)

    def _watching(self) -> bool:
        """Whether the present call is a training pass."""
        return self._always or torch.is_grad_enabled()

    def _keep(self, name: str, value: Any) -> None:
        """Remember a tensor of a training pass; evaluation between steps leaves nothing behind."""
        if self._watching():
            self._seen[name] = value

    def __enter__(self) -> DiversityTrainer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def forward(self, images: Tensor) -> DiversityOutputs:
        """Run the model on (batch, channels, height, width) and collect what the loss needs. Errors as :meth:`outputs`.

        A mapping of patches and their places, as NaFlexViT takes, goes to the model as it is.
        """
        self._seen.clear()
        self._always = True
        try:
            logits = self.model(images if isinstance(images, Mapping) else in_type_of(self.model, images, "images"))
        finally:
            self._always = False
        return self.outputs(logits)

    __call__ = forward

    def outputs(self, logits: Tensor) -> DiversityOutputs:
        """Collect what the last forward pass left beside its logits (batch, classes), for callers that ran the model themselves.

        Under autocast, call it there too: the head on all tokens then has the precision of the model.

        Raises
        ------
        TypeError
            The model is in distilled training and gives logits of two heads, where the loss needs one.
        RuntimeError
            The model's blocks are others than when the trainer was made; or the hooks did not fire, or saw tensors without
            gradients: reentrant gradient checkpointing, another forward pass than the model's, or one without gradients.
        """
        seen, self._seen = self._seen, {}
        if next(reversed(transformer_blocks(self.model).values())) is not self._last:
            raise RuntimeError(
                "the model's blocks were replaced or wrapped (by gates, say) after this trainer was made: it would see what the "
                "last block gave before; make a trainer of the model as it is"
            )
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"{type(self.model).__name__} gives a {type(logits).__name__} instead of logits, as in distilled training: "
                "Diverse-ViT has no teacher for a second head; call set_distilled_training(False)"
            )
        if not self._differentiable(logits, seen):
            raise RuntimeError(
                "the hooks on the blocks saw nothing to differentiate: run the model itself before each loss, with gradients "
                "and without gradient checkpointing"
            )
        tokens = self._token_logits(seen["normed"]) if self.config.mix_weight else None
        attention = self._tap.take() if self._tap is not None else None
        return DiversityOutputs(logits, tokens, seen["h_first"], seen["h_last"], attention, seen["valid"])

    def _token_logits(self, normed: Tensor) -> Tensor:
        """The head on every token, with what the model puts before it."""
        for name in ("fc_norm", "head_drop", "head"):
            normed = getattr(self.model, name, nn.Identity())(normed)
        return normed

    def _differentiable(self, logits: Tensor, seen: Mapping[str, Any]) -> bool:
        """Whether the hooks fired and, if the logits have a gradient, what they saw has one too."""
        if not {"h_first", "h_last", "normed"} <= seen.keys() or (self._tap is not None and not self._tap.ready):
            return False
        if not logits.requires_grad:
            return True
        return seen["h_last"].requires_grad and (self._tap is None or self._tap.differentiable)

    def loss(
        self,
        out: DiversityOutputs,
        target: MixTarget | Tensor,
        base_criterion: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss, a scalar, and its terms unweighted and detached, ``base`` among them.

        Parameters
        ----------
        out : DiversityOutputs
            From :meth:`forward`.
        target : MixTarget or Tensor
            From :class:`.mixing.PatchMixup`; or labels or probabilities, where ``mix_weight`` is 0.
        base_criterion : callable, optional
            Loss of the model's own logits with the dense image target; cross-entropy by default.

        Raises
        ------
        ValueError
            ``mix_weight`` asks for patch labels and the target has none; the model's patches or classes are not the target's;
            or a term is not finite.
        """
        total = self.base_loss(out, target, base_criterion)
        parts = {"base": total.detach()}
        for name, term in self.terms(out).items():
            total = total + getattr(self.config, name) * term
            parts[name] = term.detach()
        return total, parts

    def base_loss(
        self,
        out: DiversityOutputs,
        target: MixTarget | Tensor,
        base_criterion: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> Tensor:
        """L_base, a scalar: the loss of the model's logits and, with ``mix_weight``, of every patch token. See :meth:`loss`."""
        with torch.autocast(out.logits.device.type, enabled=False):
            base = self._base_loss(out, target, base_criterion)
        if not base.isfinite():
            raise ValueError(
                f"the base loss is not finite ({float(base.detach())}): the logits or the target hold NaN or infinity"
            )
        return base

    def _base_loss(
        self, out: DiversityOutputs, target: MixTarget | Tensor, base_criterion: Callable[[Tensor, Any], Tensor] | None
    ) -> Tensor:
        """L_base in float32 or better, outside autocast."""
        weight = self.config.mix_weight
        logits = at_least_float32(out.logits)
        if not isinstance(target, MixTarget):
            if weight:
                raise ValueError("mix_weight needs the patch labels of a MixTarget; set it to 0 for ordinary labels")
            return (base_criterion or functional.cross_entropy)(logits, target)
        target.require_fit(logits)
        own = base_criterion(logits, target.dense()[0]) if base_criterion else target.image_loss(logits)
        if not weight or out.token_logits is None:
            return own
        patches = at_least_float32(out.token_logits[:, self.prefix :])
        return (own + weight * target.patch_loss(patches)) / (1 + weight * patches.shape[1])

    def terms(self, out: DiversityOutputs) -> dict[str, Tensor]:
        """The regularisers with a coefficient, unweighted scalars, by the coefficient's name."""
        config, prefix, valid = self.config, self.block_prefix, out.valid
        terms: dict[str, Tensor] = {}
        if config.emb_cos:
            terms["emb_cos"] = emb_cosine(out.h_last, prefix, abs=config.emb_cos_abs, valid=valid)
        if config.emb_contrast:
            terms["emb_contrast"] = emb_contrast(out.h_first, out.h_last, prefix, config.detach_first, valid=valid)
        if config.attn_cos and out.attn is not None:
            terms["attn_cos"] = attn_cosine(out.attn, valid=valid)
        if config.weight_orth:
            terms["weight_orth"] = self.weight_term()
        return terms

    @property
    def weights(self) -> list[Tensor]:
        """W_q, W_k and W_v of every block, (out, in) each; values of compressed models are narrower than queries."""
        return [weight for site in self.attentions.values() for weight in site.weights()]

    def weight_term(self) -> Tensor:
        """Σ over all blocks and W_q, W_k, W_v of the condition term, a scalar: a sum, so twice as strong at twice the depth."""
        config = self.config
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for weight in self.weights:
            by_shape.setdefault(weight.shape, []).append(weight)
        values = [
            cond_orth(torch.stack(weights), exact=config.orth_exact, steps=config.orth_steps, generator=self.generator)
            for weights in by_shape.values()
        ]
        return torch.cat(values).sum()


def _remade(model: nn.Module, config: DiversityConfig, generator: torch.Generator | None, watching: bool) -> DiversityTrainer:
    """A trainer of a copied model, which watches it if the one that was copied did."""
    trainer = DiversityTrainer(model, config, generator=generator)
    if not watching:
        trainer.close()
    return trainer
