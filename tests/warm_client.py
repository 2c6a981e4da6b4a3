"""`nanochat ARGUMENTS` in the jobs of a workspace: asks the server whose door is beside this file, and is in its place until the command has ended."""

import json
import os
import signal
import socket
import struct
import sys


def main() -> int:
    """Exit code of the command, negative after a signal."""
    folder = os.path.dirname(__file__)  # noqa: PTH120  # pathlib would take as long as everything else here
    command = [os.path.join(os.path.dirname(sys.executable), "nanochat"), *sys.argv[1:]]  # noqa: PTH118, PTH120
    request = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ), "session": False, "leave": False}  # noqa: PTH109
    content = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.path.join(folder, "door"))  # noqa: PTH118
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _frame: connection.send(bytes([number])))
        socket.send_fds(connection, [struct.pack("=Q", len(content))], [0, 1, 2])
        connection.sendall(content)
        answers = b""
        while len(answers) < 16:  # the process, then how it ended
            more = connection.recv(16 - len(answers))
            if not more:
                sys.exit("the warm server has ended")
            answers += more
    return int(struct.unpack("=qq", answers)[1])


if __name__ == "__main__":
    code = main()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
