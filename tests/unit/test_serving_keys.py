"""API keys: who is let in, how often and how much at a time."""

import asyncio
from pathlib import Path

import pytest
from tests.fake_arms import FakeArm, Served

from supertiny.errors import ConfigError, MissingInput
from supertiny.serving.keys import Guard, KeyConfig, Refusal, hash_of, main, read_keys

ALICE, ADMIN = KeyConfig(sha256=hash_of("st-alice"), requests_per_minute=3, concurrency=2), KeyConfig(sha256=hash_of("st-root"), admin=True)
BEARER, ROOT = {"authorization": "Bearer st-alice"}, {"authorization": "Bearer st-root"}


def served() -> Served:
    """A router that two keys may ask."""
    return Served({"traffic_fraction": 0.0}, keys={"alice": ALICE, "root": ADMIN})


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer st-bob"}, {"authorization": "Basic st-alice"}, {"authorization": ALICE.sha256}, {"authorization": "é"}],
)
def test_no_key_or_a_wrong_one_is_401_on_every_route_that_knows_something(headers: dict[str, str]) -> None:
    router = served()
    encoded = {name: value.encode("latin-1").decode("latin-1") for name, value in headers.items() if value.isascii()}
    for answer in (router.ask(encoded), router.get("/v1/models", encoded), router.get("/admin/status", encoded)):
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert router.meter.counts["refusals key_401"] == 3


def test_the_right_key_is_let_in() -> None:
    router = served()
    assert router.ask(BEARER).status_code == 200
    assert router.get("/v1/models", BEARER).status_code == 200


def test_probes_need_no_key() -> None:
    router = served()
    assert router.get("/health").status_code == 200
    assert router.get("/ready").status_code == 200


def test_more_than_the_keys_rate_is_429_until_the_time_it_says() -> None:
    router = served()
    assert [router.ask(BEARER).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = router.ask(BEARER)
    assert refused.headers["retry-after"] == "20"  # three a minute
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.json()["error"]["message"] == "the key alice made its requests of a minute"
    assert router.meter.counts["refusals key_429 alice"] == 2
    router.now = 20.0
    assert [router.ask(BEARER).status_code for _ in range(2)] == [200, 429]


def test_more_than_the_key_may_have_in_flight_is_429_and_a_finished_request_makes_room() -> None:
    guard = Guard({"alice": ALICE}, 1, lambda: 0.0)
    with guard.admit("Bearer st-alice"), guard.admit("Bearer st-alice"):
        with pytest.raises(Refusal, match="2 requests in flight") as caught, guard.admit("Bearer st-alice"):
            pass
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
    with guard.admit("Bearer st-alice"):
        pass


def test_a_stream_holds_its_place_until_its_end() -> None:
    router = Served({"traffic_fraction": 0.0}, keys={"alice": ALICE.model_copy(update={"concurrency": 1})}, teacher=FakeArm(seconds=0.05))

    async def two() -> list[int]:
        body = {"model": "teacher", "messages": [{"role": "user", "content": "x"}], "stream": True}
        posts = [router.client.post("/v1/chat/completions", json=body, headers=BEARER) for _ in range(2)]
        return sorted(answer.status_code for answer in await asyncio.gather(*posts))

    assert router.run(two()) == [200, 429]
    assert router.ask(BEARER).status_code == 200


def test_routers_share_a_keys_limits() -> None:
    guard = Guard({"alice": ALICE}, 2, lambda: 0.0)
    with guard.admit("Bearer st-alice"), pytest.raises(Refusal), guard.admit("Bearer st-alice"):
        pass


def test_an_admin_key_sees_the_status_and_cannot_ask_the_models() -> None:
    router = served()
    assert router.ask(ROOT).status_code == 403
    assert router.get("/admin/status", BEARER).status_code == 403
    router.ask(BEARER)
    status = router.get("/admin/status", ROOT).json()
    assert status["routing"]["mode"] == "split"
    assert status["counts"]["requests teacher split 200"] == 1
    assert status["in_flight"] == {"teacher": 0}


def test_without_keys_everyone_may_ask_and_nobody_is_an_admin() -> None:
    router = Served({"traffic_fraction": 0.0})
    assert router.ask().status_code == 200
    assert router.get("/admin/status").status_code == 403


def test_keys_come_from_a_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f'[alice]\nsha256 = "{ALICE.sha256}"\nrequests_per_minute = 3\nconcurrency = 2\n'
    (tmp_path / "keys.toml").write_text(text)
    monkeypatch.setenv("THE_KEYS", text)
    assert read_keys(str(tmp_path / "keys.toml")) == read_keys("env:THE_KEYS") == {"alice": ALICE}


@pytest.mark.parametrize(
    ("text", "said"),
    [("[alice", "is not TOML"), ("", "keys"), ('[a]\nsha256 = "x"', "keys.a.sha256"), ('[a]\nkey = "st-1"', "keys.a.key: no such key")],
)
def test_keys_that_are_wrong_are_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_keys(str(tmp_path / "keys.toml"))


def test_keys_that_are_not_there_let_nobody_in(tmp_path: Path) -> None:
    for source in (str(tmp_path / "keys.toml"), "env:NO_SUCH_KEYS"):
        with pytest.raises(MissingInput, match="where the router runs"):
            read_keys(source)


def test_the_command_makes_keys_that_the_file_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["alice"])
    main(["ops-1", "--admin"])
    made = capsys.readouterr()
    (tmp_path / "keys.toml").write_text(made.out)
    keys = read_keys(str(tmp_path / "keys.toml"))
    assert {name: key.admin for name, key in keys.items()} == {"alice": False, "ops-1": True}
    assert [hash_of(line.split()[-1]) for line in made.err.splitlines()] == [key.sha256 for key in keys.values()]


@pytest.mark.parametrize("argv", [[], ["--help"], ["alice@example.com"], ["a.b"]])
def test_the_command_writes_nothing_without_a_name_that_the_file_takes(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv)
    assert "sha256" not in capsys.readouterr().out
