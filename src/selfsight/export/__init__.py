"""What leaves a run: a model folder that timm, torchvision and selfsight load. Others' checkpoints
become one too."""

from selfsight.export.conversion import Converted, convert
from selfsight.export.model import load_model, save_model

__all__ = ["Converted", "convert", "load_model", "save_model"]
