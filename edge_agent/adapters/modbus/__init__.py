"""Modbus TCP: config, a pure request plan, pure decoding, and the thin shell that talks."""

from edge_agent.adapters.modbus.adapter import ModbusAdapter

__all__ = ["ModbusAdapter"]
