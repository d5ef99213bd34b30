"""What becomes of a failure that is not worth waiting for."""

from __future__ import annotations

import time

from llmdo.backends.engine.turns import Turns
from llmdo.backends.errors import LimitReached, ModelError, ModelUnusable, ServiceAway
from llmdo.backends.limits.retry import Retry


def final_error(
    turns: Turns, key: tuple[str, str], error: ModelError, retry: Retry, now: float
) -> ModelUnusable | None:
    """The error of all calls of a provider's model, where one has failed so that no more are to be made; else None.

    Calls that wait get it. So do those that come before the time that the service named; after an outage that outlasted
    the patience, the next call is made at once.
    """
    breaker, name = turns.throttle_of(key).breaker, "/".join(key)
    if retry.asks_too_much(error):
        wait_s = error.retry_after or 0.0
        final: ModelUnusable = LimitReached(
            f"{name} asks to wait for {wait_s:,.0f} s, and --deadline allows {retry.deadline_s:,g}: run the same "
            f"command again then ({error.message})",
            status=error.status,
            code=error.code,
            retry_after=wait_s,
            provider=key[0],
            until=error.until or time.time() + wait_s,
        )
    elif breaker.given_up:
        wait_s = 0.0  # whoever comes may be the one that finds the service back
        final = ServiceAway(
            f"{name} has answered nothing for --patience seconds: see that the service runs at its base URL, then run "
            f"the same command again ({error.message})",
            status=error.status,
            code=error.code,
            provider=key[0],
        )
        breaker.try_once(now)
    else:
        return None
    turns.refuse(key, final, wait_s)
    return final
