"""When a schedule's ticks are: a cron expression in a time zone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from llmdo.pipelines.usage import UsageError
from llmdo.settings.installing import install_command

# No zone's clock was ever put back further at once.
_OVERLAP = timedelta(hours=3)


class Cron:
    """Ticks as Debian's cron has them, in UTC; five fields, or six with seconds in front.

    Where the clock is put forward, a time that is skipped that day comes right after the gap; where it is put back, a
    time that occurs twice counts the first time. Expressions with a * or */N for minutes or hours follow the clock.
    Raises UsageError.
    """

    def __init__(self, expression: str, timezone: str) -> None:
        problems = []
        self.expression, self.timezone = expression, timezone
        try:
            self.zone = ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):  # a folder of names, where tzdata is installed
            problems.append(
                f"--timezone {timezone!r}: no such time zone here; write UTC or a name such as Europe/Berlin "
                f"(a system without the names gets them by: {install_command('tzdata')})"
            )
            self.zone = ZoneInfo("UTC")
        try:
            if next(self._from(datetime.now(UTC)), None) is None:
                problems.append(f"--cron {expression!r}: there is no such time in the next 50 years")
        except CronSimError as error:
            problems.append(
                f"--cron {expression!r}: {error}; write minute, hour, day of month, month and day of week, as in "
                "'*/15 * * * *'"
            )
        if problems:
            raise UsageError(problems)

    def next(self, after: datetime) -> datetime:
        """The first tick after a moment."""
        return next(tick for tick in self._from(after) if tick > after)

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last tick of the time from ``after``, exclusive, to ``until``, inclusive."""
        # During a repeated hour, ticks of its first occurrence have a later wall clock.
        start = until + (_OVERLAP if until.astimezone(self.zone).fold else timedelta()) + timedelta(seconds=1)
        tick = next((tick for tick in self._from(start, reverse=True) if tick <= until), None)
        return tick if tick is not None and tick > after else None

    def _from(self, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
        for tick in CronSim(self.expression, start.astimezone(self.zone), reverse=reverse):
            yield tick.astimezone(UTC)
