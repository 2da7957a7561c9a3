"""The training loss of Diverse-ViT on any timm VisionTransformer, read through hooks (Chen et al., CVPR 2022, Sec. 3).

L = L_base + c_cos L_cos + c_con L_con + c_att L_att + c_w L_w, where with mixing
L_base = (CE_cls + w Σ_p CE_p) / (1 + w P): the class token and every patch token predict their own soft label.
"""

from __future__ import annotations

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
from atlas.nn.vit import (
    at_least_float32,
    logit_bias,
    plain_attentions,
    projection_widths,
    refuse_masks,
    softmax_map,
    transformer_blocks,
)


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
        (batch, heads, tokens, tokens), the softmax map of the regularised block; ``None`` where its coefficient is 0.
    """

    logits: Tensor
    token_logits: Tensor | None
    h_first: Tensor
    h_last: Tensor
    attn: Tensor | None


class DiversityTrainer:
    """Wraps a timm VisionTransformer for training; a context manager, or call :meth:`close`.

    Parameters
    ----------
    model : nn.Module
        Any timm VisionTransformer; only hooks are added, and removed by :meth:`close`.
    config : DiversityConfig
        Coefficients.
    generator : torch.Generator, optional
        Draws the probes of the weight term.

    Raises
    ------
    TypeError
        A block has no plain attention with a fused ``qkv`` (they are named), or no norm follows the blocks.
    ValueError
        ``attn_block`` is out of range.

    While it watches, a call with an attention mask or of causal attention raises a ``NotImplementedError``: the terms average
    over all tokens.
    """

    def __init__(self, model: nn.Module, config: DiversityConfig, *, generator: torch.Generator | None = None) -> None:
        self.model: Any = model
        self.config = config
        self.generator = generator
        blocks = transformer_blocks(model)
        self.attentions = dict(plain_attentions(model))
        if config.attn_block >= len(blocks):
            raise ValueError(f"attn_block must be one of 0 … {len(blocks) - 1}, not {config.attn_block}")
        norm = getattr(model, "norm", None)
        if not isinstance(norm, nn.Module):
            raise TypeError(f"{type(model).__name__} has no norm after its blocks: expected a timm VisionTransformer")
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self._tapped = next(module for path, module in self.attentions.items() if path.startswith(f"blocks.{config.attn_block}."))
        self._seen: dict[str, Any] = {}
        self._always = False
        self._handles = [
            blocks[0].register_forward_pre_hook(lambda module, inputs: self._keep("h_first", inputs[0])),
            blocks[-1].register_forward_hook(lambda module, inputs, output: self._keep("h_last", output)),
            norm.register_forward_hook(lambda module, inputs, output: self._keep("normed", output)),
            *(
                attention.register_forward_pre_hook(self._refuse_masks, with_kwargs=True)
                for attention in self.attentions.values()
            ),
        ]
        if config.attn_cos:
            self._handles += [
                self._tapped.register_forward_pre_hook(self._keep_bias, with_kwargs=True),
                self._tapped.qkv.register_forward_hook(lambda module, inputs, output: self._keep("qkv", output)),
            ]

    @staticmethod
    def _refuse_masks(attention: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Raise ``NotImplementedError`` where attention is masked or causal: the terms average over all tokens."""
        refuse_masks(attention, inputs, options)

    def _keep_bias(self, attention: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Remember what the regularised block adds to its logits in a training pass."""
        if self._always or torch.is_grad_enabled():
            self._seen["bias"] = logit_bias(attention, inputs, options)

    def _keep(self, name: str, value: Any) -> None:
        """Remember a tensor of a training pass; evaluation between steps leaves nothing behind."""
        if self._always or torch.is_grad_enabled():
            self._seen[name] = value

    def __enter__(self) -> DiversityTrainer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def forward(self, images: Tensor) -> DiversityOutputs:
        """Run the model on (batch, channels, height, width) and collect what the loss needs. Errors as :meth:`outputs`."""
        self._seen.clear()
        self._always = True
        try:
            logits = self.model(images)
        finally:
            self._always = False
        return self.outputs(logits)

    __call__ = forward

    def outputs(self, logits: Tensor) -> DiversityOutputs:
        """Collect what the last forward pass left, for callers that ran the model themselves.

        Under autocast, call it there too: the head on all tokens then has the precision of the model.

        Raises
        ------
        TypeError
            The model is in distilled training and gives logits of two heads, where the loss needs one.
        RuntimeError
            The hooks did not fire, or saw tensors without gradients: reentrant gradient checkpointing, another forward
            pass than the model's, or one without gradients.
        """
        seen, self._seen = self._seen, {}
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
        model = self.model
        tokens = model.head(model.head_drop(model.fc_norm(seen["normed"]))) if self.config.mix_weight else None
        attention = softmax_map(self._tapped, seen["qkv"], seen["bias"]) if self.config.attn_cos else None
        return DiversityOutputs(logits, tokens, seen["h_first"], seen["h_last"], attention)

    def _differentiable(self, logits: Tensor, seen: Mapping[str, Any]) -> bool:
        """Whether the hooks fired and, if the logits have a gradient, what they saw has one too."""
        expected = {"h_first", "h_last", "normed"} | ({"qkv", "bias"} if self.config.attn_cos else set())
        if not expected <= seen.keys():
            return False
        if not logits.requires_grad:
            return True
        mapped = "qkv" not in seen or seen["qkv"].requires_grad or not self._tapped.qkv.weight.requires_grad
        return seen["h_last"].requires_grad and mapped

    def loss(
        self,
        out: DiversityOutputs,
        target: MixTarget | Tensor,
        base_criterion: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss, and its terms unweighted and detached, ``base`` among them.

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
            ``mix_weight`` asks for patch labels and the target has none; the model's patches are not the target's; or a
            term is not finite.
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
        """L_base: the loss of the model's own logits and, with ``mix_weight``, of every patch token. See :meth:`loss`."""
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
        own = base_criterion(logits, target.dense()[0]) if base_criterion else target.image_loss(logits)
        if not weight or out.token_logits is None:
            return own
        patches = at_least_float32(out.token_logits[:, self.prefix :])
        return (own + weight * target.patch_loss(patches)) / (1 + weight * patches.shape[1])

    def terms(self, out: DiversityOutputs) -> dict[str, Tensor]:
        """The regularisers with a coefficient, unweighted, by the coefficient's name."""
        config = self.config
        terms: dict[str, Tensor] = {}
        if config.emb_cos:
            terms["emb_cos"] = emb_cosine(out.h_last, self.prefix, abs=config.emb_cos_abs)
        if config.emb_contrast:
            terms["emb_contrast"] = emb_contrast(out.h_first, out.h_last, self.prefix, config.detach_first)
        if config.attn_cos and out.attn is not None:
            terms["attn_cos"] = attn_cosine(out.attn)
        if config.weight_orth:
            terms["weight_orth"] = self.weight_term()
        return terms

    @property
    def weights(self) -> list[Tensor]:
        """W_q, W_k and W_v of every block, (out, in) each; values of compressed models are narrower than queries."""
        return [
            weight
            for attention in self.attentions.values()
            for weight in attention.qkv.weight.split(projection_widths(attention))
        ]

    def weight_term(self) -> Tensor:
        """Σ over all blocks and W_q, W_k, W_v of the condition term: a sum, so twice as strong at twice the depth."""
        config = self.config
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for weight in self.weights:
            by_shape.setdefault(weight.shape, []).append(weight)
        values = [
            cond_orth(torch.stack(weights), exact=config.orth_exact, steps=config.orth_steps, generator=self.generator)
            for weights in by_shape.values()
        ]
        return torch.cat(values).sum()
