"""What a user can get wrong, each with a reason, a way out, and an exit code.

Exit codes: 0 PASS, 1 internal error, 2 wrong usage or input, 3 FAIL, 4 INCONCLUSIVE, 5 target, backend or precision not
available, 6 verification failed.  3 and 4 are verdicts, not errors: they stand in a report.
"""

from __future__ import annotations


class OptimizeError(Exception):
    """An error that a user can cause: one sentence of reason, one of remedy, never a traceback."""

    exit_code = 1
    title = "INTERNAL ERROR"

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason} {remedy}")
        self.reason = reason
        self.remedy = remedy


class InputError(OptimizeError):
    """The model, the data, the options or the output folder can't be used as they are."""

    exit_code = 2
    title = "WRONG INPUT"


class UnavailableError(OptimizeError):
    """The target, the backend or the precision that was asked for is not available here."""

    exit_code = 5
    title = "NOT AVAILABLE"


class VerificationError(OptimizeError):
    """An engine folder is not what its passport says."""

    exit_code = 6
    title = "VERIFICATION FAILED"
