"""A server that runs: started on its cores, stopped with all that it started, and what it and others use of the machine."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request

START_LIMIT_S = 900


class Failed(Exception):
    """Something that one contestant cannot do without; the message says what, `log` is the end of what was printed."""

    def __init__(self, message, log=""):
        super().__init__(message)
        self.log = log


def free_ports():
    """Two different ports that nothing listens on: both are held until both are known."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def stat_fields(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()


def family(root):
    """The process and its descendants."""
    children = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat_fields(pid)[1]), []).append(int(pid))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def busy_seconds():
    """Core-seconds that the whole machine has worked. Fields 3 and 4 of the first line are idle time."""
    with open("/proc/stat") as file:
        fields = [int(value) for value in file.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def used_seconds(root):
    """Core-seconds of the process and its living descendants."""
    total = 0
    for pid in family(root):
        with contextlib.suppress(OSError):
            total += sum(int(value) for value in stat_fields(pid)[11:13])
    return total / os.sysconf("SC_CLK_TCK")


def resident_mib(root):
    """Resident memory of the process and its descendants; what they share counts once."""
    total = 0
    for pid in family(root):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return round(total / 1024)


class Load:
    """What others than a server and this process used of the machine since it was made."""

    def __init__(self, pid):
        self.pid = pid
        self.before = self._now()

    def _now(self):
        return time.monotonic(), busy_seconds(), used_seconds(self.pid), time.process_time()

    def others_cores(self):
        wall, busy, used, own = (now - then for now, then in zip(self._now(), self.before))
        return round(max(0.0, busy - used - own) / wall, 2)


def read_into_cache(files):
    """Reads files, so that how fast a server starts does not hang on what the disk did before."""
    for file in files:
        with open(file, "rb", buffering=0) as source:
            while source.read(1 << 24):
                pass


def end_of(log, lines=30):
    with open(log, encoding="utf-8", errors="replace") as file:
        return "".join(file.readlines()[-lines:])


@contextlib.contextmanager
def running(launch, cores, log_path):
    """The server, ready, on these cores: yields its URL, that of its metrics, its process id and the moment of its start."""
    port, admin = free_ports()
    fill = lambda text: str(text).format(port=port, admin=admin)
    with open(log_path, "w", encoding="utf-8") as log:
        begin = time.monotonic()
        process = subprocess.Popen(
            [fill(part) for part in launch.command], stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **launch.environment}, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    try:
        wait_until_ready(process, fill(launch.ready), begin)
        yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", process.pid, begin
    finally:
        # The whole session: vLLM leaves its engine behind when only the front end is told.
        for kill in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, kill)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)


def wait_until_ready(process, url, begin):
    # Often: some are ready in half a second, and how long they took is a result.
    pause = 0.01
    while True:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        if process.poll() is not None:
            raise Failed(f"it ended with status {process.returncode} before it was ready")
        if time.monotonic() - begin > START_LIMIT_S:
            raise Failed(f"it was not ready within {START_LIMIT_S} s")
        time.sleep(pause)
        pause = min(0.2, pause * 1.02)
