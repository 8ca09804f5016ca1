"""`python -m bench [SUITE] [options]`: one suite, or all of them, one after another."""

import platform
import sys

from bench import codec, edge, edge_footprint, ingest, wire

SUITES = {
    "codec": codec.main,
    "wire": wire.main,
    "footprint": edge_footprint.main,
    "edge": edge.main,
    "ingest": ingest.main,
}


def main() -> int:
    """Run the suite named first, else all; the rest of the arguments are the suite's own."""
    names = [sys.argv[1]] if len(sys.argv) > 1 and sys.argv[1] in SUITES else list(SUITES)
    options = sys.argv[2:] if len(names) == 1 else sys.argv[1:]
    if "--json" not in options:
        print(f"machine: {platform.machine()}, Python {platform.python_version()}, {_processor()}")
    return max(SUITES[name](options) for name in names)


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else "unknown processor"


if __name__ == "__main__":
    sys.exit(main())
