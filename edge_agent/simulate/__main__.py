"""`python -m edge_agent.simulate`: the command without the rest of edge-agent."""

import argparse
import sys

from edge_agent.simulate.cli import add_parser


def main() -> int:
    """Parse the command line as `edge-agent simulate` would; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.simulate", add_help=False)
    subparsers = parser.add_subparsers(required=True)
    add_parser(subparsers)
    args = parser.parse_args(["simulate", *sys.argv[1:]])
    return int(args.func(args))


if __name__ == "__main__":
    sys.exit(main())
