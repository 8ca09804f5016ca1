"""`edge-agent simulate`: the command line of the simulated plant.

Results go to stdout (a table and `ready`, then a summary; one JSON object per line with --json), a progress line to
stderr if it is a terminal. Exit codes: 0 stopped by duration or signal, 1 failed (a port is taken, the disk is full),
2 bad usage. What the plant needs (numpy, DuckDB) is imported only when it runs: every edge-agent command loads this.
"""

import argparse
import asyncio
import json
import signal
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.duration import duration_s
from common.errors import ConfigError, ForebayError, Problem

if TYPE_CHECKING:
    from edge_agent.simulate.registers import Machine
    from edge_agent.simulate.simulation import Settings, Simulation, Source

SCENARIO_NAMES = ("calm", "demo", "rough")
MACHINES_DEFAULT = 5
TAGS_DEFAULT = 12
PORT_MAX = 65_535


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not export the type
    """Add the `simulate` command to argparse's `subparsers`."""
    parser = subparsers.add_parser(
        "simulate",
        help="serve a simulated plant over Modbus TCP",
        description="Serve a plant of simulated machines, or recorded signals, over Modbus TCP; with chaos if asked.",
    )
    add = parser.add_argument
    add("--machines", type=int, metavar="N", help=f"machines, one server each (default {MACHINES_DEFAULT})")
    add("--tags", type=int, metavar="N", help=f"tags per machine (default {TAGS_DEFAULT}; more repeat sensors)")
    add("--replay", type=Path, metavar="FILE.parquet", help="play recorded signals: columns series, ts_ms, value")
    add("--speed", type=float, metavar="X", help="pace of --replay (default 1: that of the recording)")
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add(
        "--port",
        type=int,
        default=5020,
        metavar="BASE",
        help="first machine's port (default %(default)s; 0: any free)",
    )
    add("--scenario", choices=SCENARIO_NAMES, default="calm", help="how much chaos (default %(default)s)")
    add(
        "--chaos",
        default="",
        metavar="LIST",
        help="on top of the scenario: spikes,drift,loss; =RATE to choose",
    )
    add("--duration", metavar="TIME", help="stop after 60s, 10m, 1h (default: run until Ctrl-C)")
    add("--seed", type=int, default=1, help="of everything random (default %(default)s)")
    add("--truth", type=Path, metavar="FILE.parquet", help="record what every response held, and what was injected")
    add("--write-config", type=Path, metavar="FILE.toml", help="write an agent config for this plant")
    add("--poll-interval", default="1s", metavar="TIME", help="for that config; a spike lasts as long (default 1s)")
    add("--data-dir", type=Path, metavar="DIR", help="for that config (default: forebay-data beside it)")
    add("--no-deadbands", action="store_true", help="for that config: every poll is reported")
    add("--json", action="store_true", help="print results as JSON, one object per line")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve the plant until its time is up or a signal comes; returns the exit code."""
    try:
        return asyncio.run(_serve(args))
    except ConfigError as error:
        for problem in error.problems:
            print(f"simulate: {error.source}: {problem}", file=sys.stderr)
        return 2
    except ForebayError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True, slots=True)
class _Plan:
    """The command line, checked."""

    machines: "list[Machine]"
    source: "Source"
    settings: "Settings"
    duration_s: float | None
    poll_interval_s: float


def seconds(option: str, text: str) -> float:
    """Read a duration, the value of `option`; raises ConfigError so that a mistake is one line, without the usage."""
    try:
        return duration_s(text)
    except argparse.ArgumentTypeError as error:
        raise _usage(option, str(error)) from None


def _usage(option: str, message: str) -> ConfigError:
    return ConfigError(option, [Problem("", message)])


def _plan(args: argparse.Namespace) -> _Plan:
    from edge_agent.simulate.faults import SCENARIOS, parse_chaos  # noqa: PLC0415 - see the module
    from edge_agent.simulate.simulation import Settings  # noqa: PLC0415

    poll_interval_s = seconds("--poll-interval", args.poll_interval)
    settings = Settings(
        host=args.host,
        port=args.port,
        rates=parse_chaos(args.chaos, SCENARIOS[args.scenario]),
        seed=args.seed,
        spike_s=poll_interval_s,
        truth=args.truth,
    )
    if args.seed < 0:
        raise _usage("--seed", "a seed is not negative")
    machines, source = _replayed(args) if args.replay is not None else _simulated(args)
    if not 0 <= args.port <= PORT_MAX or (args.port and args.port + len(machines) - 1 > PORT_MAX):
        raise _usage("--port", f"{len(machines)} machines from port {args.port} on do not fit below {PORT_MAX + 1}")
    for option, path in (("--truth", args.truth), ("--write-config", args.write_config)):
        if path is not None and (not path.parent.is_dir() or path.is_dir()):
            raise _usage(f"{option} {path}", "its folder does not exist" if not path.is_dir() else "is a folder")
    duration_s = None if args.duration is None else seconds("--duration", args.duration)
    return _Plan(machines, source, settings, duration_s, poll_interval_s)


def _simulated(args: argparse.Namespace) -> "tuple[list[Machine], Source]":
    from edge_agent.simulate import plant  # noqa: PLC0415

    if args.speed is not None:
        raise _usage("--speed", "only makes sense with --replay")
    count = MACHINES_DEFAULT if args.machines is None else args.machines
    tags = TAGS_DEFAULT if args.tags is None else args.tags
    for option, number in (("--machines", count), ("--tags", tags)):
        if number < 1:
            raise _usage(option, f"at least 1, got {number}")
    return plant.build_machines(count, tags), plant.PhysicsSource(args.seed, count, tags)


def _replayed(args: argparse.Namespace) -> "tuple[list[Machine], Source]":
    from edge_agent.simulate import replay  # noqa: PLC0415

    for option, given in (("--machines", args.machines), ("--tags", args.tags)):
        if given is not None:
            raise _usage(option, "the machines and tags of a --replay are those of its file")
    speed = 1.0 if args.speed is None else args.speed
    if not 0.0 < speed < float("inf"):
        raise _usage("--speed", f"more than 0, got {speed:g}")
    recordings = replay.load_recordings(args.replay)
    return replay.build_machines(args.replay, recordings), replay.ReplaySource(recordings, speed)


async def _serve(args: argparse.Namespace) -> int:
    from edge_agent.simulate.simulation import Simulation  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    plan = _plan(args)
    simulation = Simulation(plan.machines, plan.source, plan.settings)
    await simulation.start()
    try:
        _write_config(args, plan, simulation.ports)
        _print_start(args, plan, simulation.ports)
        if plan.duration_s is not None:
            loop.call_later(plan.duration_s, stop.set)
        progress = asyncio.create_task(_show_progress(simulation)) if sys.stderr.isatty() else None
        await simulation.run(stop)
        if progress is not None:
            progress.cancel()
            print(file=sys.stderr)
    finally:
        elapsed_s = simulation.elapsed_s
        await simulation.close()
    _print_summary(args, simulation, elapsed_s)
    return 0


def _write_config(args: argparse.Namespace, plan: _Plan, ports: list[int]) -> None:
    from edge_agent.simulate import agent_config  # noqa: PLC0415

    if args.write_config is None:
        return
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(args.host, args.host)  # noqa: S104 - compares, does not bind
    text = agent_config.render(
        plan.machines,
        [(host, port) for port in ports],
        poll_interval_s=plan.poll_interval_s,
        data_dir="./forebay-data" if args.data_dir is None else str(args.data_dir.resolve()),
        deadbands=not args.no_deadbands,
    )
    try:
        args.write_config.write_text(text, "utf-8")
    except OSError as error:
        raise _usage(f"--write-config {args.write_config}", f"cannot write it: {error.strerror}") from error


def _print_start(args: argparse.Namespace, plan: _Plan, ports: list[int]) -> None:
    rows = [
        (machine.machine_id, f"{args.host}:{port}", len(machine.tags), f"{machine.byte_order}/{machine.word_order}")
        for machine, port in zip(plan.machines, ports, strict=True)
    ]
    if args.json:
        names = ("machine_id", "address", "tags", "byte_word_order")
        machines = [dict(zip(names, row, strict=True)) | {"port": port} for row, port in zip(rows, ports, strict=True)]
        chaos = asdict(plan.settings.rates)
        ready = {"event": "ready", "ports": ports, "machines": machines, "chaos": chaos, "seed": args.seed}
        print(json.dumps(ready), flush=True)
        return
    width = max(len("machine"), *(len(row[0]) for row in rows))
    place = max(len("address"), *(len(row[1]) for row in rows))
    print(f"{'machine':<{width}}  {'address':<{place}}  {'tags':>6}  byte/word order")
    for machine_id, address, tags, orders in rows:
        print(f"{machine_id:<{width}}  {address:<{place}}  {tags:>6}  {orders}")
    rates = ", ".join(f"{kind} {rate:g}" for kind, rate in asdict(plan.settings.rates).items() if rate)
    print(f"chaos: {rates or 'none'}; seed {args.seed}")
    if args.write_config is not None:
        print(f"agent config: {args.write_config}")
    print("ready", flush=True)


async def _show_progress(simulation: "Simulation") -> None:
    last = replace(simulation.counts())
    total = len(simulation.ports)
    while True:
        await asyncio.sleep(1.0)
        now = simulation.counts()
        rate = now.responses - last.responses
        line = f"{simulation.elapsed_s:6.0f} s  {simulation.connected}/{total} machines polled  {rate} responses/s"
        print(f"\r{line}  {now.lost} lost \033[K", end="", file=sys.stderr, flush=True)
        last = now


def _print_summary(args: argparse.Namespace, simulation: "Simulation", elapsed_s: float) -> None:
    counts = simulation.counts()
    rows = simulation.truth.rows if simulation.truth is not None else None
    if args.json:
        truth = None if args.truth is None else str(args.truth)
        extra = {"elapsed_s": round(elapsed_s, 3), "truth": truth, "truth_rows": rows}
        print(json.dumps({"event": "summary", **asdict(counts), **extra}), flush=True)
        return
    print(
        f"served {counts.responses} of {counts.requests} requests in {elapsed_s:.1f} s "
        f"({counts.exceptions} exceptions, {counts.lost} lost, {counts.resets} connections reset)"
    )
    if rows is not None:
        print(f"truth: {rows} rows in {args.truth}")
