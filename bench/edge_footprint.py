"""What an agent with next to nothing to do costs a gateway: import time, memory, CPU, and what the memory is made of.

`python -m bench footprint [--json] [--seconds 5]`. The agent has 10 tags on a device that is not there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("numpy", "duckdb", "confluent_kafka", "pydantic", "structlog", "pymodbus", "edge_agent.agent")
IMPORT_TRIES = 5
MB = 1_000_000
CONFIG = """
broker = "embedded"
[agent]
agent_id = "bench"
[[devices]]
name = "press-1"
adapter = "modbus"
address = "127.0.0.1:1"
"""


def import_seconds() -> float:
    """Return the median time to start Python and import the agent, less the time to start Python."""
    return statistics.median(
        _run_seconds("import edge_agent.agent") - _run_seconds("pass") for _ in range(IMPORT_TRIES)
    )


def memory_by_import_mb() -> dict[str, float]:
    """Return what each import adds to a fresh process, in this order."""
    code = (
        "import importlib, json, sys, psutil\n"
        "me = psutil.Process(); found = {}\n"
        f"for name in {MODULES!r}:\n"
        "    before = me.memory_info().rss; importlib.import_module(name)\n"
        "    found[name] = round((me.memory_info().rss - before) / 1e6, 1)\n"
        "print(json.dumps(found))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(out)
    return found


def idle_agent(seconds: float) -> dict[str, float]:
    """Run an agent for `seconds`; return its memory, private memory, threads and CPU."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "edge.toml"
        tags = "".join(f'[[devices.tags]]\nname = "t{number}"\naddress = "holding:{number}"\n' for number in range(10))
        config.write_text(CONFIG + tags)
        command = [sys.executable, "-m", "edge_agent.cli", "run", str(config)]
        agent = psutil.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            time.sleep(3)  # started, and its broker too
            before, started = agent.cpu_times(), time.monotonic()
            time.sleep(seconds)
            used, lasted = agent.cpu_times(), time.monotonic() - started
            memory = agent.memory_full_info()
            return {
                "rss_mb": round(memory.rss / MB, 1),
                "private_mb": round(memory.uss / MB, 1),
                "threads": agent.num_threads(),
                "cpu_percent": round(100 * (used.user + used.system - before.user - before.system) / lasted, 2),
            }
        finally:
            agent.terminate()
            agent.wait(10)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench footprint", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long the agent is watched")
    args = parser.parse_args(arguments)
    result = {
        "import_s": round(import_seconds(), 3),
        "idle_agent": idle_agent(args.seconds),
        "memory_by_import_mb": memory_by_import_mb(),
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return 0
    idle = result["idle_agent"]
    print(f"import edge_agent.agent: {result['import_s']} s")
    print(f"idle agent, 10 tags on a dead device: {idle}")
    print(f"memory by import, MB: {result['memory_by_import_mb']}")
    return 0


def _run_seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
