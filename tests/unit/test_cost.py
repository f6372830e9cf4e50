from pathlib import Path

import pytest

from supertiny.cost import PRICES, MachinePrice, machine_price, read_prices, usd_per_thousand, usd_per_thousand_correct
from supertiny.errors import ConfigError, MissingInput

PRICE = MachinePrice(machine="box", description="a box", usd_per_hour=3.60, as_of="2026", source="made up")


def test_dollars_are_seconds_times_the_hourly_price() -> None:
    assert PRICE.usd(10) == pytest.approx(0.01)
    assert usd_per_thousand(0.5, PRICE) == pytest.approx(0.5)


def test_wrong_answers_are_paid_for_too() -> None:
    assert usd_per_thousand_correct(0.5, 0.8, PRICE) == pytest.approx(0.5 / 0.8)


def test_nothing_right_has_no_price() -> None:
    assert usd_per_thousand_correct(0.5, 0.0, PRICE) is None


def test_the_checked_in_table_has_dated_prices_with_their_source() -> None:
    prices = {name: price.usd_per_hour for name, price in read_prices(PRICES).items()}
    assert prices.items() >= {"h200": 3.80, "h100": 2.95, "a100-80": 1.40, "l4": 0.70}.items()
    assert all(price.source and price.as_of >= "2025" for price in read_prices(PRICES).values())


def test_an_unknown_machine_gets_the_closest_name() -> None:
    with pytest.raises(ConfigError, match=r"'a100-8' is not in the price table .*; did you mean a100-80\?"):
        machine_price("a100-8")


def test_a_machine_like_no_other_gets_the_whole_list() -> None:
    with pytest.raises(ConfigError, match="it has a100-80, h100"):
        machine_price("toaster")


def test_a_users_table_replaces_the_checked_in_one(tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    table.write_text('[box]\ndescription = "mine"\nusd_per_hour = 0.5\nas_of = "2026-10-01"\nsource = "my invoice"\n')
    assert machine_price("box", table).usd_per_hour == 0.5
    with pytest.raises(ConfigError, match="h100"):
        machine_price("h100", table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[box]\ndescription = "mine"\nusd_per_hour = -1\nas_of = "2026"\nsource = "x"\n', "usd_per_hour"),
        ('[box]\ndescription = "mine"\nusd_per_hour = 1\nas_of = "yesterday"\nsource = "x"\n', "as_of"),
        ('[box]\ndescription = "mine"\nusd_per_hour = 1\nas_of = "2026"\n', "source"),
        ("box = 3\n", "no price table"),
        ("[box\n", "no price table"),
    ],
)
def test_a_malformed_table_names_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "mine.toml"
    table.write_text(text)
    with pytest.raises(ConfigError, match=message):
        machine_price("box", table)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"none\.toml"):
        machine_price("box", tmp_path / "none.toml")
