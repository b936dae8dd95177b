"""Say from a run's files whether its gradients are in order, where not, and what to change.

A rule looks at the evidence and returns findings. `judge.diagnose` runs them all; a user's
own rules are in a file of theirs, with the same decorator:

    from trainer.diagnosis import Evidence, Finding, rule


    @rule("too_quiet", rank=50)
    def too_quiet(evidence: Evidence) -> list[Finding]: ...
"""

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy
from trainer.diagnosis.registry import rule

__all__ = ["CannotJudge", "Evidence", "Finding", "Remedy", "rule"]
