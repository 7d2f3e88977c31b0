"""The demand `--max-latency`: how long a request may take, under which load, and whether a load test shows that it holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kernels.load import Load, fewest, load_in_words
from optimizer.engine import Verdict
from optimizer.errors import InputError

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_WORDS = re.compile(rf"(?P<number>{_NUMBER})(?P<unit>us|ms|s)@(?P<quantile>p50|p90|p99)(?:x(?P<clients>[0-9]+)|@(?P<rate>{_NUMBER})/s)?")
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_MOST_CLIENTS = 1024


@dataclass(frozen=True)
class MaxLatency:
    """A quantile of latency (p50, p90 or p99) that must be at most `milliseconds`, while `concurrency` clients ask at once.

    With a `rate` requests arrive at random instead, so many a second on average, and latency counts from their arrival.
    """

    milliseconds: float
    quantile: str
    concurrency: int = 1
    rate: float | None = None

    def __str__(self) -> str:
        load = f" at {self.rate:g} requests/s" if self.rate is not None else f" with {self.concurrency} clients" * (self.concurrency > 1)
        return f"{self.milliseconds:g} ms at {self.quantile}{load}"


def latency_from_words(words: str) -> MaxLatency:
    """`2ms@p99`; `2ms@p99x4` with four clients at once; `2ms@p99@200/s` with 200 requests a second.

    Raises:
        InputError: not such words, or a number of 0.
    """
    found = _WORDS.fullmatch(words.strip())
    if found is None:
        raise InputError(
            f"{words!r} is not a latency.", "Write it like 2ms@p99 (us, ms or s; p50, p90 or p99), 2ms@p99x4, or 2ms@p99@200/s."
        )
    limit, rate = float(found["number"]) * _MILLISECONDS[found["unit"]], found["rate"]
    clients = int(found["clients"] or 1)
    if not limit > 0 or not 0 < clients <= _MOST_CLIENTS or (rate is not None and not float(rate) > 0):
        raise InputError(f"The latency {words!r} can't be held.", f"Give a time and a load above 0, and at most {_MOST_CLIENTS} clients.")
    return MaxLatency(limit, found["quantile"], clients, float(rate) if rate is not None else None)


def held(demand: MaxLatency, load: Load) -> tuple[Verdict, str]:
    """Whether a load test shows that the demand holds, and what it shows, in words; inconclusive where its interval is on both sides."""
    seen = load.quantile(demand.quantile)
    between = f"between {seen.low:.3g} and {'?' if seen.high is None else f'{seen.high:.3g}'} ms"
    shown = f"{demand.quantile} is {seen.milliseconds:.3g} ms, surely {between} ({load_in_words(load)})"
    if seen.high is not None and seen.high <= demand.milliseconds:
        return "pass", f"{shown}: within the {demand} that was demanded"
    if seen.low > demand.milliseconds:
        return "fail", f"{shown}: over the {demand} that was demanded"
    few = f"; requests were slow in rows, or too few: it takes at least {fewest(demand.quantile):,}" if seen.high is None else ""
    return "inconclusive", f"{shown}: whether that holds the {demand} that was demanded is not decided{few}"
