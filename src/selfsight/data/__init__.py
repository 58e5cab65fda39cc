"""Images from anywhere, checked, numbered and decoded; `loader` makes batches of them."""

from selfsight.data.base import Arrays, Skip, Source, Subset
from selfsight.data.check import Check, check
from selfsight.data.decode import Undecodable, decode
from selfsight.data.sources import open_source
from selfsight.data.split import duplicates, evaluation_split

__all__ = [
    "Arrays",
    "Check",
    "Skip",
    "Source",
    "Subset",
    "Undecodable",
    "check",
    "decode",
    "duplicates",
    "evaluation_split",
    "open_source",
]
