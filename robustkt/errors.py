"""What can go wrong in a way the user can mend: one line of what, one line of what to do."""

from __future__ import annotations

import re


class RobustKTError(Exception):
    """An error the user can fix; the command line prints it without a traceback and exits with `exit_code`.

    `what` says what is wrong, `fix` what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n{self.fix}" if self.fix else self.what


class UsageError(RobustKTError):
    """Options or names that cannot mean anything: exit code 2."""

    exit_code = 2


class NotFoundError(RobustKTError):
    """A generation, file or data set that is not there."""


class IntegrityError(RobustKTError):
    """Stored or foreign bytes that are not what they claim to be."""


class DivergedError(RobustKTError):
    """Training whose loss stopped being a number; the last good state is kept."""


def anonymous(text: str) -> str:
    """`text` with its addresses stripped of user and password."""
    return re.sub(r"://[^/\s'\"]*@", "://", text)


def clip(text: str, width: int = 120) -> str:
    """`text` on one line of at most `width` printable characters, for messages that quote foreign input."""
    flat = "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"
