"""SwanLab tracking that never stops or delays a run, and uploads no secrets. (rank 0)

All of SwanLab runs in one daemon thread: a stalled server never blocks a training step, and
`finish` waits for a limited time. SwanLab's excepthook and its atexit hook, which waits forever for
a dead server, are removed. (SwanLab sets its SIGINT handler in the main thread only.) The default
mode is offline. The mode online falls back to offline, with a warning, without a key or if no
server answers within 5 s. All arguments are explicit, and only static properties of the hardware
are collected: no stdout, command line, host name, packages or git remote. An error is logged once
and turns the tracker off; `metrics.jsonl` continues. Works with swanlab 0.10.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import queue
import secrets
import shlex
import socket
import string
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from wikillm.config.schema import SwanLabSection
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
"""Variables that crash SwanLab if they hold a plain string: its settings have sections so named."""
_CONNECT_SECONDS = 5.0
"""Limit of the check whether the server answers at all."""


def new_run_id() -> str:
    """21 lowercase letters and digits, as SwanLab makes them. A resumed run keeps its id."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(21))


class SwanLabSink:
    """A `Sink` that writes to SwanLab.

    Args:
        run_name: name of the experiment, unless the settings give a name.
        run_dir: folder for SwanLab's files, unless the settings give a folder.
        run_id: id of the run to resume; None begins a new run.
        start_timeout: seconds that `start` waits; SwanLab then starts in the background.

    Attributes:
        run_id: id of the run; the caller stores it in the run directory and in checkpoints.
        folder: where SwanLab keeps this segment of the run; None until SwanLab has started.
    """

    def __init__(
        self,
        settings: SwanLabSection,
        *,
        run_name: str,
        run_dir: Path,
        run_id: str | None = None,
        start_timeout: float = 20.0,
    ) -> None:
        self._settings = settings
        self._mode: Mode = settings.mode
        # SWANLAB_PROJECT, which crashes SwanLab itself, replaces the default.
        is_default = settings.project == "wikillm"
        named = os.environ.get("SWANLAB_PROJECT") if is_default else None
        self._project = named or settings.project
        self._experiment_name = settings.experiment_name or run_name
        self._report = run_dir / "report.html"
        self._log_dir = Path(settings.log_dir) if settings.log_dir else run_dir / "swanlog"
        self.run_id = run_id or new_run_id()
        self._finish_timeout = settings.finish_timeout_seconds
        self._start_timeout = start_timeout
        self._secrets = environment_secrets()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._done = threading.Event()
        self._run: Any = None
        self.folder: Path | None = None
        self._exit: tuple[int, str | None] = (0, None)
        self._is_off = settings.mode == "disabled"
        self._is_finished = False

    @property
    def mode(self) -> Mode:
        """The current mode: online may have fallen back to offline, and an error disables."""
        return "disabled" if self._is_off else self._mode

    @property
    def sync_command(self) -> str | None:
        """The command that uploads an offline run. Without --id each upload is a separate run."""
        if self.folder is None:
            return None
        return f"swanlab sync --id {self.run_id} {shlex.quote(str(self.folder))}"

    def start(self, config: Mapping[str, Any]) -> None:
        """Begin or resume the run. Returns within `start_timeout`; never raises."""
        if self._is_off or self._thread is not None:
            return
        if self._mode == "local":
            # SwanLab itself refuses a local run without exactly this board.
            tell = say if importlib.util.find_spec("swanboard") else warn
            tell(
                "SwanLab's local board is no longer maintained: it needs swanlab 0.10 with "
                "swanboard 0.1.10b2 (pip install 'wikillm[dashboard]'); "
                f"{self._report} shows the run without it"
            )
        clean = redact(config, self._secrets)
        self._thread = threading.Thread(target=self._work, name="wikillm-swanlab", daemon=True)
        self._thread.start()
        self._tasks.put(lambda: self._begin(clean))
        if not self._started.wait(self._start_timeout):
            warn(
                f"SwanLab has not started after {self._start_timeout:g} s; "
                "training starts, SwanLab keeps trying"
            )
        elif not self._is_off and self._mode == "offline":
            say(f"SwanLab: offline in {self.folder}; upload later with: {self.sync_command}")
        elif not self._is_off:
            run = f"run {self.run_id} in {self._project}"
            say(f"SwanLab: {self._mode}, {run}, files in {self.folder}")

    def log(self, step: int, values: Mapping[str, float | None], kind: str | None = None) -> None:
        """Queue numbers; SwanLab drops steps up to the last one logged. Returns at once."""
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
        """Close the run within `finish_timeout`. Safe to call again, and in a signal handler."""
        if self._is_finished or self._thread is None:
            return
        self._is_finished = True
        self._exit = (exit_code, redact_text(error, self._secrets) if error else None)
        self._tasks.put(self._end)
        self._tasks.put(None)
        is_done = self._done.wait(self._finish_timeout)
        if not is_done and not self._is_off:
            rest = f" Upload the rest with: {self.sync_command}" if self.folder else ""
            warn(
                f"SwanLab has not finished after {self._finish_timeout:g} s; it is abandoned.{rest}"
            )
            _forget_pool_threads()
        atexit.unregister(self._finish_at_exit)

    # Below: code that runs in the tracker's thread.

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
                    f"SwanLab is off for the rest of this run ({reason[0] if reason else error}); "
                    "metrics.jsonl continues"
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
                probe=_section(swanlab.Settings, "Probe", **self._probes()),
                terminal=_section(swanlab.Settings, "Terminal", proxy_type="none"),
            )
            self._log_dir.mkdir(parents=True, exist_ok=True)
            run = self._run = swanlab.init(
                mode=self._mode,
                project=self._project,
                workspace=self._settings.workspace,
                name=self._experiment_name,
                log_dir=str(self._log_dir),
                id=self.run_id,
                resume="allow",
                config=dict(config),
                settings=quiet_settings,
            )
        if getattr(sys.excepthook, "__self__", None) is run:
            sys.excepthook = hook
        swanlab_hook = getattr(run, "_handle_atexit", None)
        if swanlab_hook is not None:
            atexit.unregister(swanlab_hook)
        atexit.register(self._finish_at_exit)  # registered after SwanLab's hooks, so runs first
        self.folder = Path(run.dir)

    def _probes(self) -> dict[str, Any]:
        """SwanLab's own probes: properties of the hardware, and readings of it if configured."""
        seconds = self._settings.hardware_seconds
        readings = {"monitor": True, "monitor_interval": seconds} if seconds else {}
        return {"hardware": True, **_NO_PROBES, **readings}

    def _online_or_offline(self, settings: Any) -> Mode:
        """`online` with a key and a reachable server, else `offline` with a warning."""
        key = settings.api_key
        host = str(settings.api_host)
        if not key:
            warn(
                "SwanLab online needs an API key, and there is none: tracking offline. "
                "Set SWANLAB_API_KEY in the environment (never in a configuration), "
                "or run `swanlab login`"
            )
            return "offline"
        self._secrets = tuple({*self._secrets, str(key)})
        problem = unreachable(host, _CONNECT_SECONDS)
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
        """Close the run within `finish_timeout` when the interpreter exits."""
        crash = getattr(sys, "last_value", None)
        if crash is None:
            self.finish(0)
        else:
            self.finish(1, f"{type(crash).__name__}: {crash}")


_NO_PROBES = dict.fromkeys(("runtime", "requirements", "conda", "git", "swanlab", "monitor"), False)


def unreachable(url: str, timeout: float) -> str | None:
    """Why no TCP connection to the server or its proxy opens in time; None if one opens."""
    parts = urllib.parse.urlsplit(url if "://" in url else f"https://{url}")
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            with socket.create_connection(address, timeout=timeout):
                outcome.append(None)
        except OSError as error:
            outcome.append(str(error))

    # Connect in a thread, because the resolver has no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return outcome[0] if outcome else f"no connection within {timeout:g} s"


@contextlib.contextmanager
def _without_crashing_variables() -> Iterator[None]:
    """Hide the variables that crash SwanLab's settings, while the settings are read."""
    hidden = {name: os.environ.pop(name) for name in _CRASHING_VARIABLES if name in os.environ}
    others = sorted(hidden.keys() - {"SWANLAB_PROJECT"})
    if others:
        warn(
            f"{', '.join(others)} would crash SwanLab and is ignored; "
            "set the keys observe.swanlab.* instead"
        )
    try:
        yield
    finally:
        os.environ.update(hidden)


def _section(settings: Any, name: str, **values: Any) -> Any:
    """A section of SwanLab's settings with the `values` that this version of SwanLab knows."""
    model = getattr(settings, name)
    return model(**{key: value for key, value in values.items() if key in model.model_fields})


def _quiet(swanlab: Any) -> None:
    """Silence SwanLab: its hints lack --id, and with a dead server it prints without end."""
    with contextlib.suppress(Exception):
        from swanlab.sdk.internal.pkg import console

        console.c.quiet = True


def _forget_pool_threads() -> None:
    """Let the interpreter exit without joining SwanLab's thread pools, where an upload may hang."""
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
