"""Blocks that several methods share: small networks, ViT instrumentation, FLOP and parameter counts."""
