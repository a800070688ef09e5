"""SwanLab tracking that cannot stop, slow or leak a run. (rank 0)

Everything SwanLab does happens in one daemon thread: a stalled server never holds up a training step, `finish` waits
for a bounded time, and SwanLab's own handlers do not stay (it installs an excepthook, an atexit hook that waits for
ever on a dead server, and, in the main thread only, a SIGINT handler). Offline is the default; online falls back to
offline when there is no key or no server within 5 s, and says so. All arguments are passed explicitly, and nothing is
collected beyond static hardware facts: no stdout, command line, host name, packages, git remote. What goes wrong is
told once, then the tracker is off. `metrics.jsonl` stays the truth. Works with swanlab 0.8 to 0.10.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import queue
import secrets
import socket
import string
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from wikillm.core.log import say, warn
from wikillm.observe import names
from wikillm.observe.redact import environment_secrets, redact, redact_text
from wikillm.observe.sinks import Sample

Mode = Literal["offline", "online", "local", "disabled"]
_ID_LETTERS = string.ascii_lowercase + string.digits
_CRASHING_VARIABLES = tuple(
    f"SWANLAB_{name}"
    for name in ("PROJECT", "EXPERIMENT", "RUN", "TERMINAL", "INTEGRATION", "CORE", "PROBE")
)
"""A plain string in one of these crashes SwanLab's settings: their names are sections there."""


def new_run_id() -> str:
    """21 lowercase letters and digits, as SwanLab makes them. Keep it: a resumed run continues under its id."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(21))


class SwanLabSink:
    """A `Sink` that writes to SwanLab.

    Args:
        mode: offline writes files that `sync_command` uploads later; online needs SWANLAB_API_KEY; local is for
            `swanlab watch`; disabled does nothing.
        project: letters, digits and `-_+.`; SWANLAB_PROJECT, which crashes SwanLab itself, replaces "wikillm".
        run_id: of the run that goes on; None begins a new one (see `run_id`).
        finish_timeout: seconds that `finish` waits for what is still to be written or sent.
        connect_timeout: seconds for the check whether the server answers at all.
        start_timeout: seconds that `start` waits; if SwanLab takes longer, it goes on in the background.
        monitor: also record hardware load every 10 s (SwanLab's own threads).
    """

    def __init__(
        self,
        *,
        mode: Mode,
        project: str,
        experiment_name: str,
        log_dir: Path,
        workspace: str | None = None,
        run_id: str | None = None,
        finish_timeout: float = 15.0,
        connect_timeout: float = 5.0,
        start_timeout: float = 20.0,
        monitor: bool = False,
    ) -> None:
        self._mode: Mode = mode
        self._project = os.environ.get("SWANLAB_PROJECT", "") if project == "wikillm" else project
        self._project = self._project or project
        self._experiment_name, self._workspace = experiment_name, workspace
        self._log_dir = log_dir
        self._run_id = run_id or new_run_id()
        self._finish_timeout, self._connect_timeout = finish_timeout, connect_timeout
        self._start_timeout, self._monitor = start_timeout, monitor
        self._secrets = environment_secrets()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._started, self._done = threading.Event(), threading.Event()
        self._run: Any = None
        self._folder: Path | None = None
        self._exit: tuple[int, str | None] = (0, None)
        self._is_off = mode == "disabled"
        self._is_finished = False

    @property
    def run_id(self) -> str:
        """The id of the run, known from the beginning: keep it in the run directory and in checkpoints."""
        return self._run_id

    @property
    def mode(self) -> Mode:
        """How the run is tracked now: online may have become offline, and anything may have become disabled."""
        return "disabled" if self._is_off else self._mode

    @property
    def folder(self) -> Path | None:
        """Where SwanLab keeps this segment of the run; None before it has started."""
        return self._folder

    @property
    def sync_command(self) -> str | None:
        """What uploads an offline run. Without --id every upload would become a run of its own."""
        return f"swanlab sync --id {self._run_id} {self._folder}" if self._folder else None

    def start(self, config: Mapping[str, Any]) -> None:
        """Begin or continue the run. Returns after `start_timeout` at the latest; never raises."""
        if self._is_off or self._thread is not None:
            return
        if self._mode == "local" and importlib.util.find_spec("swanboard") is None:
            warn(
                "`swanlab watch` shows a local run only where its dashboard was installed: pip install 'wikillm[dashboard]'"
            )
        clean = redact(config, self._secrets)
        self._thread = threading.Thread(target=self._work, name="wikillm-swanlab", daemon=True)
        self._thread.start()
        self._tasks.put(lambda: self._begin(clean))
        if not self._started.wait(self._start_timeout):
            warn(
                f"SwanLab has not started after {self._start_timeout:g} s; training goes on, it is tried further"
            )
        elif not self._is_off and self._mode == "offline":
            say(f"SwanLab: offline in {self._folder}; upload later with: {self.sync_command}")
        elif not self._is_off:
            say(
                f"SwanLab: {self._mode}, run {self._run_id} in {self._project}, files in {self._folder}"
            )

    def log(self, step: int, values: Mapping[str, float | None], kind: str | None = None) -> None:
        """Queue numbers; steps at or below the last one logged are dropped by SwanLab. Returns at once."""
        numbers = {
            names.chart(name, kind): float(value)
            for name, value in values.items()
            if value is not None
        }
        numbers.pop(names.chart(names.STEP, kind), None)
        self._put(lambda: self._run.log(numbers, step=step))

    def text(self, step: int, samples: Sequence[Sample]) -> None:
        """Queue sample generations, one text per prompt. Returns at once."""
        self._put(lambda: self._log_text(step, samples))

    def finish(self, exit_code: int, error: str | None = None) -> None:
        """Close the run, waiting for `finish_timeout` at most. Safe to call again, and in a handler."""
        if self._is_finished or self._thread is None:
            return
        self._is_finished = True
        self._exit = (exit_code, redact_text(error, self._secrets) if error else None)
        self._tasks.put(self._end)
        self._tasks.put(None)
        is_done = self._done.wait(self._finish_timeout)
        if not is_done and not self._is_off:
            warn(
                f"SwanLab has not finished after {self._finish_timeout:g} s; it is left behind."
                + (f" Upload the rest with: {self.sync_command}" if self._folder else "")
            )
            _forget_pool_threads()
        atexit.unregister(self._finish_at_exit)

    # Below: what runs in the tracker's thread.

    def _put(self, task: Callable[[], None]) -> None:
        if self._thread is not None and not self._is_off and not self._is_finished:
            self._tasks.put(task)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._is_off and task != self._end:
                continue
            try:
                task()
            except BaseException as error:
                self._is_off = True
                reason = redact_text(f"{type(error).__name__}: {error}", self._secrets).splitlines()
                warn(
                    f"SwanLab is off for the rest of this run ({reason[0] if reason else error}); metrics.jsonl goes on"
                )
            finally:
                self._started.set()
        self._done.set()

    def _begin(self, config: Mapping[str, Any]) -> None:
        hook = sys.excepthook
        with _without_crashing_variables():
            import swanlab

            settings = swanlab.Settings()
            if self._mode == "online":
                self._mode = self._online_or_offline(settings)
            _quiet(swanlab)
            quiet_settings = swanlab.Settings(
                interactive=False,
                probe=_section(swanlab.Settings, "Probe", **_PROBE, monitor=self._monitor),
                terminal=_section(swanlab.Settings, "Terminal", proxy_type="none"),
            )
            self._log_dir.mkdir(parents=True, exist_ok=True)
            run = self._run = swanlab.init(
                mode=self._mode,
                project=self._project,
                workspace=self._workspace,
                name=self._experiment_name,
                log_dir=str(self._log_dir),
                id=self._run_id,
                resume="allow",
                config=dict(config),
                settings=quiet_settings,
            )
        if getattr(sys.excepthook, "__self__", None) is run:
            sys.excepthook = hook
        theirs = getattr(run, "_handle_atexit", None)
        if theirs is not None:
            atexit.unregister(theirs)
        atexit.register(self._finish_at_exit)  # after theirs, so that ours runs first
        self._folder = Path(run.dir)

    def _online_or_offline(self, settings: Any) -> Mode:
        """online if there is a key and a server; otherwise say why, and offline."""
        key, host = settings.api_key, str(settings.api_host)
        if not key:
            warn(
                "SwanLab online needs an API key, and there is none: tracking offline. "
                "Set SWANLAB_API_KEY in the environment (never in a configuration), or run `swanlab login`"
            )
            return "offline"
        self._secrets = tuple({*self._secrets, str(key)})
        problem = unreachable(host, self._connect_timeout)
        if problem is None:
            return "online"
        warn(f"SwanLab's server {redact_text(host)} does not answer ({problem}): tracking offline")
        return "offline"

    def _log_text(self, step: int, samples: Sequence[Sample]) -> None:
        import swanlab

        texts = [
            swanlab.Text(f"{sample.prompt}{sample.text}" or " ", caption=sample.prompt)
            for sample in samples
        ]
        if texts:
            self._run.log({"samples": texts}, step=step)

    def _end(self) -> None:
        if self._run is None:
            return
        code, error = self._exit
        if code == 0:
            self._run.finish(state="success")
        elif code == 75:
            self._run.finish(state="aborted", error=error or "stopped on request, resumable")
        else:
            self._run.finish(state="crashed", error=error or f"exit code {code}")

    def _finish_at_exit(self) -> None:
        """Whatever way the process ends, SwanLab gets its time and no more."""
        crash = getattr(sys, "last_value", None)
        self.finish(
            1 if crash is not None else 0,
            f"{type(crash).__name__}: {crash}" if crash is not None else None,
        )


_PROBE = {
    "hardware": True,
    "runtime": False,
    "requirements": False,
    "conda": False,
    "git": False,
    "swanlab": False,
}


def unreachable(url: str, timeout: float) -> str | None:
    """None if a TCP connection to the server (or to the proxy that leads there) opens in time, else why not."""
    parts = urllib.parse.urlsplit(url if "://" in url else f"https://{url}")
    proxy = (
        None
        if urllib.request.proxy_bypass(parts.hostname or "")
        else urllib.request.getproxies().get(parts.scheme)
    )
    if proxy:
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            with socket.create_connection(address, timeout=timeout):
                outcome.append(None)
        except OSError as error:
            outcome.append(str(error))

    # A thread, since the resolver takes no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return outcome[0] if outcome else f"no connection within {timeout:g} s"


@contextlib.contextmanager
def _without_crashing_variables() -> Iterator[None]:
    """Hide the variables that crash SwanLab's settings, while they are read."""
    hidden = {name: os.environ.pop(name) for name in _CRASHING_VARIABLES if name in os.environ}
    others = sorted(hidden.keys() - {"SWANLAB_PROJECT"})
    if others:
        warn(
            f"{', '.join(others)} would crash SwanLab and is ignored; see observe.swanlab.* for what can be set"
        )
    try:
        yield
    finally:
        os.environ.update(hidden)


def _section(settings: Any, name: str, **values: Any) -> Any:
    """A section of SwanLab's settings with those of `values` that this version knows."""
    model = getattr(settings, name)
    return model(**{key: value for key, value in values.items() if key in model.model_fields})


def _quiet(swanlab: Any) -> None:
    """Stop SwanLab printing: its hints leave out --id, and a dead server would print for ever. Best effort."""
    with contextlib.suppress(Exception):
        from swanlab.sdk.internal.pkg import console

        console.c.quiet = True


def _forget_pool_threads() -> None:
    """Let the interpreter exit although an upload of SwanLab's hangs in a thread pool, which it would join."""
    with contextlib.suppress(Exception):
        from concurrent.futures import thread

        pools: Any = thread._threads_queues
        for worker in list(pools):
            frame = sys._current_frames().get(worker.ident or -1)
            while frame is not None:
                if "swanlab" in frame.f_globals.get("__name__", ""):
                    pools.pop(worker, None)
                    break
                frame = frame.f_back
