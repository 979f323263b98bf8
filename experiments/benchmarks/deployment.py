"""A SuperLink and SuperNodes as processes on the loopback, which end with the block that started them."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

START_SECONDS, END_SECONDS, ASK_SECONDS = 90, 15, 3  # to ask is to start a process
BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
OFFLINE = ("--disable-runtime-dependency-installation",)


@dataclass
class Deployment:
    """Running processes.

    Attributes:
        folder: working directory of all, with their logs.
        environment: of all.
    """

    folder: Path
    environment: Mapping[str, str]

    def run(self, app: Path, *, timeout: float = 240, **options: Any) -> float:
        """Start a run of an app and return the seconds until it has come to its end."""
        text = " ".join(f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in options.items())
        return self.command(f"flwr run {shlex.quote(str(app))} --run-config {shlex.quote(text)}", timeout=timeout)

    def command(self, line: str, *, timeout: float = 240) -> float:
        """The same for a ``flwr run`` command."""
        began = time.monotonic()
        run = self.start(line)
        while time.monotonic() < began + timeout:
            listed = self._call(["flwr", "list", "--run-id", run, "--format", "json"])
            status = json.loads(listed[listed.index("{") :])["runs"][0]["status"]
            if status.startswith("finished"):
                assert status == "finished:completed", f"{status}\n{self.logs()}"
                return time.monotonic() - began
            time.sleep(ASK_SECONDS)
        raise AssertionError(f"no end within {timeout} s\n{self.logs()}")

    def start(self, line: str) -> str:
        """Give a ``flwr run`` command and return the number of the run."""
        said = self._call([*shlex.split(line), "--format", "json"])
        answer = json.loads(said[said.index("{") :])
        assert "run-id" in answer, f"{answer}\n{self.logs()}"
        return str(answer["run-id"])

    def _call(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.folder,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-6000:]}" for path in sorted(self.folder.glob("*.log")))


@contextlib.contextmanager
def deployed(
    folder: Path,
    superlink: str,
    supernodes: Sequence[str],
    connection: str,
    *,
    port: int,
) -> Iterator[Deployment]:
    """Start a SuperLink and SuperNodes by their commands.

    Args:
        folder: of their files and logs.
        superlink: command of the SuperLink.
        supernodes: commands of the SuperNodes.
        connection: Flower's configuration for ``flwr run``.
        port: that the SuperLink will listen on.
    """
    home = folder / "flwr"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(connection)
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    processes: list[subprocess.Popen[bytes]] = []
    deployment = Deployment(folder, environment)

    def start(name: str, line: str) -> None:
        command = shlex.split(line)
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [str(BIN / command[0]), *command[1:]],
                    cwd=deployment.folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    try:
        start("superlink", superlink)
        _wait_for(port, processes[0], deployment)
        for i, line in enumerate(supernodes):
            start(f"supernode-{i}", line)
        yield deployment
    finally:
        _end(processes, home)


def insecure(
    folder: Path, node_configs: Sequence[str], through: Callable[[int], int] = int
) -> contextlib.AbstractContextManager[Deployment]:
    """Deploy without TLS, which is for the loopback alone.

    Args:
        folder: of files and logs.
        node_configs: of the SuperNodes.
        through: gives, from the SuperLink's port, the one that SuperNodes connect to.
    """
    port = free_port()
    nodes = []
    for config in node_configs:
        node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{through(port)}"]
        nodes.append(shlex.join([*node, "--port", str(free_port()), "--node-config", config]))
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port), *OFFLINE]
    connection = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    return deployed(folder, shlex.join(link), nodes, connection, port=port)


class Relay:
    """A TCP relay on the loopback that counts what goes through it.

    Attributes:
        up: bytes that nodes sent.
        down: bytes that they got.
    """

    def __init__(self) -> None:
        self.up = self.down = 0
        self._ports: dict[int, int] = {}
        self._lock = threading.Lock()

    def __call__(self, port: int) -> int:
        """Return the port that relays to ``port``."""
        if port not in self._ports:
            server = socket.create_server(("127.0.0.1", 0))
            self._ports[port] = int(server.getsockname()[1])
            threading.Thread(target=self._serve, args=(server, port), daemon=True).start()
        return self._ports[port]

    def _serve(self, server: socket.socket, port: int) -> None:
        while True:
            client, _ = server.accept()
            try:
                target = socket.create_connection(("127.0.0.1", port))
            except OSError:  # the SuperLink has ended
                client.close()
                continue
            for source, sink, name in ((client, target, "up"), (target, client, "down")):
                threading.Thread(target=self._pump, args=(source, sink, name), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    setattr(self, name, getattr(self, name) + len(data))
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """Return a port of the loopback that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], deployment: Deployment) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, deployment.logs()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError(f"nobody listens on port {port}\n{deployment.logs()}")


def belonging(home: Path) -> list[psutil.Process]:
    """Return the processes with this FLWR_HOME, whoever their parent is: a SuperLink detaches those that it starts."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("FLWR_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _end(processes: Sequence[subprocess.Popen[bytes]], home: Path) -> None:
    """End processes and whatever they started, which may be about to start more."""
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    while left := belonging(home):
        for each in left:
            with contextlib.suppress(psutil.Error):
                each.kill()
        psutil.wait_procs(left, timeout=1)
    for process in processes:
        process.wait()
