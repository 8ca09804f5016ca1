"""`python -m deploy.demo`: about a minute of a whole Forebay on this machine, then the closing table.

Exit 0 only when nothing was lost, stored twice or changed; 1 otherwise, or when a program failed. Leaves nothing
running; the folder with logs, data and truth stays when something went wrong, or with --keep.
"""

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from cloud_ingest.embedded_postgres import EmbeddedPostgres
from common.duration import duration_s
from deploy.demo.live import live_table, print_closing
from deploy.demo.reconcile import reconcile
from deploy.demo.rig import Rig, RigError, RigOptions

DRAIN_TIMEOUT_S = 60.0
PLAIN_EVERY_S = 15.0


def main() -> int:
    """Run the demo; returns the exit code."""
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    console = Console(width=None if sys.stdout.isatty() else 130)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="forebay-demo-"))
    options = RigOptions(
        machines=args.machines,
        seed=args.seed,
        poll_interval=args.poll_interval,
        chaos=args.chaos,
        replay=args.replay,
        replay_speed=args.speed,
        flush_interval_s=args.flush_interval,
    )
    good = False
    try:
        good = _run(console, folder, options, args.duration)
    except RigError as error:
        console.print(f"[red]{error}[/]")
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        if good and not args.keep and args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            console.print(f"kept for a closer look: {folder}")
    return 0 if good else 1


def _run(console: Console, folder: Path, options: RigOptions, seconds: float) -> bool:
    with contextlib.ExitStack() as stack:
        rig = stack.enter_context(Rig(folder, options))
        console.print("starting the plant, the ingester with its PostgreSQL, and the agent ...")
        rig.start_plant()
        rig.start_ingest()
        postgres = EmbeddedPostgres(rig.data_dir / "postgres")  # a second hold: the comparison needs it to the end
        dsn = postgres.start()
        stack.callback(postgres.stop)
        rig.start_agent()
        events: list[str] = []
        _watch(console, rig, seconds, events)
        console.print("stopping: agent, then ingester, then plant ...")
        rig.agent.stop(signal.SIGINT)
        rig.wait("the last batches to be stored", _settled(rig), DRAIN_TIMEOUT_S, rig.ingest)
        rig.ingest.stop()
        rig.plant.stop()
        result = reconcile(rig.truth, rig.edge_config, dsn, rig.data_dir / "archive")
        print_closing(console, result, "PostgreSQL")
        return result.good


def _watch(console: Console, rig: Rig, seconds: float, events: list[str]) -> None:
    """Show the readings flow for `seconds`; half way through, the ingester is killed -9 and started again."""
    end = time.monotonic() + seconds
    kill_at = end - seconds / 2
    show: Callable[[], None]
    with contextlib.ExitStack() as stack:
        if console.is_terminal:
            live = stack.enter_context(Live(live_table(rig, seconds, events), console=console, auto_refresh=False))

            def show() -> None:
                live.update(live_table(rig, end - time.monotonic(), events), refresh=True)
        else:
            next_print = time.monotonic() + PLAIN_EVERY_S

            def show() -> None:
                nonlocal next_print
                if time.monotonic() >= next_print:
                    next_print += PLAIN_EVERY_S
                    console.print(live_table(rig, end - time.monotonic(), events))

        while time.monotonic() < end:
            if time.monotonic() >= kill_at:
                kill_at = end + 1
                rig.ingest.kill()
                events.append("kill -9 of the ingester; it starts again and takes up where the database says")
                rig.ingest.start()
            _complain_if_ended(rig)
            show()
            time.sleep(0.5)
    rig.wait("the ingester", rig.ingest_ready, 60, rig.ingest)


def _complain_if_ended(rig: Rig) -> None:
    for program in rig.programs:
        if not program.alive:
            raise RigError(f"{program.name} ended by itself\n{program.tail()}")


def _settled(rig: Rig) -> Callable[[], bool]:
    """Whether the ingester has taken everything and closed its last windows: its numbers stay as they are."""
    last: list[tuple[float, ...]] = []

    def settled() -> bool:
        metrics = rig.metrics(rig.ingest_port)
        names = ("forebay_ingest_batches_total", "forebay_ingest_readings_total", "forebay_ingest_windows_total")
        last.append(tuple(metrics.get(name, 0.0) for name in names))
        time.sleep(0.4)
        calm = 20
        return len(last) > calm and len(set(last[-calm:])) == 1

    return settled


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make demo DEMO_ARGS=...", description="A whole Forebay on this machine.")
    parser.add_argument("--duration", type=duration_s, default=60.0, metavar="TIME", help="default 60s")
    parser.add_argument("--machines", type=int, default=10, metavar="N")
    parser.add_argument("--poll-interval", default="500ms", metavar="TIME", help="default 500ms")
    parser.add_argument("--flush-interval", type=duration_s, default=5.0, metavar="TIME", help="default 5s")
    parser.add_argument("--chaos", default="spikes,drift,loss=0.01", help="default spikes,drift,loss=0.01")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", type=Path, metavar="FILE.parquet", help="recorded signals instead of physics")
    parser.add_argument("--speed", type=float, default=1.0, help="pace of --replay")
    parser.add_argument("--folder", type=Path, help="use and keep this folder")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a good run too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
