"""What the demo shows: a live table while it runs, the closing table when it is over."""

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from deploy.demo.reconcile import RAW_BYTES, Reconciliation
from deploy.demo.rig import Rig


def live_table(rig: Rig, left_s: float, events: list[str]) -> Table:
    """Draw the way of the readings, stage by stage, from the programs' own metrics."""
    edge, ingest = rig.metrics(rig.edge_port), rig.metrics(rig.ingest_port)
    health = rig.health(rig.edge_port)
    table = Table(title=f"Forebay demo, {max(0.0, left_s):.0f} s left", title_justify="left", expand=False)
    table.add_column("stage")
    table.add_column("readings", justify="right")
    table.add_column("what else")
    devices = health.get("devices", [])
    bad = [device["name"] for device in devices if device["state"] not in {"good", "starting"}]
    state = f"{len(devices) - len(bad)} of {len(devices)} devices good" + (
        f"; not: {', '.join(bad[:4])}" if bad else ""
    )
    waiting = edge.get("forebay_edge_buffer_waiting_batches", 0)
    uplink = "up" if edge.get("forebay_edge_uplink_up") else "down, readings wait in the buffer"
    table.add_row("read over Modbus", _count(edge, "forebay_edge_readings_polled_total"), state)
    table.add_row("passed the deadband", _count(edge, "forebay_edge_readings_passed_total"), "")
    table.add_row(
        "safe in the buffer", _count(edge, "forebay_edge_readings_accepted_total"), f"{waiting:.0f} batches wait"
    )
    table.add_row("sent", "", f"{_count(edge, 'forebay_edge_wire_bytes_total')} bytes; uplink {uplink}")
    table.add_row("stored", _count(ingest, "forebay_ingest_readings_total"), "PostgreSQL and Parquet")
    for event in events[-4:]:
        table.add_row("[yellow]chaos[/]", "", event)
    return table


def print_closing(console: Console, result: Reconciliation, where: str) -> None:
    """Print the closing table; every number was computed from truth, buffer, tables and archive."""
    table = Table(title="What became of every reading", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("meaning", style="dim")
    rows = [
        ("read", f"{result.read:,}", "values in responses that reached the agent"),
        ("after deadband", f"{result.accepted:,}", f"accepted by the buffer, in {result.batches:,} batches"),
        ("  of these, status only", f"{result.status_readings:,}", "a device did not answer: said, not hidden"),
        (
            "sent",
            f"{result.sent:,}",
            f"readings in batches taken from the broker; {result.repeats_refused} repeats refused",
        ),
        ("stored", f"{result.stored:,}", f"rows in {where}"),
        ("archived", f"{result.archived:,}", "rows in Parquet"),
        ("one-minute windows", f"{result.windows:,}", _windows_words(result)),
        ("dead letters", f"{result.dead_letters:,}", "messages that could not be decoded, kept"),
    ]
    if result.in_hand:
        rows.append(("in hand", f"{result.in_hand:,}", "read in the moment of a kill -9, never accepted"))
    for row in rows:
        table.add_row(*row)
    table.add_section()
    for name, count in (("lost", result.lost), ("duplicated", result.duplicated), ("wrong values", result.wrong)):
        style = "bold green" if count == 0 else "bold red"
        table.add_row(name, f"[{style}]{count}[/]", "compared with the plant's own record")
    table.add_section()
    per_reading = result.bytes_per_reading
    ratio = RAW_BYTES / per_reading if per_reading else float("nan")
    table.add_row("wire", f"{per_reading:.2f} B", f"per reading, whole Kafka payload; {ratio:.1f} : 1 against 16 B")
    if result.wire_bytes:
        together = RAW_BYTES * result.read / result.wire_bytes
        table.add_row("wire, against every poll", f"{together:.1f} : 1", "deadband and compression, 16 B a value")
    for name in ("poll to table", "sent to table"):
        if f"{name} p50" in result.delays_ms:
            p50, p99 = result.delays_ms[f"{name} p50"], result.delays_ms[f"{name} p99"]
            table.add_row(
                name,
                f"{p50:,.0f} ms",
                f"median; p99 {p99:,.0f} ms{' (oldest reading of each batch)' * name.startswith('poll')}",
            )
    console.print(table)
    if result.problems:
        console.print(Panel("\n".join(result.problems), title="not as it should be", border_style="red"))


def _windows_words(result: Reconciliation) -> str:
    words = f"{result.windows_differing} differ from a recomputation in SQL"
    return f"{words}; {result.windows_open} still open" if result.windows_open else words


def _count(metrics: dict[str, float], name: str) -> str:
    return f"{metrics[name]:,.0f}" if name in metrics else "-"
