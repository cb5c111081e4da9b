"""What the scripts here that measure several processes beside each other have in common: processes whose CPU time is counted, their
configurations, runs of the harness against them, and results.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
PROGRAM = pathlib.Path(sys.argv[0]).name
LATE = 120


def nats_server():
    installed = TARGET / "test-clients/python/bin/nats-server"
    return os.environ.get("NATS_SERVER") or (str(installed) if installed.exists() else shutil.which("nats-server"))


def free_port():
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


def wait(what, is_so):
    deadline = time.monotonic() + LATE
    while not is_so():
        if time.monotonic() > deadline:
            sys.exit(f"{PROGRAM}: {what} does not come to be")
        time.sleep(0.1)


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


class Server:
    """One process; its CPU time is counted."""

    def __init__(self, stage, name, command):
        self.name = name
        self.log = open(stage / f"{name}.log", "w")
        self.process = subprocess.Popen(command, cwd=stage, stdout=self.log, stderr=self.log)

    @property
    def pid(self):
        return self.process.pid

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(LATE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Stage:
    def __init__(self, options, directory):
        self.options, self.directory = options, pathlib.Path(directory)
        self.pulsegate, self.loadtest = (TARGET / options.build / name for name in ("pulsegate", "loadtest"))
        for each in (self.pulsegate, self.loadtest):
            if not each.exists():
                sys.exit(f"{PROGRAM}: {each} is not there: cargo build --release --workspace")
        subprocess.run([self.pulsegate, "ca", "init", "ca"], cwd=directory, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([self.pulsegate, "ca", "server", "ca", "server", "--san", "localhost"], cwd=directory, check=True,
                       stdout=subprocess.DEVNULL)
        self.running, self.results = [], []

    def start(self, name, command):
        server = Server(self.directory, name, command)
        self.running.append(server)
        return server

    def end_all(self):
        while self.running:
            self.running.pop().end()

    def nats(self, name, mqtt=None):
        port = free_port()
        lines = [f'server_name: "{name}"', f'listen: "127.0.0.1:{port}"', "max_connections: 100000",
                 f'jetstream {{ store_dir: "{name}" }}']
        if mqtt:
            lines.append(f'mqtt {{ listen: "127.0.0.1:{mqtt}", tls {{ cert_file: "ca/servers/server.pem", '
                         'key_file: "ca/servers/server.key" } }')
        (self.directory / f"{name}.conf").write_text("\n".join(lines) + "\n")
        server = self.start(name, [nats_server(), "-c", f"{name}.conf"])
        wait(name, lambda: "Server is ready" in (self.directory / f"{name}.log").read_text())
        return server, port

    def gateway(self, name, nats=None, workers=None, durability=None, tables="", mqtt=""):
        """A gateway, one of a fleet where there is a NATS; its ports by protocol, and its API. `tables` is more of its configuration, and
        `mqtt` of its MQTT listener's. One that has run before has the store that it left."""
        ports = {"native": free_port(), "mqtt": free_port()}
        admin = free_port()
        text = [f'node = "{name}"', f'data_dir = "{name}"']
        text += [f"workers = {workers}"] if workers else []
        text += ["[admin]", f'listen = "127.0.0.1:{admin}"', tables]
        text += ["[store]", f'durability = "{durability}"'] if durability else []
        if nats:
            text += ["[backbone.nats]", f'urls = ["nats://127.0.0.1:{nats}"]']
        for protocol, port in ports.items():
            text += ["[[listener]]", f'name = "{protocol}"', f'listen = "127.0.0.1:{port}"', f'protocol = "{protocol}"']
            if protocol == "mqtt":
                text += ["[listener.mqtt]", 'publish = ["#"]', 'subscribe = ["#"]', mqtt]
            text += ["[listener.tls]", 'cert = "ca/servers/server.pem"', 'key = "ca/servers/server.key"']
        (self.directory / f"{name}.toml").write_text("\n".join(text) + "\n")
        server = self.start(name, [str(self.pulsegate), "--config", f"{name}.toml"])
        api = f"http://127.0.0.1:{admin}"
        wait(name, lambda: get(f"{api}/readyz").strip() == "ready")
        if nats:
            wait("the fleet", lambda: json.loads(get(f"{api}/v1/fleet") or "{}").get("state") == "connected")
        return server, ports, api

    def load(self, what, servers, arguments):
        """One run of the harness; its report, and the CPU seconds of the servers meanwhile."""
        report = self.directory / "report.json"
        report.unlink(missing_ok=True)
        command = [str(self.loadtest), *map(str, arguments), "--ca", "ca/ca.pem", "--json", str(report)]
        before = sum(server.cpu() for server in servers)
        done = subprocess.run(command, cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        used = sum(server.cpu() for server in servers) - before
        if not report.exists():
            sys.exit(f"{PROGRAM}: {' '.join(command)}\n{done.stdout}")
        found = json.loads(report.read_text())
        shown = " ".join(["loadtest", *map(str, arguments)])
        verdict = "" if done.returncode == 0 else " (a condition of the scenario did NOT hold)"
        return found, used, f"    # {what}: {shown}{verdict}"

    def say(self, key, value, text, command):
        print(f"{text}\n{command}", flush=True)
        self.results.append({"what": key, "value": value, "text": text, "command": command.strip()})


def main(known, options, about):
    """Runs what is asked for of the known scenarios, in a directory of their own."""
    if unknown := set(options.what) - set(known):
        sys.exit(f"{PROGRAM}: {unknown.pop()!r} is none of {', '.join(known)}")
    print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.build} build, {about}", flush=True)
    with tempfile.TemporaryDirectory(prefix=f"{PROGRAM}-") as directory:
        stage = Stage(options, directory)
        try:
            for name in options.what or known:
                known[name](stage)
        finally:
            stage.end_all()
        if options.json:
            options.json.write_text(json.dumps(stage.results, indent=1) + "\n")
