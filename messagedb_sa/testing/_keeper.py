"""Run one PostgreSQL server, and stop it when the process that started it ends. Remove it too, unless it is kept.

This is a separate program (``python -I -S _keeper.py JOB``, standard library only), because a process that is killed
cannot clean up after itself. The process that starts it is its owner. JOB is a JSON object: ``owner`` (the owner's
process id), ``programs`` (the folder of initdb and postgres), ``temp`` (the folder to create the server's folder in),
``settings``, ``kept`` (the folder that keeps the data, or null) and ``password`` (null, or the name of an environment
variable with the superuser's password over TCP, which counts when the data is new). The program prints one JSON line:
``{"folder": ...}`` when the server accepts connections, or ``{"error": ...}``. It stops the server if standard input
ends or receives anything, or if its parent process changes.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from typing import Any

# The path of a Unix socket may have 103 bytes on macOS and 107 on Linux. "/messagedb-12345678/.s.PGSQL.65535" has 34.
MAX_TEMP_BYTES = 103 - 34

OWNER_POLL_SECONDS = 0.5
START_POLL_SECONDS = 0.01
# If initdb is killed, the shared memory segment of its postgres is leaked. By itself it ends within a second or so.
INITDB_STOP_SECONDS = 3.0
# After SIGQUIT, postgres itself kills its remaining child processes after 5 seconds.
SERVER_STOP_SECONDS = 10.0
# A server whose data is kept first writes it to disk.
KEPT_STOP_SECONDS = 60.0
REMOVAL_SECONDS = 5.0
MAX_LOG_BYTES = 8_000


class NotStartedError(Exception):
    """The server did not start. The text says why, and includes what the programs printed."""


class Owner:
    """The process that started this one."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        # If the owner ignores or blocks signals, this process has inherited that.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def wants_stop(self, seconds: float) -> bool:
        """True if the owner has ended, or asks to stop the server. Waits for that up to ``seconds``."""
        # Check the parent too: if a forked child of the owner has the pipe open, the pipe does not end with the owner.
        readable = select.select([0], [], [], seconds)[0]
        return bool(readable) or self._signalled or os.getppid() != self._pid


def main() -> None:
    job = json.loads(sys.argv[1])
    os.umask(0o022)
    owner = Owner(job["owner"])
    try:
        account = server_account()
        with server_folder(job["temp"], account) as folder, data_folder(job["kept"], folder, account) as data:
            run_server(owner, folder, data, account, job)
    except (NotStartedError, OSError) as error:
        report(error=str(error))


def report(**content: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(content), flush=True)


def run_server(
    owner: Owner, folder: Path, data: Path, account: pwd.struct_passwd | None, job: Mapping[str, Any]
) -> None:
    """Run a server until the owner ends or asks to stop, or the server ends. Its socket and log are in ``folder``."""
    programs = accessible_programs(Path(job["programs"]), folder, account)
    is_kept = job["kept"] is not None
    with (folder / "log").open("a+b") as log:
        if not (data / "PG_VERSION").exists():
            initialise(owner, folder, data, account, programs, log.fileno(), job["password"], is_kept)
        log.truncate(0)
        postgres: list[str | Path] = [programs / "postgres", "-D", data]
        for name, value in {**job["settings"], "unix_socket_directories": quoted(folder)}.items():
            postgres += ["-c", f"{name}={value}"]
        # SIGINT writes to disk what is kept; SIGQUIT is quicker.
        stop = (signal.SIGINT, KEPT_STOP_SECONDS) if is_kept else (signal.SIGQUIT, SERVER_STOP_SECONDS)
        with running(postgres, log.fileno(), folder, account, *stop) as process:
            while not is_ready(data, process.pid):
                if owner.wants_stop(START_POLL_SECONDS):
                    raise NotStartedError("stopped by its owner while the server was starting")
                if process.poll() is not None:
                    status = process.returncode
                    raise NotStartedError(f"postgres ended with exit status {status}:\n{tail(log.fileno())}")
            report(folder=str(folder))
            while process.poll() is None and not owner.wants_stop(OWNER_POLL_SECONDS):
                pass
        if is_kept:
            # Not if it did not start: then the data may be in use by a server of somebody else.
            clean_up(data)


def initialise(
    owner: Owner,
    folder: Path,
    data: Path,
    account: pwd.struct_passwd | None,
    programs: Path,
    log: int,
    password: str | None,
    is_kept: bool,
) -> None:
    """Make the server's data. If this is interrupted, ``data`` does not exist, and it begins anew next time."""
    # Not in the server's folder, whose users may not enter the one that is kept.
    new = data.with_name("data.new")
    remove_folder(new)
    new.mkdir(mode=0o700)
    give_to(account, new)
    initdb: list[str | Path] = [programs / "initdb", "-D", new, "-U", "postgres", "--auth-local=trust"]
    initdb += ["-E", "UTF8", "--locale=C", *([] if is_kept else ["--no-sync"])]
    if password is None:
        initdb.append("--auth-host=trust")
    else:
        file = folder / "password"
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(os.environ[password])
        give_to(account, file)
        initdb += ["--auth-host=scram-sha-256", f"--pwfile={file}"]
    with running(initdb, log, folder, account, None, INITDB_STOP_SECONDS) as process:
        while process.poll() is None:
            if owner.wants_stop(START_POLL_SECONDS):
                raise NotStartedError("stopped by its owner while initdb was running")
    if process.returncode != 0:
        raise NotStartedError(f"initdb failed with exit status {process.returncode}:\n{tail(log)}")
    new.rename(data)


@contextlib.contextmanager
def running(
    command: list[str | Path],
    log: int,
    folder: Path,
    account: pwd.struct_passwd | None,
    stop_signal: signal.Signals | None,
    stop_seconds: float,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process during the block. Then send ``stop_signal``, and SIGKILL if it runs for ``stop_seconds`` more."""
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
        if stop_signal is not None:
            process.send_signal(stop_signal)
        try:
            process.wait(stop_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment(folder: Path) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    # Without TZ, initdb compares all known time zones with the machine's, which is slow.
    return {"PATH": os.defpath, **inherited, "HOME": str(folder), "LC_ALL": "C", "TZ": "UTC"}


def is_ready(data: Path, pid: int) -> bool:
    try:
        lines = (data / "postmaster.pid").read_text("utf-8", "replace").split()
    except FileNotFoundError:
        return False
    # A server that was killed may have left its file behind.
    return lines[:1] == [str(pid)] and lines[-1] == "ready"


def tail(log: int) -> str:
    size = os.fstat(log).st_size
    return os.pread(log, MAX_LOG_BYTES, max(0, size - MAX_LOG_BYTES)).decode("utf-8", "replace").strip()


def quoted(path: Path) -> str:
    """The path quoted as an item of a list in a server setting."""
    return '"' + str(path).replace('"', '""') + '"'


# ---- the server's folder


@contextlib.contextmanager
def server_folder(temp: str, account: pwd.struct_passwd | None) -> Iterator[Path]:
    """A new folder that belongs to the server's user. It is removed, with its content, after the block."""
    folder = Path(tempfile.mkdtemp(prefix="messagedb-", dir=temp_folder(temp, account)))
    try:
        give_to(account, folder)
        yield folder
    finally:
        remove_folder(folder)


@contextlib.contextmanager
def data_folder(kept: str | None, folder: Path, account: pwd.struct_passwd | None) -> Iterator[Path]:
    """The folder of the server's data: in ``folder``, or in the folder that keeps it, which nobody else may use now."""
    with contextlib.nullcontext(folder) if kept is None else locked(Path(kept), account) as home:
        try:
            yield home / "data"
        finally:
            if kept is None:
                clean_up(home / "data")
            else:
                remove_folder(home / "data.new")


@contextlib.contextmanager
def locked(home: Path, account: pwd.struct_passwd | None) -> Iterator[Path]:
    """A folder that keeps a server's data, locked for this process."""
    home.mkdir(parents=True, exist_ok=True)
    if account is not None and not account_can_access(account, home, os.X_OK):
        raise NotStartedError(
            f"PostgreSQL refuses to run as root, and the user {account.pw_name}, who runs it instead, may not enter "
            f"{home}: choose another folder, such as one in /var/tmp"
        )
    if not (home / "lock").exists() and any(home.iterdir()):
        raise NotStartedError(f"{home} has other files in it: choose a new or an empty folder")
    with (home / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotStartedError(f"another server is running on {home}") from None
        yield home


def give_to(account: pwd.struct_passwd | None, path: Path) -> None:
    if account is not None:
        os.chown(path, account.pw_uid, account.pw_gid)


def temp_folder(temp: str, account: pwd.struct_passwd | None) -> str:
    """The folder for temporary files in which the server's folder, and its socket, can be created."""
    for folder in (temp, "/tmp"):
        # In a client's host parameter, a comma and a colon are separators.
        is_valid_host = len(os.fsencode(folder)) <= MAX_TEMP_BYTES and not {",", ":"} & set(folder)
        if is_valid_host and account_can_access(account, folder, os.X_OK):
            return folder
    raise NotStartedError(
        f"the server's socket cannot be created in {temp} or /tmp: set TMPDIR to a folder that the server's user can "
        f"enter, with a path of at most {MAX_TEMP_BYTES} bytes and without a comma or colon"
    )


def remove_folder(folder: Path) -> None:
    """Remove the folder. Tries again if a process that is just ending still writes files to it."""
    deadline = time.monotonic() + REMOVAL_SECONDS
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            time.sleep(0.05)


def clean_up(data: Path) -> None:
    """Remove what a postgres that was killed has left behind outside of its folder."""
    kill_orphaned_backends(data)
    release_shared_memory(data)


def kill_orphaned_backends(data: Path) -> None:
    """Kill the child processes of a postgres that was killed. They end by themselves too, but sometimes late."""
    # Only on Linux, which has /proc. On other systems they end by themselves.
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if link.readlink() == data:
                os.kill(int(link.parent.name), signal.SIGKILL)


def release_shared_memory(data: Path) -> None:
    """Remove the System V shared memory segment of a postgres that was killed.

    If postgres ended by itself, there is no pid file, and nothing to do.
    """
    try:
        segment = int((data / "postmaster.pid").read_text("utf-8", "replace").splitlines()[6].split()[1])
    except (OSError, IndexError, ValueError):
        return
    import ctypes  # slow to import, and rarely needed

    remove_segment = 0  # IPC_RMID, the same number on Linux and macOS
    ctypes.CDLL(None).shmctl(segment, remove_segment, None)


# ---- the user that the server runs as


def server_account() -> pwd.struct_passwd | None:
    """The user that runs the server, since PostgreSQL refuses to run as root. None for the current user."""
    if os.geteuid() != 0:
        return None
    # initdb looks up its user's name, so the user must have an account: a user id alone is not enough.
    known = {entry.pw_name: entry for entry in pwd.getpwall() if entry.pw_uid > 0}
    for name in ("nobody", "postgres", "daemon", *known):
        if name in known:
            return known[name]
    raise NotStartedError("PostgreSQL refuses to run as root, and this machine has no other user: add one")


def account_can_access(account: pwd.struct_passwd | None, path: str | Path, mode: int) -> bool:
    if account is None:
        return os.access(path, mode)
    # Ask the kernel, as that user in a child process: the modes of all parent folders, access lists and mounts matter.
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


# ---- programs that the server's user can execute


def accessible_programs(programs: Path, folder: Path, account: pwd.struct_passwd | None) -> Path:
    """The folder of the programs. If the server's user cannot execute them, the folder of a copy in ``folder``."""
    if account is None or all(account_can_access(account, programs / name, os.X_OK) for name in ("initdb", "postgres")):
        return programs
    prefix = programs.parent
    if not any((prefix / share / "postgres.bki").exists() for share in ("share", "share/postgresql")):
        raise NotStartedError(
            f"PostgreSQL refuses to run as root, the user {account.pw_name} may not run the programs in {programs}, "
            "and this installation cannot be copied: install it where every user can run it"
        )
    # The programs find a wheel's libraries by relative paths: beside the package on Linux, inside it on macOS.
    package = prefix.parent
    copy = folder / "programs" / package.name
    for name in ("bin/initdb", "bin/postgres", "lib", "share"):
        copy_tree(prefix / name, copy / prefix.name / name)
    copy_tree(package.with_name(f"{package.name}.libs"), copy.with_name(f"{package.name}.libs"))
    copy_tree(package / ".dylibs", copy / ".dylibs")
    return copy / prefix.name / programs.name


def copy_tree(source: Path, target: Path) -> None:
    """Copy a file or folder, if it exists, so that all users can read it. Files for compilers only are left out."""
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
    needed_mode = 0o555 if mode & stat.S_IXUSR else 0o444
    # A hard link has the same mode as the original, whose mode must not be changed.
    if mode & needed_mode == needed_mode and not source.is_symlink():
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    target.chmod(needed_mode)


if __name__ == "__main__":
    main()
