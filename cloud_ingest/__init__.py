"""The workers that turn batches into stored, windowed, checked data."""
