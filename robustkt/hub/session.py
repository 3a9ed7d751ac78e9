"""Talking to the Hugging Face Hub: one client, retries with back-off, refusals in two lines without a token."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import robustkt
from robustkt.errors import NotFoundError, RobustKTError, UsageError, anonymous, clip

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRIES = 5
LONGEST = 60.0  # seconds that a server may ask us to wait
BUSY = (408, 429, 500, 502, 503, 504)
TOKEN = re.compile(r"hf_\w+|(?i:bearer)\s+\S+")
AGAIN = "Type the same command again: what has arrived is not sent twice."
BAD_TOKEN = "Copy it again into HF_TOKEN, or log in with `hf auth login`."
T = TypeVar("T")


class HubError(RobustKTError):
    """What the Hub, or the way to it, refuses."""


@dataclass(frozen=True)
class Session:
    """The Hub as one account sees it."""

    api: HfApi
    signed_in: bool
    tries: int = TRIES  # of each request

    @classmethod
    def open(cls, *, writing: bool = False, token: str | bool | None = None, tries: int = TRIES) -> Session:
        """A session with a token, by default the user's own if there is one; with none for False.

        Raises:
            UsageError: the token has characters that no token has.
            RobustKTError: `writing` and there is no token.
        """
        from huggingface_hub import HfApi, get_token

        if not isinstance(token, str):
            token = None if token is False else get_token()
        if token and not re.fullmatch(r"[!-~]+", token):  # no HTTP header could carry it
            raise UsageError("the token for the Hub has characters that no token has", BAD_TOKEN)
        if writing and not token:
            raise RobustKTError(
                "there is no token for the Hugging Face Hub",
                "Log in with `hf auth login`, or set HF_TOKEN to a token that may write; or publish with --to DIR.",
            )
        endpoint = os.environ.get("HF_ENDPOINT") or None
        version = robustkt.__version__
        api = HfApi(endpoint=endpoint, token=token or False, library_name="robustkt", library_version=version)
        return cls(api, bool(token), tries)

    @property
    def address(self) -> str:
        """Where the Hub is, to be shown: without a user and password."""
        return anonymous(self.api.endpoint)

    def user(self) -> str:
        """The account's name."""
        found = self.ask(lambda: self.api.whoami(), "your account")
        return str(found["name"])

    def ask(self, call: Callable[[], T], about: str) -> T:
        """What `call` answers; a busy Hub and a dropped connection are tried again after a while.

        Raises:
            RobustKTError: what the Hub refuses, in the words of `refusal`.
        """
        for attempt in range(self.tries):
            try:
                with self.speaking(about):
                    return call()
            except Passing as error:
                if attempt + 1 == self.tries:
                    raise Unreachable(error.what, error.fix) from None
                time.sleep(min(error.wait if error.wait is not None else 2.0**attempt, LONGEST))
        raise AssertionError

    @contextlib.contextmanager
    def speaking(self, about: str) -> Iterator[None]:
        """Turn what the client raises into errors of ours.

        Raises:
            Passing: what may be over in a moment.
            RobustKTError: everything else.
        """
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        transport: type[BaseException] = HfHubHTTPError.__bases__[0]  # of the HTTP library, whichever it is
        try:
            yield
        except HFValidationError:
            raise UsageError(f"'{clip(about, 80)}' is no name of a repository", "Write it as ORG/NAME.") from None
        except OfflineModeIsEnabled:
            what = "the Hub cannot be asked: HF_HUB_OFFLINE is set"
            raise HubError(what, "Unset it, or publish to a folder with --to DIR.") from None
        except HfHubHTTPError as error:
            raise refusal(error, about, signed_in=self.signed_in) from None
        except (transport, ConnectionError, TimeoutError) as error:
            raise Passing(
                f"no connection to the Hub at {self.address}: {scrubbed(error)}",
                f"Check the network (and HTTPS_PROXY, HF_ENDPOINT). {AGAIN}",
            ) from None


class Unreachable(HubError):
    """No answer, however often it was asked."""


class Passing(HubError):
    """What may be over in a moment; `wait` is the seconds that the server asks for."""

    def __init__(self, what: str, fix: str, wait: float | None = None) -> None:
        super().__init__(what, fix)
        self.wait = wait


def refusal(error: object, about: str, *, signed_in: bool) -> RobustKTError:
    """What a refused request means, and what to do about it."""
    from huggingface_hub import errors

    status = int(getattr(getattr(error, "response", None), "status_code", 0))
    said = scrubbed(getattr(error, "server_message", None) or "")
    quoted = f": {said}" if said else ""
    log_in = "Log in with `hf auth login`, or set HF_TOKEN."
    if isinstance(error, errors.GatedRepoError):
        fix = "Ask for access on its page on the Hub" + ("." if signed_in else f", then log in. {log_in}")
        return HubError(f"{about} is gated: its owner lets in whom they choose", fix)
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(
            f"{about} is not there, or no longer", "Look at the branches, tags and commits on its page."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        hidden = "Check its spelling; a private one is shown only to who may read it." + (
            "" if signed_in else f" {log_in}"
        )
        return NotFoundError(f"there is no repository {about} on the Hub, or you may not see it", hidden)
    if isinstance(error, errors.EntryNotFoundError):
        return NotFoundError(f"a file of {about} is missing", "Is it a generation that robustkt has published?")
    if status == 401:
        return HubError("the Hub does not accept the token", "It may be revoked. " + log_in)
    if status in (402, 413) or (status == 403 and re.search(r"quota|storage|limit|exceed", said, re.IGNORECASE)):
        return HubError(f"the Hub has no room left for {about}{quoted}", "Free some storage there, or extend it.")
    if status == 403:
        fix = "Use a token with write access to it (`hf auth login`), another --repo, or --create-pr."
        return HubError(f"you may not do that with {about}{quoted}", fix)
    if status == 409:
        return HubError(f"{about} is in the way{quoted}", "Choose another name.")
    if status == 412:
        return Moved(f"somebody else has changed {about} in the meantime", "Look at it, then type the command again.")
    if status in BUSY:
        what = "asks for fewer requests" if status == 429 else "has trouble"
        return Passing(f"the Hub {what} (HTTP {status}){quoted}", f"Wait a little. {AGAIN}", _wait(error))
    return HubError(f"the Hub refuses {about} (HTTP {status}){quoted}", "Look at its page on the Hub.")


class Moved(HubError):
    """A second writer was there first."""


def scrubbed(said: object) -> str:
    """Foreign words on one short line, without anything that looks like a token or a password."""
    return TOKEN.sub("(token)", clip(anonymous(str(said)), 160))


def _wait(error: object) -> float | None:
    """The seconds that a busy server asks for."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return float(asked) if re.fullmatch(r"[0-9]{1,4}", asked) else None
