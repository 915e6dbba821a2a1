"""The shipped rules with their times divided, so that an alert for five minutes fires within half of one."""

from __future__ import annotations

import re
from io import StringIO

from ruamel.yaml import YAML

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_WINDOW = re.compile(r"\[(\d+)([smh])\]")
_AGE = re.compile(r"(_seconds\)? > )(\d{2,})\b")


def shorten(text: str, factor: float) -> str:
    """Rules whose times are divided by `factor`, and nothing else of them is changed.

    These are times: `for:`, windows (`[5m]`), and the bounds of ages (`…_seconds) > 300`: ten seconds and more).
    """

    def time(match: re.Match[str]) -> str:
        return f"[{int(1000 * int(match[1]) * _SECONDS[match[2]] / factor)}ms]"

    def age(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2]) / factor:g}"

    yaml = YAML()
    rules = yaml.load(text)
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _AGE.sub(age, _WINDOW.sub(time, str(rule["expr"])))
            if "for" in rule:
                rule["for"] = _WINDOW.sub(time, f"[{rule['for']}]")[1:-1]
    said = StringIO()
    yaml.dump(rules, said)
    return said.getvalue()
