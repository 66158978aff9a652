"""Join tokens: the engines' digest vector, round trips, and refusals that say what is wrong."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.identity.ids import DIGITS, base36
from swarm.identity.token import JoinToken, TokenError, matches_root, new_token, root_digest

DIGEST = "4y29sib9mx2ppmgalrkkhgmxvijry3hiyimkzjjyzxlpp0u19d"
SECRET = "0123456789abcdefghijklmno"


def test_digest_vector_of_real_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """SHA-256 c673a9... is written 4y29si... (run against Docker engines)."""

    class Fixed:
        def digest(self) -> bytes:
            return bytes.fromhex("c673a9f69fd95c8d0f7125523cf56e6a0edbed9db3b18219233fba4d4b4035e1")

    monkeypatch.setattr(hashlib, "sha256", lambda data: Fixed())
    assert root_digest(b"any") == DIGEST


def test_digest_covers_every_byte() -> None:
    """A missing newline at the end is another root."""
    assert root_digest(b"pem\n") != root_digest(b"pem")
    wanted = int.from_bytes(hashlib.sha256(b"pem\n").digest(), "big")
    assert int(root_digest(b"pem\n"), 36) == wanted
    assert len(root_digest(b"pem")) == 50


def test_version_1_text() -> None:
    """Known parts give the known text, and back."""
    token = JoinToken(digest=DIGEST, secret=SECRET)
    assert str(token) == f"SWMTKN-1-{DIGEST}-{SECRET}"
    assert JoinToken.parse(str(token)) == token


@pytest.mark.parametrize("fips", [False, True])
def test_version_2_text(fips: bool) -> None:
    """Version 2 carries the FIPS flag."""
    token = JoinToken(version=2, fips=fips, digest=DIGEST, secret=SECRET)
    assert str(token) == f"SWMTKN-2-{int(fips)}-{DIGEST}-{SECRET}"
    assert JoinToken.parse(str(token)) == token


@given(st.binary(max_size=64), st.binary(min_size=16, max_size=16), st.booleans())
def test_new_tokens_parse_and_match_their_root(pem: bytes, raw: bytes, fips: bool) -> None:
    """Every new token survives its text form and pins its root and no other."""
    token = new_token(pem, lambda _: raw, fips=fips)
    assert JoinToken.parse(str(token)) == token
    assert matches_root(token, pem)
    assert not matches_root(token, pem + b"x")
    assert int(token.secret, 36) == int.from_bytes(raw, "big")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("SWMTKN", "version"),
        ("SWMTKM-1-" + DIGEST + "-" + SECRET, "starts with SWMTKN-"),
        ("swmtkn-1-" + DIGEST + "-" + SECRET, "starts with SWMTKN-"),
        (f"SWMTKN-3-{DIGEST}-{SECRET}", "version '3'"),
        (f"SWMTKN-1-{DIGEST}", "3: was it cut off"),
        (f"SWMTKN-1-0-{DIGEST}-{SECRET}", "has 4 parts"),
        (f"SWMTKN-2-{DIGEST}-{SECRET}", "has 5 parts"),
        (f"SWMTKN-2-2-{DIGEST}-{SECRET}", "FIPS flag"),
        (f"SWMTKN-1-{DIGEST[:-1]}-{SECRET}", "digest in the join token has 49 characters"),
        (f"SWMTKN-1-{DIGEST}-{SECRET[:-1]}", "secret in the join token has 24 characters"),
        (f"SWMTKN-1-{DIGEST.upper()}-{SECRET}", "digest in the join token has characters other"),
        (f"SWMTKN-1-{DIGEST}-{SECRET[:-1]}_", "secret in the join token has characters other"),
        (f"SWMTKN-1-{DIGEST}-{SECRET[:-1]}\u0661", "secret in the join token has characters other"),
        (f"SWMTKN-1-{'z' * 50}-{SECRET}", "larger than any SHA-256"),
        ("SWMTKN-1-" + "0" * 500, "too long"),
    ],
)
def test_a_bad_token_is_named(text: str, says: str) -> None:
    """The one sentence says which part is wrong."""
    with pytest.raises(TokenError, match=says) as caught:
        JoinToken.parse(text)
    assert SECRET not in str(caught.value)


@given(st.text(max_size=140) | st.text(alphabet=DIGITS + "-SWMTKN", max_size=120))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """Nothing but TokenError comes out, and what parses is canonical."""
    try:
        token = JoinToken.parse(text)
    except TokenError:
        return
    assert str(token) == text


def test_the_secret_stays_out_of_repr() -> None:
    """A logged token does not give the cluster away."""
    assert SECRET not in repr(JoinToken(digest=DIGEST, secret=SECRET))


def test_largest_digest_has_fifty_digits() -> None:
    """Fifty digits hold every SHA-256 digest, and the parser takes the largest."""
    largest = base36(2**256 - 1, 50)
    assert len(largest) == 50
    assert JoinToken.parse(f"SWMTKN-1-{largest}-{SECRET}").digest == largest
