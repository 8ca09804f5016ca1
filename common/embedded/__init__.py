"""Servers that Forebay brings along, so that both programs run where none is installed."""
