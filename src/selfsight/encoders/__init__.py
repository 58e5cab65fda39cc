"""Encoders: images in, embeddings out. Importing this registers our own
architectures with timm."""

from selfsight.encoders import lab as lab
from selfsight.encoders import small as small
from selfsight.encoders.base import Encoder
from selfsight.encoders.timm import create_encoder

__all__ = ["Encoder", "create_encoder"]
