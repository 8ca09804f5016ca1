"""Where readings end up. Each sink has its own checkpoint per partition and writes it together with what it stores.

The contract of every sink (tests/contract/test_sinks.py):

1. `adopt` takes a partition over: from then on a former owner cannot write (FencedError), and the position it
   returns is exactly what is stored.
2. What is added below that position is skipped; what is above is stored once, with its checkpoint or not at all.
3. `forget` drops what is held of a partition and not stored; another owner will read it again.
"""

from collections.abc import Iterable
from typing import Protocol

from cloud_ingest.model import Partition, Position


class Sink(Protocol):
    """What the worker needs of a sink when partitions come and go; how readings are added differs."""

    async def adopt(self, partition: Partition, cluster_id: str) -> Position:
        """Become the owner of a partition; raises ServiceError."""
        ...

    def forget(self, partitions: Iterable[Partition]) -> None:
        """Stop owning partitions, without storing anything."""
        ...

    def position(self, partition: Partition) -> Position | None:
        """Return up to where an owned partition is stored; None if it is not owned."""
        ...
