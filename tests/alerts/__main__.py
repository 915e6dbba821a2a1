"""`python -m tests.alerts`: a platform that is well brings no alert, and the fault of each alert brings it.

The rules are the shipped ones with their times divided by `PERDURE_ALERTS_FACTOR` (12): `tests/alerts/rules.py`.
`PERDURE_ALERTS_ONLY` names alerts whose waves are enough. Needs Debian's package `prometheus`. Ends with 1 when an
alert does not fire, or one fires on a platform that is well.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress

from ruamel.yaml import YAML

from tests.alerts.faults import WAVES, Fault, made
from tests.alerts.rules import shorten
from tests.alerts.stand import Stand, stand
from tests.docs import ROOT

RULES = ROOT / "deploy" / "prometheus" / "rules" / "perdure.yml"
WELL = 30.0  # seconds for which nothing fires
PATIENCE = 180.0  # seconds for an alert to fire, and for all to be quiet again


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 -- it is a command


async def quiet(on: Stand) -> bool:
    """Wait until nobody is down and no alert is pending or firing; whether that came."""
    await on.refresh()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        left = sorted({each["labels"]["alertname"] for each in await on.prometheus.alerts("pending", "firing")})
        if not left and not await on.prometheus.down():
            return True
        await asyncio.sleep(1)
    say(f"  not quiet: {', '.join(left)}; down: {', '.join(await on.prometheus.down())}")
    return False


async def well(on: Stand) -> list[str]:
    """The alerts that fire although all is well."""
    fired: set[str] = set()
    deadline = time.monotonic() + WELL
    while time.monotonic() < deadline:
        fired |= {str(each["labels"]) for each in await on.prometheus.alerts("firing")}
        await asyncio.sleep(1)
    return sorted(fired)


async def fires(on: Stand, alert: str, labels: dict[str, str]) -> float | None:
    """Seconds until `alert` fires with these labels; None when it does not."""
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE:
        for each in await on.prometheus.alerts("firing"):
            if {**each["labels"], **labels, "alertname": alert} == each["labels"]:
                assert "{{" not in str(each["annotations"]), each
                return time.monotonic() - begun
        await asyncio.sleep(0.5)
    return None


async def wave(on: Stand, faults: tuple[Fault, ...]) -> list[tuple[str, str, float | None]]:
    """(alert, fault, seconds until it fired) of each."""
    wanted = [(alert, fault.name, labels) for fault in faults for alert, labels in fault.alerts.items()]
    say(f"  {'; '.join(fault.name for fault in faults)}")
    async with made(on, faults):
        took = await asyncio.gather(*(fires(on, alert, labels) for alert, _, labels in wanted))
    for (alert, name, _), seconds in zip(wanted, took, strict=True):
        say(f"  {alert}: {'did NOT fire' if seconds is None else f'fired after {seconds:.0f} s'} ({name})")
    return [(alert, name, seconds) for (alert, name, _), seconds in zip(wanted, took, strict=True)]


async def main() -> int:
    """Run all of it; the exit code."""
    factor = float(os.environ.get("PERDURE_ALERTS_FACTOR", "12"))
    only = set(os.environ.get("PERDURE_ALERTS_ONLY", "").replace(",", " ").split())
    shipped = RULES.read_text()
    named = {rule["alert"] for rule in YAML(typ="safe").load(shipped)["groups"][0]["rules"]}
    rows: list[tuple[str, str, float | None]] = []
    wrong: list[str] = []
    waves = [each for each in WAVES if not only or any(only & fault.alerts.keys() for fault in each)]
    say(f"starting a platform and Prometheus; times of the rules divided by {factor:g}")
    async with stand(shorten(shipped, factor)) as on:
        work = asyncio.create_task(on.work())
        try:
            if not await quiet(on):
                return 1
            say(f"the platform is well: {WELL:g} s without an alert")
            wrong = [f"fires on a platform that is well: {each}" for each in await well(on)]
            for number, faults in enumerate(waves, 1):
                say(f"wave {number} of {len(waves)}")
                rows += await wave(on, faults)
                if not await quiet(on):
                    wrong.append(f"alerts stay after wave {number}")
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
    say("\n| alert | its fault | fires after |\n| --- | --- | --- |")
    for alert, name, seconds in sorted(rows):
        say(f"| {alert} | {name} | {'never' if seconds is None else f'{seconds:.0f} s'} |")
    wrong += [f"{alert} does not fire" for alert, _, seconds in rows if seconds is None]
    if not only:
        wrong += [f"no fault is made for {alert}" for alert in sorted(named - {alert for alert, _, _ in rows})]
    for each in wrong:
        say(f"WRONG: {each}")
    say(f"{len(rows) - sum(row[2] is None for row in rows)} of {len(named)} alerts fired at their faults")
    return 1 if wrong else 0


async def until_told() -> int:
    """`main`, ended in order by Ctrl-C and SIGTERM."""
    task = asyncio.ensure_future(main())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 130


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(until_told()))
    except FileNotFoundError as error:
        sys.exit(f"alerts-test: {error}")
