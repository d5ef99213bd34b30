"""Random histories of a deadline: batches that come back early, late or never, and calls whose speed is half known.

Each is played against the policy, on a clock of its own, and compared with what hindsight would have paid.
"""

import math
import random
from dataclasses import dataclass, field
from itertools import pairwise

from llmdo.backends.lanes.cancel_times import CAUTIOUS_S, longest_cancel
from llmdo.backends.lanes.queue_times import QueueTimes
from llmdo.backends.lanes.ready_by import GroupOut, Lane, ReadyBy
from llmdo.backends.limits.call_speed import CallSpeed

BATCH_WINDOW_S = 86_400.0
FACTOR = 0.5
AHEAD, ENOUGH = 100, 200  # every hundredth line is called at once, until this many were measured
WINDOW = 64
PARTS, STEPS = 50, 1000  # of the time until the deadline: of constant speed, and of the clock


def _between(rng, low, high):
    return math.exp(rng.uniform(math.log(low), math.log(high)))


class Service:
    """Calls one by one: as many at once as the window holds, and perhaps a limit, told or found when refused.

    Its speed wavers, and may drop for good.
    """

    def __init__(self, rng, horizon_s):
        self.horizon_s = horizon_s
        self.latency_s = _between(rng, 0.5, 30.0)
        self.limit = _between(rng, 0.5, 100.0) if rng.random() < 0.5 else math.inf
        self.untold_until = 0 if rng.random() < 0.5 else self.limit * rng.choice([1.0, 10.0])
        self.base = min(WINDOW / self.latency_s, self.limit)
        self.noise = random.Random(rng.random())
        drops_after, drop, wavers = rng.uniform(0, 2) * PARTS, rng.uniform(0.75, 1.0), 0.0
        self.parts = []
        for part in range(PARTS + 1):
            wavers = max(-0.2, min(0.2, 0.7 * wavers + rng.gauss(0, 0.08)))
            self.parts.append(math.exp(wavers) * (drop if part > drops_after else 1.0))

    def part(self, now):
        return self.parts[min(PARTS, int(PARTS * now / self.horizon_s))]

    def known(self, answered, now):
        """What an engine knows after this number of answers."""
        told = self.limit if answered >= self.untold_until else math.inf
        if not answered:
            return CallSpeed(20, most_per_s=told)
        latency_s = self.latency_s / self.part(now) * math.exp(self.noise.gauss(0, 0.05))
        return CallSpeed(min(WINDOW, 20 + answered), answered, latency_s, 2 * latency_s, told)

    def seconds(self, lines):
        """What list price needs, from the start on."""
        now, step = 0.0, self.horizon_s / STEPS
        while lines > 0 and now < 2 * self.horizon_s:
            lines -= self.base * self.part(now) * step
            now += step
        return now + self.latency_s


@dataclass
class Batch:
    """When it would come back, from which part of that time on it is worked on, and how long a cancel takes.

    ``stuck``: the part that is answered of one that never comes back.
    """

    lines: int
    queue_s: float
    works_from: float
    stuck: float
    settle_s: float
    out: GroupOut | None = None
    cancelled_at: float = math.inf
    called: bool = False

    def answered(self, waited_s):
        if math.isinf(self.queue_s):
            return self.stuck
        start = self.works_from * self.queue_s
        return max(0.0, min(1.0, (waited_s - start) / max(self.queue_s - start, 1e-9)))

    def cut(self, lines):
        """The first lines, as a batch of their own; the rest stays."""
        self.lines -= lines
        return Batch(lines, self.queue_s, self.works_from, self.stuck, self.settle_s)


@dataclass
class History:
    """What happens is drawn from ``seed``; ``load``: the part of the time that list price needs, at most.

    ``cancels``: how many were measured, of a service whose cancels all take about as long; None: they vary.
    """

    seed: int
    most_load: float = 0.8
    horizon_s: tuple[float, float] = (3600.0, 36 * 3600.0)
    cancels: int | None = None
    batches: list[Batch] = field(default_factory=list)

    def __post_init__(self):
        rng = random.Random(self.seed)
        self.until = _between(rng, *self.horizon_s)
        self.service = Service(rng, self.until)
        self.load = _between(rng, 0.003, self.most_load)
        self.lines = max(1, int(self.load * self.until * self.service.base))
        median, sigma = rng.choice([(300.0, 0.6), (1200.0, 1.0), (1200.0, 1.0), (14400.0, 1.0), (2400.0, 2.5)])

        def queue_s():
            return math.inf if rng.random() < 0.05 else median * math.exp(rng.gauss(0, sigma))

        measured = (queue_s() for _ in range(rng.choice([0, 0, 3, 20])))
        self.measured = tuple(seconds for seconds in measured if seconds < BATCH_WINDOW_S)
        cuts = sorted({0, self.lines, *(rng.randrange(self.lines) for _ in range(rng.choice([0, 0, 1, 2, 7])))})
        for begin, end in pairwise(cuts):
            settle_s = rng.uniform(*rng.choice([(5, 30), (30, CAUTIOUS_S)]))
            stuck = rng.choice([0.0, rng.random()])
            self.batches.append(Batch(end - begin, queue_s(), rng.random(), stuck, settle_s))
        self.cancel_s = CAUTIOUS_S
        if self.cancels is not None:
            about_s = _between(random.Random(f"cancels {self.seed}"), 5.0, 300.0)
            settles = random.Random(f"settles {self.seed}")
            self.cancel_s = longest_cancel([about_s * settles.uniform(0.5, 2.0) for _ in range(self.cancels)])
            for batch in self.batches:
                batch.settle_s = about_s * settles.uniform(0.5, 2.0)
        # What the batches had answered by the deadline at their price, the rest once: no policy can pay less.
        shares = [(one.lines, 1.0 if one.queue_s <= self.until else one.answered(self.until)) for one in self.batches]
        self.hindsight = sum(lines * (share * FACTOR + 1 - share) for lines, share in shares)

    @property
    def possible(self):
        """Whether calls at list price alone, from the start on, would be done in time."""
        return self.service.seconds(self.lines) <= self.until

    def play(self):
        """Sets what was ``paid``, in list prices of a line, and how many seconds too ``late_s`` the last answer was."""
        self.now = self.paid = self.answered = self.in_hand = self.ended = 0.0
        self.deadline, self.out = ReadyBy(self.until, 0.0), []
        self._begin()
        while self.in_hand > 1e-6 or any(not batch.called for batch in self.out):
            self._call(self.until / STEPS)
            self._settle()
            self._move()
            if self.now > 3 * self.until:
                break
        for batch in self.out:  # cancelled, and all its lines were called
            self.paid += batch.out.lines * FACTOR * batch.answered(batch.cancelled_at)
        self.late_s = self.ended - self.until
        return self

    def _begin(self):
        ahead, lane = (
            min(ENOUGH, self.lines // AHEAD),
            Lane("batch", FACTOR, QueueTimes(BATCH_WINDOW_S, self.measured), self.cancel_s),
        )
        if ahead:
            self.now = ahead / self.service.base + self.service.latency_s
            self.answered = self.paid = ahead
        waiting, to_come = list(self.batches), self.lines
        while waiting:
            whole = waiting[0]
            speed = self.service.known(int(self.answered), self.now)
            called = min(ahead, whole.lines)
            ahead -= called
            to_come -= called
            whole.lines -= called
            lines = min(whole.lines, self.deadline.most_lines(self.now, speed))
            to_come -= lines
            others = math.ceil(self.in_hand) + sum(one.out.lines for one in self.out) + to_come
            way = self.deadline.hand_over(self.now, lines, others, int(self.in_hand), [lane], speed) if lines else None
            over = way[1] if way else 0
            self.in_hand += lines - over
            part = whole.cut(lines)
            if over:
                part.out = GroupOut(lane, over, self.now)
                self.out.append(part)
            if not whole.lines:
                waiting.pop(0)

    def _call(self, step):
        called = min(self.in_hand, self.service.base * self.service.part(self.now) * step)
        self.now += step
        self.in_hand -= called
        self.answered += called
        self.paid += called
        if called:
            self.ended = self.now + self.service.latency_s

    def _settle(self):
        for batch in list(self.out):
            waited_s = self.now - batch.out.at
            back = waited_s >= batch.queue_s
            if not back and self.now < batch.cancelled_at + batch.settle_s:
                continue
            share = 1.0 if back else batch.answered(batch.cancelled_at - batch.out.at)
            self.out.remove(batch)
            self.paid += share * batch.out.lines * FACTOR
            if batch.called:  # of its lines, those are taken that no call has begun for
                self.in_hand -= min(self.in_hand, share * batch.out.lines)
            else:
                self.in_hand += (1 - share) * batch.out.lines
            self.ended = max(self.ended, self.now)

    def _move(self):
        open_batches = {id(batch.out): batch for batch in self.out if not batch.called}
        speed = self.service.known(int(self.answered), self.now)
        groups = [batch.out for batch in open_batches.values()]
        moves = self.deadline.moves(self.now, groups, math.ceil(self.in_hand), speed)
        for group in moves.cancel:
            group.cancelled, open_batches[id(group)].cancelled_at = True, self.now
        for group in moves.call:
            open_batches[id(group)].called = True
            self.in_hand += group.lines


def histories(count, **drawn):
    """The first ones that list price alone could make."""
    found, seed = [], 0
    while len(found) < count:
        history = History(seed, **drawn)
        seed += 1
        if history.possible:
            found.append(history)
    return found
