"""What leaves a run: a model folder that timm, torchvision and selfsight load."""

from selfsight.export.model import load_model, save_model

__all__ = ["load_model", "save_model"]
