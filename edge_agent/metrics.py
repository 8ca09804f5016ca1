"""The agent's Prometheus metrics, all in one place; docs/operations.md says what each means at 3 a.m."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class EdgeMetrics:
    """One set per agent, in a registry of its own."""

    def __init__(self) -> None:
        """Register every metric, so that each shows from the start."""
        self.registry = CollectorRegistry()
        registry = self.registry
        self.readings_polled = Counter(
            "forebay_edge_readings_polled_total", "Readings read from devices", registry=registry
        )
        self.readings_passed = Counter(
            "forebay_edge_readings_passed_total", "Readings that passed the filters", registry=registry
        )
        self.readings_accepted = Counter(
            "forebay_edge_readings_accepted_total", "Readings safe in the buffer", registry=registry
        )
        self.readings_dropped = Counter(
            "forebay_edge_readings_dropped_total", "Readings lost on purpose, by reason", ["reason"], registry=registry
        )
        self.batches_accepted = Counter(
            "forebay_edge_batches_accepted_total", "Batches safe in the buffer", registry=registry
        )
        self.batches_sent = Counter(
            "forebay_edge_batches_sent_total", "Batches handed to the broker", registry=registry
        )
        self.batches_acknowledged = Counter(
            "forebay_edge_batches_acknowledged_total", "Batches that left the buffer", registry=registry
        )
        self.uplink_crashes = Counter(
            "forebay_edge_uplink_crashes_total", "Unexpected errors of the forwarding thread", registry=registry
        )
        self.adapter_crashes = Counter(
            "forebay_edge_adapter_crashes_total", "Unexpected errors of an adapter", ["device"], registry=registry
        )
        self.wire_bytes = Counter(
            "forebay_edge_wire_bytes_total", "Kafka payload bytes handed to the broker", registry=registry
        )
        self.accept_seconds = Histogram(
            "forebay_edge_accept_seconds",
            "Time to compress and make a flush safe",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
            registry=registry,
        )
        self.buffer_waiting = Gauge(
            "forebay_edge_buffer_waiting_batches", "Batches not yet acknowledged", registry=registry
        )
        self.buffer_bytes = Gauge("forebay_edge_buffer_size_bytes", "Bytes kept, history included", registry=registry)
        self.buffer_oldest = Gauge(
            "forebay_edge_buffer_oldest_seconds", "Age of the oldest waiting batch", registry=registry
        )
        self.uplink_up = Gauge("forebay_edge_uplink_up", "1 while the broker answers", registry=registry)
        self.device_up = Gauge("forebay_edge_device_up", "1 while the device answers", ["device"], registry=registry)
        self.device_bad_points = Gauge(
            "forebay_edge_device_bad_points", "Points with a bad status", ["device"], registry=registry
        )
        self.device_poll_seconds = Gauge(
            "forebay_edge_device_poll_seconds", "How long a poll takes", ["device"], registry=registry
        )
        self.device_overruns = Gauge(
            "forebay_edge_device_overruns_total", "Polls skipped: too slow", ["device"], registry=registry
        )
