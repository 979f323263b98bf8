"""A SuperLink and SuperNodes as processes on the loopback, which end with the block that started them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS, END_SECONDS = 90, 15
INSECURE = {"link": ("--insecure",), "node": ("--insecure",), "run": "insecure = true"}


@dataclass
class Deployment:
    """Running processes.

    Attributes:
        folder: working directory of all, with their logs.
        environment: of all.
    """

    folder: Path
    environment: Mapping[str, str]

    def run(self, app: Path, timeout: float = 240, **options: Any) -> str:
        """Start a run and wait for its end, and return its log; the run must come to its end."""
        text = " ".join(f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in options.items())
        started = self.flwr("run", str(app), "loopback", "--run-config", text, "--format", "json")
        run = str(json.loads(started[started.index("{") :])["run-id"])
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            status = json.loads(self.flwr("list", "loopback", "--run-id", run, "--format", "json"))["runs"][0]["status"]
            if status.startswith("finished"):
                log = self.logs()
                assert status == "finished:completed", f"{status}\n{log}"
                return log
            time.sleep(0.5)
        raise AssertionError(f"no end within {timeout} s\n{self.logs()}")

    def flwr(self, *arguments: str) -> str:
        """Return what the command prints."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "flwr"), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"flwr {' '.join(arguments)}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-6000:]}" for path in sorted(self.folder.glob("*.log")))


@contextlib.contextmanager
def deployed(
    folder: Path, node_configs: Sequence[str], *, security: Mapping[str, Any] = INSECURE, through: Any = None
) -> Iterator[Deployment]:
    """Start a SuperLink and a SuperNode for each configuration.

    Args:
        folder: of their files.
        node_configs: of the SuperNodes.
        security: flags of SuperLink and SuperNodes, and line of Flower's configuration for ``flwr run``.
        through: makes the port that SuperNodes connect to from the SuperLink's; None is the same.
    """
    home = folder / "flwr"
    home.mkdir()
    port = free_port()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\naddress = "127.0.0.1:{port}"\n{security["run"]}\n'
    )
    bin = Path(sys.executable).parent
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root),
    }
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    deployment = Deployment(folder, environment)
    try:
        start(
            "superlink",
            str(bin / "flower-superlink"),
            *security["link"],
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--disable-runtime-dependency-installation",
        )
        wait_for(port, processes[0], deployment)
        to = port if through is None else through(port)
        for i, config in enumerate(node_configs):
            start(
                f"supernode-{i}",
                str(bin / "flower-supernode"),
                *security["node"],
                "--superlink",
                f"127.0.0.1:{to}",
                "--port",
                str(free_port()),
                "--node-config",
                config,
            )
        yield deployment
    finally:
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            with contextlib.suppress(ProcessLookupError):  # whatever of its group is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], deployment: Deployment) -> None:
    """Wait until somebody listens."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, deployment.logs()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError(f"nobody listens on port {port}\n{deployment.logs()}")


def free_port() -> int:
    """Return a port of the loopback that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
