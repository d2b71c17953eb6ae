"""The program as it is used from a terminal."""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import time

from program import ENVIRONMENT, PATIENCE, PROGRAM


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(PROGRAM, [PROGRAM, *map(str, args)], ENVIRONMENT)
        fcntl.ioctl(self.fd, 0x5414, struct.pack("HHHH", 40, 120, 0, 0))   # TIOCSWINSZ
        self.screen = ""

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def enter(self, keys):
        """Types at the next prompt: what comes before the line editor is there would be the terminal driver's."""
        self.expect("> ")
        self.type(keys)

    def expect(self, pattern):
        """Waits until the output since the last match matches; returns the match."""
        end = time.monotonic() + PATIENCE
        while True:
            match = re.search(pattern, self.screen)
            if match:
                self.screen = self.screen[match.end():]
                return match
            try:
                ready = select.select([self.fd], [], [], max(0, end - time.monotonic()))[0]
                more = os.read(self.fd, 65536) if ready else b""
            except OSError:
                more = b""
            if not more:
                raise AssertionError(f"{pattern!r} did not come; the screen has {self.screen!r}")
            self.screen += more.decode(errors="replace")

    def leave(self):
        """The exit code."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if select.select([self.fd], [], [], 0.02)[0]:
                    os.read(self.fd, 65536)
            except OSError:
                time.sleep(0.02)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("it did not leave")
