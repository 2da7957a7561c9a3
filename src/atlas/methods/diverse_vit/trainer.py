"""The training loss of Diverse-ViT on any timm VisionTransformer, read through hooks (Chen et al., CVPR 2022, Sec. 3).

L = L_base + c_cos L_cos + c_con L_con + c_att L_att + c_w L_w, where with mixing
L_base = (CE_cls + w Σ_p CE_p) / (1 + w P): the class token and every patch token predict their own soft label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.diverse_vit.mixing import MixTarget
from atlas.methods.diverse_vit.terms import attn_cosine, cond_orth, emb_contrast, emb_cosine
from atlas.nn.vit import at_least_float32, plain_attentions, softmax_map, transformer_blocks


@dataclass(frozen=True)
class DiversityConfig:
    """Coefficients and variants; the defaults are those of the released training scripts.

    Attributes
    ----------
    mix_weight : float
        Weight w of each patch token beside the class token; 0 leaves patch tokens out of the loss. (The official code takes any
        value for 1.)
    emb_cos, emb_contrast, attn_cos, weight_orth : float
        Coefficients of the four regularisers.
    emb_cos_abs, detach_first : bool
        Variants of the embedding terms, see :mod:`.terms`.
    attn_block : int
        Block whose attention map is regularised.
    orth_steps, orth_exact : int, bool
        How the weight term is estimated, see :func:`.terms.cond_orth`.

    Raises
    ------
    ValueError
        A coefficient is negative or not finite.
    """

    mix_weight: float = 1.0
    emb_cos: float = 0.5
    emb_contrast: float = 0.5
    attn_cos: float = 1e-4
    weight_orth: float = 5e-4
    emb_cos_abs: bool = False
    detach_first: bool = False
    attn_block: int = 0
    orth_steps: int = 1
    orth_exact: bool = False

    def __post_init__(self) -> None:
        for name in ("mix_weight", "emb_cos", "emb_contrast", "attn_cos", "weight_orth"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, not {value}")


@dataclass(frozen=True)
class DiversityOutputs:
    """What one forward pass gives the loss; parts that no coefficient asks for are ``None``.

    Attributes
    ----------
    logits : Tensor
        (batch, classes), the model's own output.
    token_logits : Tensor
        (batch, tokens, classes), the head applied to every token.
    h_first, h_last : Tensor
        (batch, tokens, dim): input of the first block, output of the last before the final norm.
    attn : Tensor
        (batch, heads, tokens, tokens) of the regularised block.
    """

    logits: Tensor
    token_logits: Tensor | None
    h_first: Tensor | None
    h_last: Tensor | None
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
        A block has no plain attention with a fused ``qkv``; they are named.
    ValueError
        ``attn_block`` is out of range.
    """

    def __init__(self, model: nn.Module, config: DiversityConfig, *, generator: torch.Generator | None = None) -> None:
        self.model: Any = model
        self.config = config
        self.generator = generator
        blocks = transformer_blocks(model)
        self.attentions = dict(plain_attentions(model))
        if not 0 <= config.attn_block < len(blocks):
            raise ValueError(f"attn_block must be one of 0 … {len(blocks) - 1}, not {config.attn_block}")
        self.tapped = next(module for path, module in self.attentions.items() if path.startswith(f"blocks.{config.attn_block}."))
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self._seen: dict[str, Tensor] = {}
        self._handles = [
            blocks[0].register_forward_pre_hook(lambda module, inputs: self._keep("h_first", inputs[0])),
            blocks[-1].register_forward_hook(lambda module, inputs, output: self._keep("h_last", output)),
        ]
        if config.attn_cos:
            tap = self.tapped.qkv.register_forward_hook(lambda module, inputs, output: self._keep("qkv", output))
            self._handles.append(tap)

    def _keep(self, name: str, value: Tensor) -> None:
        if torch.is_grad_enabled():
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
        """Run the model on (batch, channels, height, width) and collect what the loss needs."""
        return self.outputs(self.model(images))

    __call__ = forward

    def outputs(self, logits: Tensor) -> DiversityOutputs:
        """Collect what the last forward pass left, for callers that ran the model themselves.

        Raises
        ------
        RuntimeError
            The hooks did not fire: another forward pass than the model's, a checkpointing wrapper, or no gradient.
        """
        seen, self._seen = self._seen, {}
        if "h_first" not in seen or "h_last" not in seen:
            raise RuntimeError("the blocks' hooks did not fire: call the model itself, with gradients, before each loss")
        config = self.config
        attention = softmax_map(self.tapped, seen["qkv"]) if config.attn_cos else None
        tokens = self._token_logits(seen["h_last"]) if config.mix_weight else None
        return DiversityOutputs(logits, tokens, seen["h_first"], seen["h_last"], attention)

    def _token_logits(self, last: Tensor) -> Tensor:
        model = self.model
        return model.head(model.head_drop(model.fc_norm(model.norm(last))))

    def loss(
        self,
        out: DiversityOutputs,
        target: MixTarget | Tensor,
        base_criterion: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss, and its terms unweighted and detached.

        Parameters
        ----------
        out : DiversityOutputs
            From :meth:`forward`.
        target : MixTarget or Tensor
            From :class:`.mixing.PatchMixup`; or labels or probabilities, where ``mix_weight`` is 0.
        base_criterion : callable, optional
            Loss of the model's own logits; cross-entropy with ``target`` by default.

        Raises
        ------
        ValueError
            ``mix_weight`` asks for patch labels and the target has none; or the model's patches are not the target's.
        """
        base = self.base_loss(out, target, base_criterion)
        terms = self.terms(out)
        total = base
        for name, term in terms.items():
            total = total + getattr(self.config, name) * term
        return total, {"base": base.detach(), **{name: term.detach() for name, term in terms.items()}}

    def base_loss(
        self,
        out: DiversityOutputs,
        target: MixTarget | Tensor,
        base_criterion: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> Tensor:
        """L_base: the model's own logits and, with mixing, every patch token."""
        weight = self.config.mix_weight
        if isinstance(target, MixTarget):
            own = (
                base_criterion(out.logits, target.dense()[0])
                if base_criterion
                else target.image_loss(at_least_float32(out.logits))
            )
            if not weight:
                return own
            assert out.token_logits is not None
            patches = at_least_float32(out.token_logits[:, self.prefix :])
            return (own + weight * target.patch_loss(patches)) / (1 + weight * patches.shape[1])
        if weight:
            raise ValueError("mix_weight needs the patch labels of a MixTarget; set it to 0 for ordinary labels")
        return (
            base_criterion(out.logits, target)
            if base_criterion
            else functional.cross_entropy(at_least_float32(out.logits), target)
        )

    def terms(self, out: DiversityOutputs) -> dict[str, Tensor]:
        """The regularisers with a coefficient, unweighted, by the coefficient's name."""
        config = self.config
        terms: dict[str, Tensor] = {}
        if config.emb_cos:
            assert out.h_last is not None
            terms["emb_cos"] = emb_cosine(out.h_last, self.prefix, abs=config.emb_cos_abs)
        if config.emb_contrast:
            assert out.h_first is not None
            assert out.h_last is not None
            terms["emb_contrast"] = emb_contrast(out.h_first, out.h_last, self.prefix, config.detach_first)
        if config.attn_cos:
            assert out.attn is not None
            terms["attn_cos"] = attn_cosine(out.attn)
        if config.weight_orth:
            terms["weight_orth"] = self.weight_term()
        return terms

    def weight_term(self) -> Tensor:
        """Σ over all blocks and W_q, W_k, W_v of the condition term: a sum, so twice as strong at twice the depth."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for attention in self.attentions.values():
            for weight in attention.qkv.weight.chunk(3):
                by_shape.setdefault(weight.shape, []).append(weight)
        config = self.config
        stacks = [torch.stack(weights) for weights in by_shape.values()]
        values = [
            cond_orth(stack, exact=config.orth_exact, steps=config.orth_steps, generator=self.generator) for stack in stacks
        ]
        return torch.cat(values).sum()
