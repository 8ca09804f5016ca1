"""Forwarding: batches leave the buffer in order and are acknowledged only when they are safe elsewhere."""
