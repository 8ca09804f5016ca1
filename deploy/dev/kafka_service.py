"""A real Apache Kafka broker: one node that is broker and KRaft controller, from jars that Maven resolves.

In: a Ground, Java 17 and, the first time, Maven. Out: a broker on the loopback. Fails with ServiceError.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from common.errors import ServiceError
from deploy.dev.ground import CHECKOUT, Ground, end, log_tail, pick_port, wait_for

POM: Final = CHECKOUT / "deploy/dev/kafka/pom.xml"
PORT: Final = 19092
CONTROLLER_PORT: Final = 19093
NODE: Final = 1
HEAP: Final = ("-Xms256m", "-Xmx512m")
RESOLVE_TIMEOUT_S: Final = 600.0
DEBIAN_PACKAGES: Final = ("openjdk-17-jre-headless", "maven")

LOGGING: Final = """\
status = warn
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


class Kafka:
    """The broker of a ground. What it stores survives stop, start and kill; `down` in services.py keeps it too."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._folder = ground.subfolder("kafka")
        self._config = self._folder / "server.properties"
        self._endpoint = self._folder / "endpoint.json"
        self._process: subprocess.Popen[bytes] | None = None  # kept, so that a killed child is reaped
        self.log: Final = self._folder / "kafka.log"

    def start(self, timeout_s: float) -> dict[str, str]:
        """Start it unless it runs, on its former port if that is free; wait until it answers."""
        if self.processes() and self._endpoint.exists():
            endpoint: dict[str, str] = json.loads(self._endpoint.read_text())
        else:
            self.kill()  # one whose start was cut short
            endpoint = self._launch()
        wait_for(lambda: _serves(endpoint["bootstrap_servers"]) or not self.processes(), timeout_s)
        if not self.processes():
            raise ServiceError(f"Kafka ended at once: {log_tail(self.log)}")
        if not _serves(endpoint["bootstrap_servers"]):
            self.kill()
            raise ServiceError(f"Kafka does not answer after {timeout_s:.0f} s: {log_tail(self.log)}")
        return endpoint

    def stop(self) -> None:
        """End it as an operator would: it hands over, flushes and leaves."""
        end(self.processes, (signal.SIGTERM, signal.SIGKILL))

    def kill(self) -> None:
        """End it as a crash would."""
        end(self.processes, (signal.SIGKILL,))

    def processes(self) -> list[int]:
        """Return the processes that serve our config: a file name nobody else has, unlike a number in a pid file."""
        if self._process is not None:
            self._process.poll()
        wanted = os.fsencode(self._config)
        return [int(each.parent.name) for each in Path("/proc").glob("[0-9]*/cmdline") if _runs(each, wanted)]

    def _launch(self) -> dict[str, str]:
        former = json.loads(self._endpoint.read_text()) if self._endpoint.exists() else {}
        port = pick_port(int(former.get("port", PORT)))
        controller = pick_port(int(former.get("controller_port", CONTROLLER_PORT)))
        libraries = _libraries(self._ground)
        data = self._ground.subfolder("kafka", "data")
        self._config.write_text(_properties(port, controller, data))
        (self._folder / "log4j2.properties").write_text(LOGGING)
        if not (data / "meta.properties").exists():
            self._format(libraries)
        java = [_java(), *HEAP, f"-Dlog4j2.configurationFile={self._folder / 'log4j2.properties'}"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*java, "-cp", f"{libraries}/*", "kafka.Kafka", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as_account(),
            )
        endpoint = {
            "bootstrap_servers": f"127.0.0.1:{port}",
            "port": str(port),
            "controller_port": str(controller),
            "version": _version(),
            "log": str(self.log),
        }
        self._endpoint.write_text(json.dumps(endpoint, indent=1))
        return endpoint

    def _format(self, libraries: Path) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        done = subprocess.run(
            [_java(), "-cp", f"{libraries}/*", "kafka.tools.StorageTool", "format", "-t", cluster, "-c", self._config],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            **self._as_account(),
        )
        if done.returncode != 0:
            raise ServiceError(f"Kafka's storage format failed: {done.stderr or done.stdout}")

    def _as_account(self) -> dict[str, Any]:
        account = self._ground.account
        identity = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
        return {"cwd": self._folder, **identity}


def _properties(port: int, controller: int, data: Path) -> str:
    return "\n".join(
        (
            "process.roles=broker,controller",
            f"node.id={NODE}",
            f"controller.quorum.voters={NODE}@127.0.0.1:{controller}",
            f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}",
            "controller.listener.names=CONTROLLER",
            f"log.dirs={data}",
            "auto.create.topics.enable=true",
            "num.partitions=4",
            "default.replication.factor=1",
            "offsets.topic.replication.factor=1",
            "offsets.topic.num.partitions=8",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "transaction.state.log.num.partitions=4",
            "share.coordinator.state.topic.replication.factor=1",
            "share.coordinator.state.topic.min.isr=1",
            "group.initial.rebalance.delay.ms=0",
            "message.max.bytes=8388608",
            "log.retention.bytes=2147483648",
            "log.segment.bytes=268435456",
            "",
        )
    )


def _serves(bootstrap_servers: str) -> bool:
    client = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0, "socket.timeout.ms": 1000})
    try:
        return bool(client.list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def _runs(command_line: Path, argument: bytes) -> bool:
    try:
        words = command_line.read_bytes().split(b"\0")
    except OSError:
        return False
    return argument in words and b"kafka.Kafka" in words


def _version() -> str:
    found = re.search(r"<kafka\.version>(.+)</kafka\.version>", POM.read_text())
    if found is None:
        raise ServiceError(f"{POM} names no kafka.version")
    return found.group(1)


def _libraries(ground: Ground) -> Path:
    """Return the folder of the broker's jars, resolved the first time that this version is wanted."""
    name = f"kafka-{_version()}"
    shared = CHECKOUT / ".forebay/services" / name
    if shared.exists() and (ground.account is None or ground.account.can_reach(shared)):
        return shared
    libraries = ground.folder / name
    if libraries.exists():
        return libraries
    unfinished = libraries.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [_program("mvn"), "--batch-mode", "--quiet", "--file", str(POM), "dependency:copy-dependencies"]
    done = subprocess.run(
        [*command, "-DincludeScope=runtime", f"-DoutputDirectory={unfinished}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=RESOLVE_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise ServiceError(f"Maven could not resolve Kafka's jars: {done.stdout[-2000:]}{done.stderr[-500:]}")
    unfinished.rename(libraries)
    return libraries


def _java() -> str:
    return _program("java")


def _program(name: str) -> str:
    """Return a program's path, installing Debian's packages if it is missing and we may."""
    packages = " ".join(DEBIAN_PACKAGES)
    if shutil.which(name) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=False, env=environment)
        subprocess.run(["apt-get", "install", "-y", "-qq", *DEBIAN_PACKAGES], check=False, env=environment)
    found = shutil.which(name)
    if found is None:
        raise ServiceError(f"`{name}` is not installed; on Debian: apt-get install {packages}")
    return found
