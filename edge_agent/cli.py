"""The `edge-agent` command: results on stdout, logs on stderr, exit 0 good, 1 failed, 2 bad usage or config."""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from common.duration import duration_s
from common.errors import ConfigError, ForebayError
from common.logging import configure_logging


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the entry point of the `edge-agent` script."""
    args = _parser().parse_args(arguments)
    try:
        exit_code: int = args.func(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except ForebayError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 1
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-agent", description="Reads machines, keeps their readings safe, forwards them to Kafka."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="write a commented sample config")
    init.add_argument("file", type=Path, nargs="?", default=Path("edge.toml"), metavar="FILE")
    init.set_defaults(func=_init)

    check = commands.add_parser("check", help="check a config; show how each device will be read")
    check.add_argument("config", type=Path, metavar="CONFIG")
    check.add_argument("--json", action="store_true", help="print the plan as JSON")
    check.set_defaults(func=_check)

    run = commands.add_parser("run", help="run the agent until stopped (Ctrl-C or SIGTERM)")
    run.add_argument("config", type=Path, metavar="CONFIG")
    run.set_defaults(func=_run)

    test = commands.add_parser("test", help="read the devices for a while and show it; stores and sends nothing")
    test.add_argument("config", type=Path, metavar="CONFIG")
    test.add_argument("--for", dest="seconds", type=duration_s, default=5.0, metavar="TIME", help="default 5s")
    test.add_argument("--json", action="store_true", help="print one JSON array")
    test.set_defaults(func=_test)

    buffer = commands.add_parser("buffer", help="look into the local buffer")
    actions = buffer.add_subparsers(required=True, metavar="ACTION")
    status = actions.add_parser("status", help="what is kept and what still waits (the agent must be stopped)")
    status.add_argument("config", type=Path, metavar="CONFIG")
    status.add_argument("--json", action="store_true")
    status.set_defaults(func=_buffer_status)

    from edge_agent.codec import cli as codec  # noqa: PLC0415 - `run` need not pay for these
    from edge_agent.simulate import cli as simulate  # noqa: PLC0415

    codec.add_parser(commands)
    simulate.add_parser(commands)
    return parser


def _init(args: argparse.Namespace) -> int:
    text = (resources.files("edge_agent") / "sample.toml").read_text("utf-8")
    try:
        with args.file.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        print(f"{args.file}: already there; not overwritten", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{args.file}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"wrote {args.file}; next: edge-agent check {args.file}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from edge_agent.agent import make_adapters  # noqa: PLC0415 - keeps --help fast
    from edge_agent.config import load  # noqa: PLC0415

    config = load(args.config)
    plans = {device.name: adapter.plan for device, adapter in zip(config.devices, make_adapters(config), strict=True)}
    if args.json:
        print(json.dumps({name: dataclasses.asdict(plan) for name, plan in plans.items()}, indent=2))
        return 0
    print(f"{args.config}: good; {len(config.devices)} devices, {sum(plan.points for plan in plans.values())} tags")
    for name, plan in plans.items():
        print(f"  {name}: {plan}")
        for line in plan.lines:
            print(f"    {line}")
    return 0


def _run(args: argparse.Namespace) -> int:
    from edge_agent.agent import Agent  # noqa: PLC0415 - keeps --help fast
    from edge_agent.config import load  # noqa: PLC0415

    config = load(args.config)
    configure_logging(config.agent.log_level)

    async def until_stopped() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await Agent(config).run(stop)

    asyncio.run(until_stopped())
    return 0


def _test(args: argparse.Namespace) -> int:
    from edge_agent.config import load  # noqa: PLC0415 - keeps --help fast
    from edge_agent.trial import try_devices  # noqa: PLC0415

    config = load(args.config)
    configure_logging("error")
    reports = asyncio.run(try_devices(config, args.seconds))
    if args.json:
        print(json.dumps([dataclasses.asdict(report) for report in reports], indent=2))
    else:
        columns = ["machine", "tag", "value", "unit", "status", "readings", "last"]
        rows = [
            [
                r.machine_id,
                r.tag,
                "-" if r.last_value is None else f"{r.last_value:g}",
                r.unit,
                r.status,
                str(r.readings),
                r.last_ts or "-",
            ]
            for r in reports
        ]
        _print_table(columns, rows)
        for device, error in sorted({(r.device, r.error) for r in reports if r.error}):
            print(f"{device}: {error}")
    return 0 if all(report.status == "good" for report in reports) else 1


def _buffer_status(args: argparse.Namespace) -> int:
    from common.clock import SystemClock, iso8601  # noqa: PLC0415 - keeps --help fast
    from edge_agent.buffer.buffer import Buffer, BufferLimits  # noqa: PLC0415
    from edge_agent.config import load  # noqa: PLC0415

    configure_logging("error")
    folder = load(args.config).agent.data_dir / "buffer"
    if not folder.is_dir():
        print(f"{folder}: no buffer yet; it is made when the agent first runs", file=sys.stderr)
        return 1
    with contextlib.closing(Buffer(folder, BufferLimits(), SystemClock())) as buffer:
        status = dataclasses.asdict(buffer.status())
    oldest_us = status.pop("oldest_us")
    status["oldest"] = None if oldest_us is None else iso8601(oldest_us)
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        _print_table(["buffer", str(folder)], [[name.replace("_", " "), str(value)] for name, value in status.items()])
    return 0


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only where a table is printed
    from rich.table import Table  # noqa: PLC0415

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


if __name__ == "__main__":
    sys.exit(main())
