"""The acceptance test: a mix of requests at a steady rate, or a burst; the exit status is the verdict.

    EDGEPROFILE_KEY=sk_live_… locust -f loadtest/locustfile.py --headless [--burst] [--host http://127.0.0.1:8000]

The plan says when each request is due: the n-th of them n / rate after the first. Any user who is free takes the next
place in it, so the rate does not depend on how fast the service answers, as it would if each user kept a pace of their
own. Times count from the planned moment, in Locust's table too: if the service stands still for a second, all that
should have been sent meanwhile is late, and seen to be.

The burst keeps to exactly the key's burst rate until the first 429. The bucket `peak` refills at that very rate, and
nothing is sent before its time, so it stays full but for what this program has to make up for (see Burst). One process
on one core sends a good deal more than 1,000 requests a second.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import gevent  # type: ignore[import-untyped]
import locust
from acceptance import Answer, Burst, Run, Steady, lasts_s, profile_number, zipf_rank
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopUser
from locust.runners import LocalRunner

from edgeprofile.limiter import policy

HOST: Final = "http://127.0.0.1:8000"
USERS: Final = 50
RUN_TIME_S: Final = 60
BATCH: Final = 10
# How many of the most popular profiles are asked for their email before the test.
EMAILS: Final = 50
TIMEOUT_S: Final = 10.0


# --- what is asked -------------------------------------------------------------------------------------------------


class Known:
    """The profiles that there are, as far as one needs to know them to ask."""

    def __init__(self, first_id: int, count: int) -> None:
        self._first_id = first_id
        self._count = count
        self.emails: list[str] = []

    def of_rank(self, rank: int) -> str:
        return str(self._first_id + profile_number(rank, self._count))

    def id(self) -> str:
        """Some profile's id; few are popular, most are rare."""
        return self.of_rank(zipf_rank(random.random(), self._count))

    def email(self) -> str:
        return self.emails[zipf_rank(random.random(), len(self.emails)) - 1]


class Ask(NamedTuple):
    """A request, the status that should come, and what the body must then look like."""

    path: str
    is_right: Callable[[bytes], bool]
    status: int = 200
    body: str | None = None


def whole(known: Known) -> Ask:
    profile_id = known.id()
    return Ask(f"/v1/profiles/id/{profile_id}", lambda body: f'"{profile_id}"'.encode() in body)


def sections(known: Known) -> Ask:
    return Ask(f"/v1/profiles/id/{known.id()}?fields=attributes,audiences", lambda body: b'"_audiences":{' in body)


def single_fields(known: Known) -> Ask:
    path = f"/v1/profiles/id/{known.id()}?fields=attributes.first_name,metrics,audiences.churn_risk"
    return Ask(path, lambda body: b'"churn_risk":' in body)


def by_email(known: Known) -> Ask:
    email = known.email()
    path = f"/v1/profiles/identifier/email/{quote(email, safe='')}"
    return Ask(path, lambda body: json.dumps(email, ensure_ascii=False).encode() in body)


def nobody(_: Known) -> Ask:
    path = f"/v1/profiles/id/nobody-{random.randrange(10**6)}"
    return Ask(path, lambda body: b'"profile_not_found"' in body, 404)


def batch(known: Known) -> Ask:
    asked = {"profiles": [{"id": known.id()} for _ in range(BATCH)], "fields": ["audiences"]}
    return Ask("/v1/profiles/lookup", lambda body: body.count(b'"_audiences":') == BATCH, body=json.dumps(asked))


class Surface(NamedTuple):
    """`weight` of a hundred requests are such; each costs `tokens`. Locust's --tags and --exclude-tags choose some."""

    tag: str
    name: str
    weight: int
    ask: Callable[[Known], Ask]
    tokens: int = 1


# A new surface is a line here and a function above.
SURFACES: Final = (
    Surface("whole", "by id, whole", 45, whole),
    Surface("sections", "by id, sections", 20, sections),
    Surface("fields", "by id, single fields", 10, single_fields),
    Surface("email", "by email, whole", 20, by_email),
    Surface("unknown", "an unknown id", 4, nobody),
    Surface("batch", f"a batch of {BATCH}", 1, batch, tokens=BATCH),
)


# --- who asks ------------------------------------------------------------------------------------------------------


class Test:
    """The run that goes on, and what its users share."""

    known: Known
    new_run: Callable[[], Run]
    run: Run
    slots: Iterator[float]
    is_ending = False
    ended_at: float | None = None

    def begin(self) -> None:
        self.run = self.new_run()
        self.slots = self.run.slots(time.perf_counter())
        self.is_ending = False
        self.ended_at = None

    def end(self) -> None:
        self.ended_at = self.ended_at or time.perf_counter()


TEST: Final = Test()


def task_of(surface: Surface) -> Callable[[Caller], None]:
    def ask(user: Caller) -> None:
        user.ask(surface)

    ask.__name__ = surface.tag
    return locust.tag(surface.tag)(ask)


class Caller(locust.FastHttpUser):
    """Takes the next place in the plan, waits until it is due, and asks."""

    host = HOST
    due = 0.0
    tasks = {task_of(surface): surface.weight for surface in SURFACES}  # type: ignore[assignment]  # noqa: RUF012
    # The key goes only to whom the certificate names.
    insecure = False
    connection_timeout = network_timeout = TIMEOUT_S

    def on_start(self) -> None:
        self.wait()  # type: ignore[no-untyped-call]

    def wait_time(self) -> float:
        due = next(TEST.slots, None)
        if due is None:
            # Not from here, because quitting ends this greenlet too.
            if not TEST.is_ending:
                TEST.is_ending = True
                gevent.spawn(leave, self.environment)
            raise StopUser
        self.due = due
        return max(0.0, due - time.perf_counter())

    def ask(self, surface: Surface) -> None:
        if TEST.run.tokens_at_once:
            for _ in range(surface.tokens - 1):
                next(TEST.slots, None)
        ask = surface.ask(TEST.known)
        headers = None if ask.body is None else {"Content-Type": "application/json"}
        method = "GET" if ask.body is None else "POST"
        sent = time.perf_counter()
        with self.client.request(
            method, ask.path, name=surface.name, data=ask.body, headers=headers, catch_response=True
        ) as response:
            got = time.perf_counter()
            response.request_meta["response_time"] = (got - self.due) * 1e3
            right = response.status_code == ask.status and ask.is_right(response.content or b"")
            retry_after = (response.headers or {}).get("retry-after", "")
            retry_after_s = int(retry_after) if retry_after.isdecimal() else 0
            if right:
                response.success()
            elif response.status_code == 429 and TEST.run.tokens_at_once and retry_after_s:
                response.request_meta["name"] = "over the limit: 429, with Retry-After"
                response.success()
            else:
                response.failure(complaint(response))
        TEST.run.record(Answer(self.due, sent, got, surface.tokens, response.status_code, right, retry_after_s))


def complaint(response: Any) -> str:
    """What was wrong with an answer; never a value, an id or a key of it."""
    if not response.status_code:
        return f"no answer: {type(response.error).__name__}"
    return "429, rate limited" if response.status_code == 429 else f"a wrong answer, of status {response.status_code}"


def leave(environment: Environment) -> None:
    """Ends the test when its last requests are answered, and Locust as well, unless a browser watches it."""
    assert environment.runner is not None
    environment.runner.user_greenlets.join(TIMEOUT_S)
    if environment.parsed_options is not None and environment.parsed_options.headless:
        environment.runner.quit()
    else:
        environment.runner.stop()


# --- before and after ----------------------------------------------------------------------------------------------


def add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "edgeprofile", f"The key is read from EDGEPROFILE_KEY. By default, {USERS} users ask {HOST} for {RUN_TIME_S} s."
    )
    group.add_argument("--burst", action="store_true", help="the most that the key may send, until the first 429")
    group.add_argument("--rate", type=float, default=500, help="requests a second, steadily")
    group.add_argument("--p99-ms", type=float, default=30, help="the most that p99 may be")
    group.add_argument("--first-id", type=int, default=12_345, help="the id of the first profile")
    group.add_argument("--profiles", type=int, default=5_000, help="how many profiles there are from this id on")
    group.add_argument("--key-rate", type=float, default=500, help="the key's limit `rate`")
    group.add_argument("--key-burst-rate", type=float, default=1_000, help="the key's limit `burst_rate`")
    group.add_argument("--key-burst-seconds", type=float, default=120, help="the key's limit `burst_seconds`")


def prepare(environment: Environment) -> None:
    """Looks whether all is there that the test needs, and says so, before it begins."""
    options: Any = environment.parsed_options
    if not isinstance(environment.runner, LocalRunner):
        sys.exit("this test runs in one process: leave out --processes, --master and --worker")
    key = os.environ.get("EDGEPROFILE_KEY", "").strip()
    if not key:
        sys.exit("EDGEPROFILE_KEY is not set: `edgeprofile demo` prints a key, `edgeprofile keys create` makes one")
    options.num_users = options.num_users or USERS
    # All at once: the plan, and not their number, makes the rate.
    options.spawn_rate = options.spawn_rate or options.num_users
    Caller.default_headers = {"Authorization": f"Bearer {key}"}
    TEST.known = Known(options.first_id, options.profiles)
    chosen = chosen_surfaces(options)
    TEST.new_run = choose_run(options, chosen)
    learn_emails(environment.host or HOST)
    if not TEST.known.emails and by_email in {one.ask for one in chosen}:
        sys.exit("no profile has an email: leave such lookups out by --exclude-tags email")
    # A burst begins with a full bucket: what this has taken must flow back.
    time.sleep(EMAILS / options.key_rate)


def chosen_surfaces(options: Any) -> list[Surface]:
    """What Locust leaves of the table under its options for tags."""
    tags, left_out = set(options.tags or ()), set(options.exclude_tags or ())
    chosen = [one for one in SURFACES if (not tags or one.tag in tags) and one.tag not in left_out]
    return chosen or sys.exit(f"no surface is left; their tags are {', '.join(one.tag for one in SURFACES)}")


def choose_run(options: Any, chosen: list[Surface]) -> Callable[[], Run]:
    """The run that the options mean, and its length. Exits where it could not pass."""
    if options.profiles < 1 or options.rate <= 0:
        sys.exit("--profiles and --rate take numbers above 0")
    try:
        limits = policy(options.key_rate, options.key_burst_rate, options.key_burst_seconds)
        if options.burst:
            burst = Burst(limits, options.key_burst_rate)
            options.run_time = burst.seconds_max
            return lambda: Burst(limits, options.key_burst_rate)
    except ValueError as error:
        sys.exit(f"the key's limits: {error}")
    options.run_time = options.run_time or RUN_TIME_S
    tokens = options.rate * sum(one.weight * one.tokens for one in chosen) / sum(one.weight for one in chosen)
    if lasts_s(limits, tokens) < options.run_time:
        sys.exit(
            f"{options.rate:g} requests a second of this mix take {tokens:.0f} tokens a second, which a rested key "
            f"carries for {lasts_s(limits, tokens):.0f} s: shorten --run-time, leave out batches by --exclude-tags "
            "batch, or use a key with a higher --rate and say so by --key-rate"
        )
    return lambda: Steady(options.rate, options.p99_ms)


def learn_emails(host: str) -> None:
    """Asks the most popular profiles for their emails, and thereby whether service, key and ids are good."""
    unseen = EventHook()  # type: ignore[no-untyped-call]
    session = FastHttpSession(
        host, unseen, None, insecure=False, network_timeout=TIMEOUT_S, headers=Caller.default_headers
    )
    for rank in range(1, EMAILS + 1):
        answer = session.get(f"/v1/profiles/id/{TEST.known.of_rank(rank)}")
        if answer.status_code != 200:
            sys.exit(refusal(host, answer.status_code))
        if email := answer.json().get("email"):
            TEST.known.emails.append(email)


def refusal(host: str, status: int) -> str:
    reasons = {
        0: f"nothing answers at {host}: start the service, or name it by --host",
        401: "the service refuses the key in EDGEPROFILE_KEY",
        403: "the key in EDGEPROFILE_KEY lacks the scope `read`",
        404: "a profile is not there: let --first-id and --profiles say which ids there are",
        429: "the key is over its limit already: let it rest for two minutes",
        503: "the service has nothing loaded yet",
    }
    return reasons.get(status, f"the service answers {status}")


def judge(environment: Environment) -> None:
    """Sets the exit status; says why only in the last lines, below Locust's tables."""
    if not hasattr(TEST, "run"):
        environment.process_exit_code = 1
        return
    TEST.end()
    assert TEST.ended_at is not None
    facts, problems = TEST.run.verdict(TEST.ended_at)
    if problems:
        environment.process_exit_code = 1
    lines = [facts, *(f"NOT ACCEPTED: {problem}" for problem in problems)]
    lines += [] if problems else ["accepted"]
    hooks.quit.add_listener(lambda exit_code: print(*lines, sep="\n", file=sys.stderr))


# As `Any`, because Locust declares no types for these.
hooks: Any = locust.events
hooks.init_command_line_parser.add_listener(add_options)
hooks.init.add_listener(lambda environment, **_: prepare(environment))
hooks.test_start.add_listener(lambda **_: TEST.begin())
hooks.test_stopping.add_listener(lambda **_: TEST.end())
hooks.quitting.add_listener(lambda environment, **_: judge(environment))
