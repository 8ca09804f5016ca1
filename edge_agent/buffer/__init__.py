"""Store-and-forward: what is accepted here survives until the broker has it (docs/delivery.md)."""
