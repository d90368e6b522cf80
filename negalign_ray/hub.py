"""Whether the Hugging Face hub answers, asked before anything is fetched from it.

Its client sends first requests without a deadline: behind a firewall that drops packets they wait for ever. A refused
connection it tries again for 20 s. Here one request is made, once.
"""

import re
import threading

ANSWER_S = 5.0  # for the first answer, which no file comes with
SILENCE_S = 30.0  # within a download; file contents have HF_HUB_DOWNLOAD_TIMEOUT (10 s) of the client's own
HINT = "HF_ENDPOINT names another hub, HTTPS_PROXY a proxy, HF_HUB_OFFLINE=1 asks none"


def why_unreachable() -> str | None:
    """The hub's address and the reason, or None: it answered, whatever it said, or HF_HUB_OFFLINE forbids to ask.

    Proxies are those of the environment. Takes ANSWER_S at most: a slow look-up of the name counts, too. From now on
    requests of this process that set no deadline of their own end after SILENCE_S without a byte.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return None
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=ANSWER_S, follow_redirects=False)
            outcome.append(None)
        except Exception as error:  # the client changes its HTTP library, and so its errors, between versions
            outcome.append(error)

    try:
        _bound(get_session())
    except Exception as error:  # a proxy in the environment that is no URL, or of a kind that is not installed
        return _reason(constants.ENDPOINT, error)
    asking = threading.Thread(target=ask, name="hub", daemon=True)  # the look-up of a name cannot be interrupted
    asking.start()
    asking.join(ANSWER_S)
    if not outcome:
        return _reason(constants.ENDPOINT, TimeoutError(f"no answer within {ANSWER_S:g} s"))
    return None if outcome[0] is None else _reason(constants.ENDPOINT, outcome[0])


def _bound(session) -> None:
    if session.timeout.read is None:  # somebody's own client keeps its own
        session.timeout = SILENCE_S


def _reason(endpoint: str, error: Exception) -> str:
    """One line; a password in the address stays out of it."""
    words = " ".join(str(error).split()) or type(error).__name__
    return f"{_without_password(endpoint)}: {_without_password(words)}; {HINT}"


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)
