"""Compress a vision transformer of your own to half of its work, keep it in one file, and load it where it is used.

    python examples/compress_my_vit.py

Replace the digits by your images and `make_model` by your model: any vision transformer that UVC can take, or a name of timm.
What UVC cannot take is refused before anything is trained, with the layer's path.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from atlas.methods.uvc import compress, load_compressed, save_compressed
from atlas.nn.bars import track

EPOCHS = 8


def make_model() -> VisionTransformer:
    """A small vision transformer for grey pictures of 8 × 8 pixels."""
    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=32, depth=6, num_heads=4, weight_init="jax"
    )


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> None:
    """Train it as you always do."""
    data = TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    loader = DataLoader(data, batch_size=64, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in track(range(EPOCHS), "train", EPOCHS):
        for batch, target in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), target).backward()
            optimizer.step()


@torch.inference_mode()
def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images that a model gets right."""
    model.eval()
    return float((model(torch.from_numpy(images)).argmax(-1).numpy() == labels).mean())


def main() -> None:
    """Train, compress, save, load, compare."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = digits.images[:, None].astype(np.float32) / 16, digits.target
    known, new = slice(0, 1297), slice(1297, None)

    model = make_model()
    train(model, images[known], labels[known])
    print(f"dense: accuracy {accuracy(model, images[new], labels[new]):.2f}")

    result = compress(  # arrays do; so do a Dataset and a DataLoader
        model, 0.5, (images[known], labels[known]), epochs=(6, 3), learning_rate=2e-3, finetune_learning_rate=2e-3
    )
    print(f"compressed: {result.r_phys:.2f} of the multiply-accumulates, {int(result.plan.keep.sum())} of 6 blocks")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        save_compressed(path, result.model, result.plan)
        small = load_compressed(path, make_model)  # a model of timm needs no second argument
        print(f"loaded: accuracy {accuracy(small, images[new], labels[new]):.2f}, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
