"""Every error Forebay raises on purpose; each class stands for one action of whoever catches it.

ForebayError
+-- ConfigError      stop, exit 2: the user's file or command line is wrong; lists every problem
+-- ServiceError     retry with backoff: something of the world is not there (broker, database, disk)
+-- DeviceError      retry with backoff and give the device's tags a status code
+-- CodecError       quarantine: bytes that are not a valid block
+-- WireError        quarantine: bytes that are not a Forebay message
+-- BufferFullError  back-pressure: the local buffer refuses more until something leaves it
+-- InUseError       stop, exit 1: another process owns this folder
+-- FencedError      stop writing: another worker owns this partition now
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ForebayError(Exception):
    """Base of the tree; caught only where a program ends."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a config: the field's path and what was expected there."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(ForebayError):
    """A config file or command line is wrong; `problems` holds every mistake found, not only the first."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        """`source` names the file or option; `problems` is not empty."""
        self.source = source
        self.problems = tuple(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"{source}: {len(self.problems)} {noun}{lines}")


class ServiceError(ForebayError):
    """A broker, database, disk or helper process is not usable now; trying again later may work."""


class DeviceError(ForebayError):
    """A device did not answer, or answered with an error; `status_code` goes to the tags concerned."""

    def __init__(self, message: str, status_code: int) -> None:
        """`status_code` is one of the bad codes of common.model.StatusCode."""
        self.status_code = status_code
        super().__init__(message)


class CodecError(ForebayError):
    """Bytes are not a valid block (damaged, truncated, hostile or of an unknown version)."""


class WireError(ForebayError):
    """Bytes are not a Forebay message (no marker, unknown schema, damaged record, over the size limit)."""


class BufferFullError(ForebayError):
    """The buffer has reached its limit and its policy is to refuse new batches."""


class InUseError(ForebayError):
    """A folder that one process may own at a time is owned by another."""


class FencedError(ForebayError):
    """A newer owner has taken the partition; whatever this worker holds of it must be dropped, not written."""
