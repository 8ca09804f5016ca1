"""CPU and memory of an agent that polls a plant, beside a peer that reads one tag a request.

`python -m bench edge [--json] [--seconds 30] [--tags 1000 10000]`. The plant (`edge-agent simulate`, float32 tags, up
to 1000 a machine, every poll reported) runs in a process of its own, and so does the embedded broker; what is
measured is the agent's process alone. The peer is the loop that tutorials show, with pymodbus's own client: for each
tag one request, the values into a list. It stores, compresses and sends nothing.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
TAGS_PER_MACHINE = 1000
WARM_UP_S = 4.0
MB = 1_000_000

NAIVE_PEER = """
import asyncio, sys, time, tomllib
from pymodbus.client import AsyncModbusTcpClient
config = tomllib.load(open(sys.argv[1], "rb"))
types = {"int16": "INT16", "uint16": "UINT16", "int32": "INT32", "uint32": "UINT32", "float32": "FLOAT32",
         "float64": "FLOAT64"}
async def poll(device):
    host, _, port = device["address"].rpartition(":")
    client = AsyncModbusTcpClient(host, port=int(port))
    await client.connect()
    rounds = 0
    due = time.monotonic()
    while True:
        for tag in device["tags"]:
            table, _, number = tag["address"].partition(":")
            if tag["type"] == "bool":
                values.append((await client.read_coils(int(number), count=1)).bits[0])
                continue
            kind = getattr(client.DATATYPE, types[tag["type"]])
            read = client.read_holding_registers if table == "holding" else client.read_input_registers
            answer = await read(int(number), count=kind.value[1])
            values.append(client.convert_from_registers(answer.registers, kind))
        due = max(due + 1.0, time.monotonic())
        await asyncio.sleep(due - time.monotonic())
async def main():
    await asyncio.gather(*map(poll, config["devices"]), report())
async def report():
    while True:
        await asyncio.sleep(0.5)
        print(time.monotonic(), len(values), flush=True)
values = []
asyncio.run(main())
"""


@contextlib.contextmanager
def plant(folder: Path, tags: int) -> Iterator[Path]:
    """Serve `tags` tags; gives the config that reads them."""
    config = folder / "edge.toml"
    machines = max(1, tags // TAGS_PER_MACHINE)
    command = [
        *(sys.executable, "-m", "edge_agent.simulate", "--json", "--no-deadbands", "--port", "0"),
        *("--machines", str(machines), "--tags", str(tags // machines), "--write-config", str(config)),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if process.stdout is None:
        raise AssertionError("PIPE was asked for")
    try:
        process.stdout.readline()
        config.write_text(f"{config.read_text()}\n[http]\nport = 0\n")
        yield config
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def measure_agent(config: Path, seconds: float) -> dict[str, Any]:
    """Watch `edge-agent run` for `seconds`."""
    command = [sys.executable, "-m", "edge_agent.cli", "run", str(config)]
    agent = psutil.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        address = json.loads(agent.stderr.readline())["http"]
        time.sleep(WARM_UP_S)
        before = _metrics(address)
        watched = _watch(agent, seconds)
        after = _metrics(address)
        moved = {name: after[name] - before[name] for name in after}
        readings = moved["forebay_edge_readings_accepted_total"]
        return {
            **watched,
            "readings_per_s": round(readings / watched["seconds"]),
            "overruns": sum(value for name, value in after.items() if name.startswith("forebay_edge_device_overruns")),
            "wire_bytes_per_reading": round(moved["forebay_edge_wire_bytes_total"] / readings, 2),
            "accept_ms_mean": round(
                1000 * moved["forebay_edge_accept_seconds_sum"] / moved["forebay_edge_accept_seconds_count"], 2
            ),
        }
    finally:
        agent.terminate()
        agent.wait(10)
        agent.stderr.close()


def measure_peer(config: Path, seconds: float) -> dict[str, Any]:
    """Watch the naive loop for `seconds`."""
    peer = psutil.Popen([sys.executable, "-c", NAIVE_PEER, str(config)], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(WARM_UP_S)
        first = peer.stdout.readline().split()
        watched = _watch(peer, seconds)
        peer.terminate()
        last = peer.stdout.read().splitlines()[-1].split()
        return {**watched, "readings_per_s": round((int(last[1]) - int(first[1])) / (float(last[0]) - float(first[0])))}
    finally:
        peer.kill()
        peer.wait()
        peer.stdout.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench edge", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--tags", type=int, nargs="+", default=[1000, 10_000])
    args = parser.parse_args(arguments)
    results = []
    for tags in args.tags:
        with tempfile.TemporaryDirectory() as folder, plant(Path(folder), tags) as config:
            results.append({"tags": tags, "who": "edge-agent", **measure_agent(config, args.seconds)})
            results.append({"tags": tags, "who": "one request a tag", **measure_peer(config, args.seconds)})
    if args.json:
        print(json.dumps(results, indent=1))
        return 0
    for result in results:
        print("  ".join(f"{name} {value}" for name, value in result.items()))
    return 0


def _watch(process: psutil.Popen, seconds: float) -> dict[str, Any]:
    before, started = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    used, lasted = process.cpu_times(), time.monotonic() - started
    return {
        "seconds": round(lasted, 1),
        "cpu_percent_of_a_core": round(100 * (used.user + used.system - before.user - before.system) / lasted, 1),
        "rss_mb": round(process.memory_info().rss / MB, 1),
    }


def _metrics(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


if __name__ == "__main__":
    sys.exit(main())
