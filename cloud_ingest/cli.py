"""The command line of cloud-ingest.

In: arguments. Out: results on stdout (`--json` for machines), logs on stderr, exit status 0 (done), 1 (failed),
2 (bad usage or config).
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from cloud_ingest import config, status
from cloud_ingest.broker import BrokerLink
from cloud_ingest.config import IngestConfig
from cloud_ingest.store import upkeep
from cloud_ingest.store.connection import RefusedError, Store
from cloud_ingest.store.migrate import Migrated, migrate
from cloud_ingest.worker import Worker
from common.clock import SystemClock
from common.errors import ConfigError, ForebayError, ServiceError
from common.logging import configure_logging

STOP_S_MAX: Final = 4.8
"""Whatever hangs then is left behind: everything that counts is in transactions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except ConfigError as error:
        _problems(error, as_json=options.json)
        return 2
    except ForebayError as error:
        _failed(str(error), as_json=options.json)
        return 1
    except KeyboardInterrupt:
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloud-ingest", description="Stores what edge agents send: readings, windows, archive; nothing twice."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Any, text: str) -> argparse.ArgumentParser:  # noqa: ANN401
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(command=call)
        one.add_argument("--json", action="store_true", help="print the result for machines")
        return one

    init = command("init", _init, "Write a config file with every setting explained.")
    init.add_argument("file", nargs="?", type=Path, default=Path("ingest.toml"), metavar="FILE")
    init.add_argument("--force", action="store_true", help="overwrite FILE")
    for name, call, text in (
        ("check", _check, "Check a config file and report every mistake."),
        ("migrate", _migrate, "Make or update the store's tables, and the broker's topics."),
        ("run", _run, "Consume and store until stopped by SIGINT or SIGTERM."),
        ("status", _status, "Show what is stored, what is lagging, what is missing."),
    ):
        one = command(name, call, text)
        one.add_argument("config", type=Path, metavar="CONFIG")
        if name == "migrate":
            one.add_argument("--dry-run", action="store_true", help="print the SQL that would be run")
    return parser


def _init(options: argparse.Namespace) -> int:
    path: Path = options.file
    text = (resources.files("cloud_ingest") / "sample.toml").read_text("utf-8")
    try:
        with path.open("w" if options.force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _failed(f"{path} exists already; --force overwrites it", as_json=options.json)
        return 1
    except OSError as error:
        _failed(f"{path}: {error.strerror}", as_json=options.json)
        return 1
    _result({"file": str(path)}, f"wrote {path}; next: cloud-ingest check {path}", as_json=options.json)
    return 0


def _check(options: argparse.Namespace) -> int:
    loaded = config.load(options.config)
    text = f"{options.config}: in order (broker {loaded.broker.kind}, store {loaded.store.kind})"
    _result({"ok": True, "broker": loaded.broker.kind, "store": loaded.store.kind}, text, as_json=options.json)
    return 0


def _migrate(options: argparse.Namespace) -> int:
    loaded = config.load(options.config)
    configure_logging("warning")
    done = asyncio.run(_migrate_store(loaded, dry_run=options.dry_run))
    if options.dry_run and not options.json:
        print("\n".join(f"-- {one.version:03}_{one.name}\n{one.sql}" for one in done.applied))
    topics = [] if options.dry_run else _make_topics(loaded)
    names = [f"{one.version:03}_{one.name}" for one in done.applied]
    verb = "would apply" if options.dry_run else "applied"
    lines = [f"store: {done.kind}; {verb} {', '.join(names) if names else 'nothing, it is up to date'}"]
    if done.missing:
        lines.append(f"warning: {done.missing}: native partitions by day, no columnstore compression")
    if topics is None:
        lines.append("warning: the broker does not answer: topics are made at the next run or migrate")
    elif topics:
        lines.append(f"broker: made {', '.join(topics)}")
    result = {"kind": done.kind, "applied": names, "missing": done.missing or None, "topics": topics}
    if options.dry_run and not options.json:
        print("-- " + "\n-- ".join(lines))
    else:
        _result(result, "\n".join(lines), as_json=options.json)
    return 0


async def _migrate_store(loaded: IngestConfig, *, dry_run: bool) -> Migrated:
    store = Store(loaded)
    try:
        async with store.connection() as connection:
            done = await migrate(connection, dry_run=dry_run)
            if not dry_run:
                if done.kind == "timescaledb":
                    await upkeep.set_policies(connection, loaded.retention)
                await upkeep.settle(connection, done.kind, loaded.retention, SystemClock().now_us())
            return done
    finally:
        await store.close()


def _make_topics(loaded: IngestConfig) -> list[str] | None:
    """Make what is missing; None when the broker does not answer."""
    if loaded.embedded_broker:
        return []
    link = BrokerLink(loaded)
    try:
        return link.ensure_topics(link.connect())
    except ServiceError:
        return None
    finally:
        link.close()


def _run(options: argparse.Namespace) -> int:
    loaded = config.load(options.config)
    configure_logging(loaded.ingest.log_level)
    asyncio.run(_work(loaded))
    return 0


async def _work(loaded: IngestConfig) -> None:
    stop = asyncio.Event()

    def end() -> None:
        stop.set()
        last = threading.Timer(STOP_S_MAX, os._exit, (0,))
        last.daemon = True
        last.start()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    await Worker(loaded, SystemClock(), stop).run()


def _status(options: argparse.Namespace) -> int:
    loaded = config.load(options.config)
    configure_logging("error")
    try:
        found = asyncio.run(status.gather(loaded))
    except RefusedError as error:
        raise ServiceError(f"{error}; are the tables up to date? cloud-ingest migrate {options.config}") from error
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        status.show(found, Console(width=None if sys.stdout.isatty() else 160))
    return 0


def _result(data: dict[str, Any], text: str, *, as_json: bool) -> None:
    print(json.dumps(data) if as_json else text)


def _failed(text: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"ok": False, "error": text}))
    print(f"cloud-ingest: {text}", file=sys.stderr)


def _problems(error: ConfigError, *, as_json: bool) -> None:
    if as_json:
        problems = [{"path": one.path, "message": one.message} for one in error.problems]
        print(json.dumps({"ok": False, "problems": problems}))
    print(f"cloud-ingest: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
