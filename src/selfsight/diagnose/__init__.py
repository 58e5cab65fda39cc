"""Whether an embedding is alive, and what to do when it is not."""

from selfsight.diagnose.checks import Reading, Verdict, verdict, verdicts

__all__ = ["Reading", "Verdict", "verdict", "verdicts"]
