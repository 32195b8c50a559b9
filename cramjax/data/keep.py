"""What to say of `data.keep` if it leaves no text."""

import collections
import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.data import sources
from cramjax.data.readers import Problems, Reading
from cramjax.data.sources import Portion
from cramjax.errors import UserError

RECORDS = 10_000  # looked at for what the fields hold
SOME, VALUE_CHARS = 5, 40  # values named of each field


class _Values(Reading):
    """Counts the values of the fields of `keep`, and gives a text for every record."""

    def text(self, record: Mapping[str, Any], where: str, problems: Problems) -> str:
        for name, _ in self.keep:
            value = self.field(record, name, "keep", where)
            if isinstance(value, bytes):
                value = value.decode(errors="replace")
            value = value if isinstance(value, str) else json.dumps(value, default=str)
            problems[f"{name}={value[:VALUE_CHARS]}"] += 1
        return ""


def check(portions: Sequence[Portion], reading: Reading) -> None:
    """Looks for a record that `reading.keep` keeps.

    Raises:
      UserError: there is none; it names the values that there are.
    """
    problems: Problems = collections.Counter()
    for portion in portions:
        if next(sources.documents(portion, reading, problems), None) is not None:
            return
    if not problems["records left out by data.keep"]:  # it is not to blame
        return
    values = _Values(
        **{f.name: getattr(reading, f.name) for f in dataclasses.fields(reading)}
    )
    seen: Problems = collections.Counter()
    records = itertools.chain.from_iterable(
        p.part.texts(values, seen) for p in portions
    )
    collections.deque(itertools.islice(records, RECORDS), maxlen=0)
    there = []
    for name, _ in reading.keep:
        found = [v.removeprefix(f"{name}=") for v in seen if v.startswith(f"{name}=")]
        more = ", ..." if len(found) > SOME else ""
        there.append(f"{name} is {', '.join(map(repr, found[:SOME]))}{more}")
    asked = tuple(f"{name}={'|'.join(sorted(of))}" for name, of in reading.keep)
    raise UserError(
        f"config.data.keep is {asked}: no record is like that; in those there are "
        f"{'; '.join(there)}"
    )
