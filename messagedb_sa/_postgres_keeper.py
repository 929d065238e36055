"""Keep one throwaway PostgreSQL server: start it, and remove all of it as soon as its owner is gone.

A program of its own (``python -I -S _postgres_keeper.py JOB``, standard library only), because nothing inside the owner
runs when the owner is killed. JOB is a JSON object: ``owner`` (process id), ``programs`` (folder of initdb and
postgres), ``temp`` (where to put the folder) and ``settings``. One JSON line goes to standard output:
``{"folder": ...}`` once the server takes connections, or ``{"error": ...}``. The owner is gone when standard input ends
or holds anything, or when this process has another parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

# The unix socket's whole path may have 103 bytes on macOS (107 on Linux): "/messagedb-12345678/.s.PGSQL.65535" has 34.
LONGEST_TEMP = 103 - 34

OWNER_POLL_SECONDS = 0.5
START_POLL_SECONDS = 0.01
# Killing initdb would leak the shared memory segment of the postgres that it runs; it ends by itself in a second.
INITDB_PATIENCE_SECONDS = 3.0
# A postgres told to quit kills what does not follow after 5 seconds by itself.
SERVER_PATIENCE_SECONDS = 10.0
REMOVAL_PATIENCE_SECONDS = 5.0
LONGEST_LOG = 8_000


class NotStartedError(Exception):
    """The text says why, with what the programs printed."""


class Owner:
    """The process that this one serves."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        # Both may come from an owner that ignores or blocks signals.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def gone(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the owner to be gone or to want this to end."""
        # A forked child of the owner may hold the pipe open for ever, so its end alone does not tell.
        said = select.select([0], [], [], seconds)[0]
        return bool(said) or self._signalled or os.getppid() != self._pid


def main() -> None:
    job = json.loads(sys.argv[1])
    os.umask(0o022)
    owner = Owner(job["owner"])
    try:
        account = server_account()
        with own_folder(job["temp"], account) as folder:
            serve(owner, folder, Path(job["programs"]), account, job["settings"])
    except (NotStartedError, OSError) as error:
        answer(error=str(error))


def answer(**content: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(content), flush=True)


def serve(
    owner: Owner, folder: Path, programs: Path, account: pwd.struct_passwd | None, settings: Mapping[str, str]
) -> None:
    """Run a server in ``folder`` until its owner is gone or it ends by itself."""
    programs = reachable_programs(programs, folder, account)
    data = folder / "data"
    with (folder / "log").open("a+b") as log:
        initdb: list[str | Path] = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust"]
        initdb += ["-E", "UTF8", "--locale=C", "--no-sync"]
        with running(initdb, log.fileno(), folder, account, None, INITDB_PATIENCE_SECONDS) as process:
            while process.poll() is None:
                if owner.gone(START_POLL_SECONDS):
                    raise NotStartedError("stopped while initdb ran")
        if process.returncode != 0:
            raise NotStartedError(f"initdb failed ({process.returncode}):\n{tail(log.fileno())}")
        log.truncate(0)
        postgres: list[str | Path] = [programs / "postgres", "-D", data]
        for name, value in {**settings, "unix_socket_directories": quoted(folder)}.items():
            postgres += ["-c", f"{name}={value}"]
        with running(postgres, log.fileno(), folder, account, signal.SIGQUIT, SERVER_PATIENCE_SECONDS) as process:
            while not is_ready(data):
                if owner.gone(START_POLL_SECONDS):
                    raise NotStartedError("stopped while the server started")
                if process.poll() is not None:
                    raise NotStartedError(f"postgres ended ({process.returncode}):\n{tail(log.fileno())}")
            answer(folder=str(folder))
            while process.poll() is None and not owner.gone(OWNER_POLL_SECONDS):
                pass


@contextlib.contextmanager
def running(
    command: list[str | Path],
    log: int,
    folder: Path,
    account: pwd.struct_passwd | None,
    end_signal: signal.Signals | None,
    patience: float,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended when the block has: it gets ``end_signal``, after ``patience`` seconds SIGKILL."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=folder,
        env=environment(folder),
        start_new_session=True,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )
    try:
        yield process
    finally:
        if end_signal is not None:
            process.send_signal(end_signal)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    # Without TZ, initdb compares every time zone there is with the machine's.
    return {"PATH": os.defpath, **kept, "HOME": str(folder), "LC_ALL": "C", "TZ": "UTC"}


def is_ready(data: Path) -> bool:
    try:
        return (data / "postmaster.pid").read_text("utf-8", "replace").rstrip().endswith("\nready")
    except FileNotFoundError:
        return False


def tail(log: int) -> str:
    size = os.fstat(log).st_size
    return os.pread(log, LONGEST_LOG, max(0, size - LONGEST_LOG)).decode("utf-8", "replace").strip()


def quoted(path: Path) -> str:
    """As an element of a list in a server setting."""
    return '"' + str(path).replace('"', '""') + '"'


# ---- the folder


@contextlib.contextmanager
def own_folder(temp: str, account: pwd.struct_passwd | None) -> Iterator[Path]:
    """A new folder that belongs to the server's user; removed with everything in it after the block."""
    folder = Path(tempfile.mkdtemp(prefix="messagedb-", dir=usable_temp(temp, account)))
    try:
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        yield folder
    finally:
        end_stragglers(folder / "data")
        release_shared_memory(folder / "data")
        remove(folder)


def usable_temp(temp: str, account: pwd.struct_passwd | None) -> str:
    for place in (temp, "/tmp"):
        # Comma and colon have a meaning of their own where a client is told the host.
        fits = len(os.fsencode(place)) <= LONGEST_TEMP and not {",", ":"} & set(place)
        if fits and has_access(account, place, os.X_OK):
            return place
    raise NotStartedError(f"neither {temp} nor /tmp can hold the server's socket: too long, or closed to its user")


def remove(folder: Path) -> None:
    """Remove it; what a process that is just ending still writes there is removed too."""
    last = time.monotonic() + REMOVAL_PATIENCE_SECONDS
    while folder.exists() and time.monotonic() < last:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            time.sleep(0.05)


def end_stragglers(data: Path) -> None:
    """Kill what a postgres that was killed left running: its children notice in their own time, and sometimes late."""
    # Linux only: elsewhere there is no /proc, and they end when they notice.
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if link.readlink() == data:
                os.kill(int(link.parent.name), signal.SIGKILL)


def release_shared_memory(data: Path) -> None:
    """Remove the System V segment of a postgres that was killed: only such a one leaves its pid file behind."""
    try:
        segment = int((data / "postmaster.pid").read_text("utf-8", "replace").splitlines()[6].split()[1])
    except (OSError, IndexError, ValueError):
        return
    import ctypes  # slow to load, and hardly ever needed

    remove_segment = 0  # IPC_RMID, the same number on Linux and macOS
    ctypes.CDLL(None).shmctl(segment, remove_segment, None)


# ---- the user that the server runs as


def server_account() -> pwd.struct_passwd | None:
    """Whom to run PostgreSQL as, which refuses to be root; None for the user that runs this."""
    if os.geteuid() != 0:
        return None
    # initdb looks its user up by number, so a number alone is not enough.
    known = {entry.pw_name: entry for entry in pwd.getpwall() if entry.pw_uid > 0}
    for name in ("nobody", "postgres", "daemon", *known):
        if name in known:
            return known[name]
    raise NotStartedError("PostgreSQL refuses to run as root, and this machine has no other user to run it as")


def has_access(account: pwd.struct_passwd | None, path: str | Path, mode: int) -> bool:
    if account is None:
        return os.access(path, mode)
    # As that user in a child: the kernel alone knows all that decides (modes of all parents, access lists, mounts).
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            os._exit(0 if os.access(path, mode) else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


# ---- the programs, within that user's reach


def reachable_programs(programs: Path, folder: Path, account: pwd.struct_passwd | None) -> Path:
    """The folder of the programs: as given, or of a copy inside ``folder`` when the server's user cannot get there."""
    if account is None or all(has_access(account, programs / name, os.X_OK) for name in ("initdb", "postgres")):
        return programs
    prefix = programs.parent
    if not any((prefix / share / "postgres.bki").exists() for share in ("share", "share/postgresql")):
        raise NotStartedError(
            f"PostgreSQL refuses to run as root, the user {account.pw_name} may not run the programs in {programs}, "
            "and that installation cannot be copied: install it where every user can run it"
        )
    # The libraries that wheels bring along are found by relative paths: beside the package on Linux, inside on macOS.
    package = prefix.parent
    copy = folder / "programs" / package.name
    for name in ("bin/initdb", "bin/postgres", "lib", "share"):
        copy_tree(prefix / name, copy / prefix.name / name)
    copy_tree(package.with_name(f"{package.name}.libs"), copy.with_name(f"{package.name}.libs"))
    copy_tree(package / ".dylibs", copy / ".dylibs")
    return copy / prefix.name / programs.name


def copy_tree(source: Path, target: Path) -> None:
    """Copy a file or folder for everybody to read, if it exists; what only a compiler needs is left out."""
    if source.is_dir():
        target.mkdir(parents=True)
        for child in source.iterdir():
            if child.suffix != ".a" and child.name not in ("doc", "man", "pgxs", "pkgconfig"):
                copy_tree(child, target / child.name)
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    mode = source.stat().st_mode
    wanted = 0o555 if mode & stat.S_IXUSR else 0o444
    # A link shares its mode with the original, which stays as it is.
    if mode & wanted == wanted and not source.is_symlink():
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    target.chmod(wanted)


if __name__ == "__main__":
    main()
