"""What machine time costs: a dated table of prices, and dollars from seconds.

One definition everywhere: the price of one whole machine times the seconds in which it was kept busy with the prompts that are
counted, many in flight at a time. Start-up, idle time and training are left out; a machine that waits costs the same and does less.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from supertiny.errors import ConfigError, MissingInput
from supertiny.records import Record

PRICES = Path(__file__).resolve().parents[2] / "cluster" / "prices.toml"
"""The checkout's table."""


class MachinePrice(Record):
    """What one machine costs, since when, and who says so."""

    machine: str
    """Its name in the table."""
    description: str
    usd_per_hour: float = Field(gt=0)
    as_of: str = Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")
    """Year, month or day of the price, ISO 8601."""
    source: str

    def usd(self, seconds: float) -> float:
        """Dollars for so many seconds of the machine."""
        return seconds * self.usd_per_hour / 3600


def machine_price(machine: str, prices: str | Path | None = None) -> MachinePrice:
    """A machine's price from a table in TOML; None takes the checkout's `cluster/prices.toml`.

    Raises:
        MissingInput: there is no table.
        ConfigError: the table is malformed, or does not have the machine.
    """
    path = Path(prices).expanduser() if prices else PRICES
    table = read_prices(path)
    if machine not in table:
        close = difflib.get_close_matches(machine, table, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(table))}; add yours"
        raise ConfigError(f"machine {machine!r} is not in the price table {path}; {hint}")
    return table[machine]


def read_prices(path: Path) -> dict[str, MachinePrice]:
    """Every machine of a price table, by name.

    Raises:
        MissingInput: there is no such file.
        ConfigError: it is not TOML, or an entry is malformed.
    """
    try:
        entries = tomllib.loads(path.read_text())
        return {name: MachinePrice.model_validate({**entry, "machine": name}) for name, entry in entries.items()}
    except FileNotFoundError:
        raise MissingInput(f"{path}: no price table there; set `prices` to one like cluster/prices.toml") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}, got {first['input']!r}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(f"{path} is no price table: {error}") from None


def usd_per_thousand(seconds_each: float, price: MachinePrice) -> float:
    """Dollars for a thousand prompts or requests that keep the machine busy for `seconds_each`, one by one."""
    return 1000 * price.usd(seconds_each)


def usd_per_thousand_correct(seconds_each: float, correct_fraction: float, price: MachinePrice) -> float | None:
    """Dollars for a thousand right answers, the wrong ones paid for too; None where nothing was right."""
    return usd_per_thousand(seconds_each, price) / correct_fraction if correct_fraction > 0 else None
