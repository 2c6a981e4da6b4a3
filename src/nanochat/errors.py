"""Two ways in which a stage ends early on purpose; the command line turns them into exit codes.

Exception
+-- UserError   exit 2    the request cannot be honoured: which key or file, which value, what to do
+-- Stopped     exit 75   stopped before the end with resume state saved: run again to go on (EX_TEMPFAIL)
"""


class UserError(Exception):
    """Bad input. The message is one sentence that names the key or file, its value and the cure."""


class Stopped(Exception):  # noqa: N818  (a state, not an error)
    """The stage stopped before its end (signal or time limit) and has saved what it needs to go on."""
