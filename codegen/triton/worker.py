"""Worker processes that answer requests one at a time: for compiling in parallel and for Triton's interpreter.

A worker is `python -m MODULE` in a fresh process. Unlike multiprocessing it never imports the caller's main module
again, so that `ringc` works from scripts without an `if __name__` guard, and its environment is its own: Triton decides
once, when it's imported, between interpreter and compiler. Requests and answers are JSON texts with a length in front,
over the worker's standard input and output; whatever else the worker prints goes to its log.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import ringc
from ringc.errors import RingcError, ToolchainError

_LENGTH = 8
_LOG_TAIL = 2000


class WorkerProcess:
    """One worker; started by the first request, and again by the first request after its death.

    Args:
        module: what `python -m` runs; it calls `serve`.
        environment: variables to set, or to remove where the value is None, on top of this process's own.
        what: names the worker in messages, as in "the compiler process".
    """

    def __init__(self, module: str, *, environment: Mapping[str, str | None], what: str) -> None:
        self._module = module
        self._environment = environment
        self._what = what
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The running process's id; None when none runs."""
        return self._process.pid if self._process is not None else None

    def request(self, message: Mapping[str, object], *, doing: str, timeout: float | None = None) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            message: must be JSON.
            doing: what the worker is asked to do, for messages, as in "compiling rms_norm".
            timeout: seconds to wait; the worker is ended when they have passed.

        Raises:
            ToolchainError: the worker died or took too long. The next request starts a new one.
        """
        process = self._start()
        assert process.stdin is not None and process.stdout is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            _write_frame(process.stdin, message)
            answer = _read_frame(process.stdout, deadline)
        except TimeoutError as error:
            self.close()
            raise ToolchainError(f"{self._what} was ended after {timeout:g} s of {doing}") from error
        except BrokenPipeError:
            answer = None
        except BaseException:
            # Interrupted in the middle of an exchange: the next answer would belong to this request.
            self.close()
            raise
        if answer is None:
            raise self._death(process, doing)
        return answer

    def close(self) -> None:
        """End the worker. It may be used again: the next request starts a new one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        if self._log is not None:
            self._log.close()
            self._log = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        environment = dict(os.environ)
        for name, value in self._environment.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        # The worker must find this same ringc, wherever it was imported from and whatever folder is the current one.
        assert ringc.__file__ is not None
        root = str(Path(ringc.__file__).parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
            )
        except OSError as error:
            raise ToolchainError(f"can't start {self._what}: {error}") from error
        return self._process

    def _death(self, process: subprocess.Popen[bytes], doing: str) -> ToolchainError:
        if self._process is not process or self._log is None:
            return ToolchainError(f"{self._what} was ended while {doing}")
        code = process.wait()
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - _LOG_TAIL))
        said = self._log.read().decode(errors="replace").strip()
        self.close()
        how = f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        message = f"{self._what} died ({how}) while {doing}"
        return ToolchainError(f"{message}; its last words:\n{said}" if said else message)


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests from standard input until it closes: the body of a worker's module.

    An exception of `handle` becomes the answer `{"error": {"kind", "message", "place", "help", "traceback"}}`; otherwise the answer is
    `{"result": handle(request)}`.
    """
    # Libraries print to standard output; the pipe moves elsewhere, and they print to the log.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while (request := _read_frame(sys.stdin.buffer, None)) is not None:
        _write_frame(answers, _answer(handle, request))


def _answer(handle: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": handle(request)}
    except RingcError as error:
        place = None if error.place is None else str(error.place.file)
        told = {"message": error.message, "place": place, "help": error.help}
        return {"error": {"kind": type(error).__name__, **told, "traceback": ""}}
    # This is the boundary of a process: whatever a kernel file or a compiler raises must reach the caller, as text.
    except Exception as error:  # noqa: BLE001
        line = f"{type(error).__name__}: {error}"
        return {
            "error": {
                "kind": "other",
                "message": line,
                "place": None,
                "help": None,
                "traceback": traceback.format_exc(),
            }
        }


def _write_frame(stream: IO[bytes], message: Mapping[str, object]) -> None:
    body = json.dumps(message).encode()
    stream.write(len(body).to_bytes(_LENGTH, "little") + body)
    stream.flush()


def _read_frame(stream: IO[bytes], deadline: float | None) -> dict[str, Any] | None:
    head = _read_exactly(stream, _LENGTH, deadline)
    body = None if head is None else _read_exactly(stream, int.from_bytes(head, "little"), deadline)
    return None if body is None else json.loads(body)


def _read_exactly(stream: IO[bytes], count: int, deadline: float | None) -> bytes | None:
    """`count` bytes, or None where the stream ends before. Python's buffer is left out, or select would not see it."""
    parts: list[bytes] = []
    while count:
        if deadline is not None:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([stream], [], [], left)[0]:
                raise TimeoutError
        part = os.read(stream.fileno(), min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
