"""`edge-agent codec bench|explain`: what the codecs make of recorded signals, in bytes and in words.

Results go to stdout (a table, or one JSON object with --json). Exit codes: 0 good, 1 a block did not come back as it
should, 2 bad usage or a file that is not one of signals. What it needs (numpy, DuckDB) is imported only when it runs.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_agent.codec.measure import Measured

LEVELS = ("fast", "balanced", "small", "gorilla", "raw")
BLOCK_DEFAULT = 1024
BLOCK_MAX = 4096


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not export the type
    """Add the `codec` command to argparse's `subparsers`."""
    parser = subparsers.add_parser("codec", help="see what the block codecs make of recorded signals")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    bench = actions.add_parser("bench", help="bytes and speed per series and pooled; verifies every round trip")
    bench.set_defaults(func=_bench)
    explain = actions.add_parser("explain", help="which codecs each series gets, and why")
    explain.set_defaults(func=_explain)
    for action in (bench, explain):
        add = action.add_argument
        add("file", type=Path, metavar="FILE.parquet", help="columns series, ts_ms or ts_us (int64), value (float64)")
        add("--block", type=_block, default=BLOCK_DEFAULT, metavar="N", help="readings a block (default %(default)s)")
        add("--level", choices=LEVELS, default="small", help="level or codec (default %(default)s)")
        add(
            "--max-error-span",
            type=_part,
            default=0.0,
            metavar="X",
            help="round values by at most this part of each series' span, as 0.001 (default: exact)",
        )
        add("--json", action="store_true", help="print one JSON object")


def _block(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= BLOCK_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {BLOCK_MAX}")
    return number


def _part(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to less than 1")
    return number


def _bench(args: argparse.Namespace) -> int:
    measured = _measure(args)
    if measured is None:
        return 2
    pooled = _pool(measured)
    failed = [one.series for one in measured if not one.verified]
    if args.json:
        head = {"file": str(args.file), "block": args.block, "level": args.level, "max_error_span": args.max_error_span}
        print(json.dumps(head | {"series": [_record(one) for one in measured], "pooled": pooled, "failed": failed}))
    else:
        _print_table(measured, pooled)
        _print_loss(measured)
    for series in failed:
        print(f"{series}: a block did not come back as it should", file=sys.stderr)
    return 1 if failed else 0


def _explain(args: argparse.Namespace) -> int:
    measured = _measure(args)
    if measured is None:
        return 2
    if args.json:
        print(json.dumps({one.series: _reasons(one) for one in measured}))
        return 0
    for one in measured:
        print(f"{one.series}: {one.ratio:.1f} : 1")
        for line in _reasons(one):
            print(f"  {line}")
    return 0


def _measure(args: argparse.Namespace) -> "list[Measured] | None":
    from edge_agent.codec.measure import Options, measure  # noqa: PLC0415
    from edge_agent.codec.signals import SignalFileError, load_signals  # noqa: PLC0415

    try:
        signals = load_signals(args.file)
    except SignalFileError as error:
        print(error, file=sys.stderr)
        return None
    options: Options = Options(args.block, args.level, args.max_error_span)
    return [measure(signal, options) for signal in signals]


def _speeds(readings: int, encode_s: float, decode_s: float) -> dict[str, float]:
    return {
        "encode_m_per_s": round(readings / encode_s / 1e6, 2),
        "decode_m_per_s": round(readings / decode_s / 1e6, 2),
    }


def _record(one: "Measured") -> dict[str, Any]:
    return {
        "series": one.series,
        "readings": one.readings,
        "bytes": one.bytes,
        "ratio": round(one.ratio, 4),
        **_speeds(one.readings, one.encode_s, one.decode_s),
        "codecs": one.codecs,
        "timestamp_codecs": one.timestamp_codecs,
        "timestamp_bytes": one.timestamp_bytes,
        "verified": one.verified,
        "loss": None if one.loss is None else asdict(one.loss),
    }


def _pool(measured: "Sequence[Measured]") -> dict[str, Any]:
    readings = sum(one.readings for one in measured)
    size = sum(one.bytes for one in measured)
    codecs: dict[str, int] = {}
    for one in measured:
        for name, blocks in one.codecs.items():
            codecs[name] = codecs.get(name, 0) + blocks
    return {
        "readings": readings,
        "bytes": size,
        "ratio": round(16 * readings / size, 4),
        **_speeds(readings, sum(one.encode_s for one in measured), sum(one.decode_s for one in measured)),
        "codecs": dict(sorted(codecs.items(), key=lambda item: -item[1])),
        "verified": all(one.verified for one in measured),
    }


def _print_table(measured: "Sequence[Measured]", pooled: dict[str, Any]) -> None:
    width = max(len("pooled"), *(len(one.series) for one in measured))
    print(
        f"{'series':{width}} {'readings':>9} {'bytes':>9} {'ratio':>7} {'enc M/s':>8} {'dec M/s':>8}  verified  codecs"
    )
    for row in [*(_record(one) for one in measured), {"series": "pooled", **pooled}]:
        codecs = sorted(row["codecs"].items(), key=lambda item: -item[1])
        mix = "; ".join(f"{name} x{blocks}" for name, blocks in codecs[:2]) + ("; ..." if len(codecs) > 2 else "")  # noqa: PLR2004
        verified = "yes" if row["verified"] else "NO"
        print(
            f"{row['series']:{width}} {row['readings']:9} {row['bytes']:9} {row['ratio']:7.2f} "
            f"{row['encode_m_per_s']:8.1f} {row['decode_m_per_s']:8.1f}  {verified:8}  {mix}"
        )


def _print_loss(measured: "Sequence[Measured]") -> None:
    lossy = [(one.series, one.loss) for one in measured if one.loss is not None]
    if not lossy:
        return
    width = max(len("series"), *(len(series) for series, _ in lossy))
    print(f"\n{'series':{width}} {'bound':>10} {'max error':>10} {'rmse':>10} {'diff variance':>23} {'extremes'}")
    for series, loss in lossy:
        before, after = loss.difference_variance
        low, high = loss.minimum, loss.maximum
        print(
            f"{series:{width}} {loss.bound:10.4g} {loss.max_error:10.4g} {loss.rmse:10.4g} {before:11.4g}"
            f" ->{after:9.4g} {low[0]:.6g} -> {low[1]:.6g}, {high[0]:.6g} -> {high[1]:.6g}"
        )


_WHY = {
    "float32": "every value is a binary32 number",
    "integer/": "values are decimal or other fractions, so whole numbers bring them back",
    "integer*": "values are counts times a scale",
    "float64 bits": "no simpler form brings the values back",
    "dictionary": "there are few different values",
    "constant": "values do not change",
    "packed_delta": "neighbours are close",
    "coded_predicted": "the values before predict the next",
    "coded_symbols": "few steps follow one another in a pattern",
    "rounded": "a bound allows it",
    "gorilla": "neighbours share leading bits",
    "raw": "nothing is smaller",
}


def _reasons(one: "Measured") -> list[str]:
    lines = []
    for name, blocks in one.codecs.items():
        why = "; ".join(reason for word, reason in _WHY.items() if word in name)
        lines.append(f"values: {name} in {blocks} blocks" + (f" ({why})" if why else ""))
    times = ", ".join(f"{name} in {blocks}" for name, blocks in one.timestamp_codecs.items())
    lines.append(f"timestamps: {times} blocks, {8 * one.timestamp_bytes / one.readings:.2f} bits a reading")
    return lines
