"""Messages of every mechanism: round trips, rates, golden bytes, two processes, and everything that must be refused."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import digamma

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.privacy import MECHANISMS, Key, MessageError, find_lattice, make_mechanism
from krossfuse.privacy.lattices import ball_volume
from krossfuse.privacy.messages import MAGIC, Reader, signed_varint, varint

KEY = Key.from_seed(7, client=3, round=5)
EVERY = {
    "none": make_mechanism("none"),
    "gaussian": make_mechanism("gaussian", sigma=0.1),
    "laplace": make_mechanism("laplace", sigma=0.1),
    "sdq": make_mechanism("sdq", step=0.1),
    "gaussian_sdq": make_mechanism("gaussian_sdq", sigma=0.1),
    "cepam": make_mechanism("cepam", sigma=0.1),
    "cepam_laplace": make_mechanism("cepam", sigma=0.1, law="laplace"),
    **{f"cepam_{n}": make_mechanism("cepam", sigma=0.1, lattice=n) for n in ("Z1", "Z2", "Z3", "A2", "D3", "D4", "E8")},
    "released": make_mechanism("released", sigma=0.1),
    "released_3": make_mechanism("released", sigma=0.1, dim=3),
}
U = (np.random.default_rng(0).normal(size=1000) * 0.2).astype(np.float32)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=25)
@given(
    d=st.integers(1, 70),
    seed=st.integers(0, 2**40),
    scale=st.floats(-9, 2.5),
    client=st.integers(0, 2**35),
    round=st.integers(0, 2**35),
)
def test_round_trip(name, d, seed, scale, client, round):
    mechanism = EVERY[name]
    u = np.random.default_rng(seed).standard_cauchy(size=d) * 10**scale
    u = np.clip(u, -1e3, 1e3)
    key = Key.from_seed(seed, client=client, round=round)
    message = mechanism.encode(u, key)
    out = mechanism.decode(message, key, d=d)
    assert out.dtype == np.float32
    assert out.shape == (d,)
    assert np.array_equal(out, mechanism.decode(message, key))
    if mechanism.name == "none":
        assert np.array_equal(out, u.astype(np.float32))
    elif mechanism.name != "released":
        assert np.abs(out - u).max() < 20 * 0.1 + 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_noise_is_what_is_declared(name):
    mechanism = EVERY[name]
    u = np.random.default_rng(4).normal(size=100_000) * 0.3
    error = mechanism.decode(mechanism.encode(u, KEY), KEY) - u
    if mechanism.noise == "none":
        assert mechanism.noise_std == 0
        if mechanism.name == "sdq":
            assert stats.kstest(error / 0.1 + 0.5, "uniform").pvalue > 1e-3
        return
    cdf = stats.norm.cdf if mechanism.noise == "gaussian" else stats.laplace(scale=math.sqrt(0.5)).cdf
    fits = stats.kstest(error / mechanism.noise_std, cdf).pvalue > 1e-3
    assert fits == (mechanism.name != "gaussian_sdq")  # whose quantiser adds step²/12
    if mechanism.name == "gaussian_sdq":
        assert error.std() / 0.1 == pytest.approx(math.sqrt(1 + 1 / 12), rel=0.01)


def test_gaussian_sdq_has_the_given_step():
    fine = make_mechanism("gaussian_sdq", sigma=0.1, step=0.001)
    u = np.random.default_rng(4).normal(size=50_000) * 0.3
    gaussian = EVERY["gaussian"].decode(EVERY["gaussian"].encode(u, KEY), KEY)
    assert np.abs(fine.decode(fine.encode(u, KEY), KEY) - gaussian).max() <= 0.0005 + 1e-6


# Rates.


def layer_gap(n: int) -> float:
    mean_log = (digamma((n + 2) / 2) + math.log(2)) / math.log(2)
    return 0.5 * math.log2(2 * math.pi * math.e) - (math.log2(ball_volume(n)) + n / 2 * mean_log) / n


def gap(name: str) -> float:
    """Bits a coordinate over the mutual information at high resolution."""
    lattice = find_lattice(name)
    p, n = lattice.density, lattice.dim
    return layer_gap(n) + (0 if n == 1 else (1 - p) / p * math.log2(1 / (1 - p)) / n)


def test_the_gaps_are_the_published_ones():
    published = {"Z1": 0.521, "Z2": 0.720, "Z3": 0.675, "A2": 0.592, "D3": 0.578, "D4": 0.521, "E8": 0.363}
    assert {name: round(gap(name), 3) for name in published} == published


def rate(mechanism, s: float, d: int = 120_000) -> float:
    u = np.random.default_rng(8).normal(size=d)
    u *= s / np.sqrt(np.square(u).mean())
    return 8 * len(mechanism.encode(u, KEY)) / d


@pytest.mark.parametrize("name", ["Z1", "Z2", "Z3", "A2", "D3", "D4", "E8"])
def test_rate_at_high_resolution(name):
    mechanism = make_mechanism("cepam", sigma=1.0, lattice=name)
    for s in (3.0, 10.0, 100.0):
        assert rate(mechanism, s) <= 0.5 * math.log2(1 + s * s) + gap(name) + (0.06 if s < 30 else 0.015)


def test_rate_of_laplace_at_high_resolution():
    assert rate(make_mechanism("cepam", sigma=1.0, law="laplace"), 100.0) == pytest.approx(7.600, abs=0.02)


@pytest.mark.parametrize("s", [0.01, 0.03, 0.1, 0.3])
def test_rate_of_z1_falls_with_the_signal(s):
    header = 8 * 40 / 120_000
    assert rate(make_mechanism("cepam", sigma=1.0), s) <= 1.1 * s + header


def test_auto_takes_the_cheaper_lattice():
    auto = make_mechanism("cepam", sigma=1.0)
    for s in (0.3, 0.8, 0.9, 3.0):
        rates = [rate(make_mechanism("cepam", sigma=1.0, lattice=name), s, 40_000) for name in ("Z1", "E8")]
        assert rate(auto, s, 40_000) == pytest.approx(min(rates), abs=1e-9)


def test_cepam_is_a_quarter_of_gaussian_and_sdq_at_small_signals():
    ours, theirs = make_mechanism("cepam", sigma=1.0), make_mechanism("gaussian_sdq", sigma=1.0)
    assert rate(ours, 0.3) * 4 < rate(theirs, 0.3)


# The same bytes everywhere.


def message_digest(name: str) -> str:
    return hashlib.sha256(EVERY[name].encode(U, KEY)).hexdigest()[:16]


GOLDEN = {
    "none": "9a5d0a7592fc07b4",
    "gaussian": "f31e4aed15c54b08",
    "laplace": "8e38c180ef368d0f",
    "sdq": "c8c6d8a2d28cfc6e",
    "gaussian_sdq": "ad14c134e7523274",
    "cepam": "81f747f5cdba4834",
    "cepam_laplace": "8cabcc5f6a258331",
    "cepam_Z1": "c2691295ecd8a443",
    "cepam_Z2": "24fbbba620ca6a36",
    "cepam_Z3": "01bcacfc7ec07091",
    "cepam_A2": "5308f84b1142696c",
    "cepam_D3": "15d4427d1638be53",
    "cepam_D4": "b0fdc0d4c85481b5",
    "cepam_E8": "4419b094af430897",
    "released": "4d99eb6df26a92fa",
    "released_3": "dfff18843d8fb8bb",
}


@pytest.mark.parametrize("name", EVERY)
def test_golden_messages(name):
    assert message_digest(name) == GOLDEN[name], "the format changed: raise messages.VERSION and freeze new messages"


def test_a_golden_message_byte_by_byte():
    u = np.array([0.1, -0.2, 0.3, 0.05, 0.0, -0.7, 0.2, 1.0])
    message = bytes.fromhex("4b46020648080305831aea3e4e83521100020302fbe62bf0f42d533bf52c4183")
    assert make_mechanism("cepam", sigma=0.25).encode(u, KEY) == message
    decoded = make_mechanism("cepam", sigma=0.25).decode(message, KEY)
    assert decoded.tolist() == pytest.approx(
        [0.4818883, -0.4109835, 0.4147963, 0.2776412, -0.6081429, -0.7476196, 0.07039353, 1.298115], rel=1e-6
    )


def test_another_process_with_other_threads_writes_and_reads_the_same():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from privacy.test_mechanisms import EVERY, KEY, U, message_digest\n"
        "import hashlib\n"
        "for name, mechanism in EVERY.items():\n"
        "    out = mechanism.decode(mechanism.encode(U, KEY), KEY)\n"
        "    print(name, message_digest(name), hashlib.sha256(out.tobytes()).hexdigest())\n"
    )
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        lines = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for line, (name, mechanism) in zip(lines, EVERY.items(), strict=True):
            out = mechanism.decode(mechanism.encode(U, KEY), KEY)
            assert line.split() == [name, message_digest(name), hashlib.sha256(out.tobytes()).hexdigest()]


# What must be refused.


@pytest.mark.parametrize("name", EVERY)
def test_every_altered_or_truncated_message_is_refused(name):
    mechanism = EVERY[name]
    message = mechanism.encode(U[:40], KEY)
    for end in range(len(message)):
        with pytest.raises(MessageError):
            mechanism.decode(message[:end], KEY)
    for place in range(len(message)):
        altered = bytearray(message)
        altered[place] ^= 1 << place % 8
        with pytest.raises(MessageError):
            mechanism.decode(bytes(altered), KEY)
    with pytest.raises(MessageError):
        mechanism.decode(message + b"\0", KEY)


def test_refusals_say_why():
    cepam = EVERY["cepam_Z1"]
    message = cepam.encode(U, KEY)
    for key, reason in [
        (Key.from_seed(7, client=3, round=6), "replayed: it is of round 5; this is round 6"),
        (Key.from_seed(7, client=3, round=4), "early: it is of round 5; this is round 4"),
        (Key.from_seed(7, client=4, round=5), "client 3's; client 4's was expected"),
        (Key.from_seed(8, client=3, round=5), "another secret or other settings"),
    ]:
        with pytest.raises(MessageError, match=reason):
            cepam.decode(message, key)
    with pytest.raises(MessageError, match="version 9, this decoder reads version 2"):
        cepam.decode(message[:2] + b"\x09" + message[3:], KEY)
    with pytest.raises(MessageError, match="not a KrossFuse message"):
        cepam.decode(b"PNG" + message[3:], KEY)
    with pytest.raises(MessageError, match="not a KrossFuse message"):
        cepam.decode(b"", KEY)
    with pytest.raises(MessageError, match="truncated: 10 bytes"):
        cepam.decode(message[:10], KEY)
    with pytest.raises(MessageError, match="truncated or altered"):
        cepam.decode(message[:-3], KEY)
    with pytest.raises(MessageError, match="1000 coordinates; the model has 999"):
        cepam.decode(message, KEY, d=999)
    with pytest.raises(MessageError, match=r"other settings than the server's \(cepam\(sigma=0.2"):
        make_mechanism("cepam", sigma=0.2, lattice="Z1").decode(message, KEY)
    with pytest.raises(MessageError, match=r"other settings than the server's \(gaussian"):
        EVERY["gaussian"].decode(message, KEY)


def forged(mechanism, message: bytes, place: int, value: int) -> bytes:
    """Return the message with one byte changed by somebody who holds the key."""
    from krossfuse.privacy.messages import TAG_BYTES, _tag

    content = bytearray(message[:-TAG_BYTES])
    content[place] = value
    return bytes(content) + _tag(bytes(content), KEY, mechanism.settings)


def test_a_genuine_message_of_another_lattice_or_mechanism_is_refused():
    for name, lattice, reason in [
        ("cepam_Z1", find_lattice("E8").code, "on lattice E8; Z1 was agreed"),
        ("cepam", 200, "number 200, which nobody knows"),
        ("cepam_laplace", find_lattice("E8").code, "cannot shape Laplace"),
        ("sdq", find_lattice("Z2").code, "not on Z1"),
    ]:
        mechanism = EVERY[name]
        with pytest.raises(MessageError, match=reason):
            mechanism.decode(forged(mechanism, mechanism.encode(U, KEY), 4, lattice), KEY)
    mechanism = EVERY["cepam"]
    with pytest.raises(MessageError, match="mechanism has number 2, not cepam's 6"):
        mechanism.decode(forged(mechanism, mechanism.encode(U, KEY), 3, 2), KEY)


@pytest.mark.parametrize("name", ["cepam_Z1", "cepam_E8", "cepam_A2", "sdq", "gaussian_sdq"])
def test_a_genuine_message_that_decodes_otherwise_is_refused(name):
    """As between two machines whose models differ: every byte of the body counts."""
    mechanism = EVERY[name]
    message = mechanism.encode(U, KEY)
    sent, refused = mechanism.decode(message, KEY), 0
    body = message.index(varint(KEY.round), 5) + 1
    for place in [*range(body, body + 14), *range(body + 14, len(message) - 8, 37)]:
        try:
            out = mechanism.decode(forged(mechanism, message, place, message[place] ^ 0x55), KEY)
        except MessageError:
            refused += 1
        else:  # a low bit of the prior's width, or the last byte of the code, can make no difference
            assert np.array_equal(out, sent)
    assert refused > 15


def test_a_plain_message_that_is_not_finite_is_refused():
    plain = EVERY["none"]
    message = plain.encode(np.ones(3), KEY)
    start = len(message) - 8 - 12
    with pytest.raises(MessageError, match="finite"):
        plain.decode(forged(plain, forged(plain, message, start + 3, 0x7F), start + 2, 0xFF), KEY)


@pytest.mark.parametrize("name", EVERY)
def test_bad_updates_are_refused(name):
    mechanism = EVERY[name]
    with pytest.raises(DataError, match="nan at coordinate 2 of 4"):
        mechanism.encode(np.array([0, 1, math.nan, 2]), KEY)
    with pytest.raises(DataError, match="inf at coordinate 0 of 1"):
        mechanism.encode(np.array([1e300]), KEY)
    with pytest.raises(DataError, match="one vector"):
        mechanism.encode(np.zeros((2, 2)), KEY)
    with pytest.raises(DataError, match="one vector"):
        mechanism.encode(np.zeros(0), KEY)


def test_an_update_far_too_large_for_the_noise():
    with pytest.raises(ConfigError, match="quantiser steps"):
        make_mechanism("cepam", sigma=1e-8).encode(np.linspace(-1, 1, 1000), KEY)


def test_zero_updates_cost_a_header():
    for name, mechanism in EVERY.items():
        if name.startswith("cepam") and name not in (
            "cepam_E8",
            "cepam_D3",
            "cepam_D4",
            "cepam_A2",
            "cepam_Z2",
            "cepam_Z3",
        ):
            assert len(mechanism.encode(np.zeros(1000), KEY)) < 40


def test_registry():
    assert set(MECHANISMS) == {"none", "gaussian", "laplace", "sdq", "gaussian_sdq", "cepam", "released"}
    with pytest.raises(ConfigError, match="did you mean 'cepam'"):
        make_mechanism("cepan")
    with pytest.raises(ConfigError, match="unexpected keyword argument 'sigmas'"):
        make_mechanism("gaussian", sigmas=1.0)
    for name in ("gaussian", "laplace", "gaussian_sdq", "cepam", "released"):
        with pytest.raises(ConfigError, match="sigma=0"):
            make_mechanism(name, sigma=0)
    with pytest.raises(ConfigError, match="step=-1"):
        make_mechanism("sdq", step=-1.0)
    with pytest.raises(ConfigError, match="dim=4 is not one of"):
        make_mechanism("released", sigma=1.0, dim=4)
    assert make_mechanism("cepam", sigma=1).settings == make_mechanism("cepam", sigma=1.0).settings
    assert make_mechanism("cepam", sigma=1.0).described() == {
        "mechanism": "cepam",
        "sigma": 1.0,
        "law": "gaussian",
        "lattice": "auto",
    }


@given(st.integers(0, 2**60), st.integers(-(2**40), 2**40))
def test_varints(plain, signed):
    reader = Reader(varint(plain) + signed_varint(signed) + b"rest")
    assert (reader.varint(), reader.signed_varint(), reader.rest()) == (plain, signed, b"rest")


def test_reader_refuses():
    with pytest.raises(MessageError, match="truncated"):
        Reader(b"\xff").varint()
    with pytest.raises(MessageError, match="more than 64 bits"):
        Reader(b"\xff" * 12).varint()
    assert EVERY["none"].encode(U, KEY).startswith(MAGIC)
