"""Exact numbers keep their value and have one spelling; JSON of anybody's making is read or refused, never believed."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkt.cli.tables import percent
from robustkt.errors import IntegrityError, UsageError
from robustkt.numbers import (
    LARGEST,
    MAX_JSON,
    canonical,
    check_exact,
    counted,
    digest,
    exact,
    fraction,
    parse_json,
    wilson,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

# -- numbers -----------------------------------------------------------------------------------------------------------


@given(st.fractions(-LARGEST, LARGEST))
def test_exact_and_fraction_undo_each_other(value: Fraction) -> None:
    assert fraction(exact(value)) == value
    assert exact(fraction(exact(value))) == exact(value)


@given(st.floats(-1e200, 1e200).filter(lambda value: value == 0 or abs(value) > 1e-200))
def test_a_float_counts_as_its_shortest_decimal(value: float) -> None:
    assert fraction(value) == Fraction(repr(value))
    assert float(fraction(value)) == value


@pytest.mark.parametrize(
    ("text", "value", "spelling"),
    [
        ("8/255", Fraction(8, 255), "8/255"),
        ("16/510", Fraction(8, 255), "8/255"),
        ("0.25", Fraction(1, 4), "0.25"),
        ("1/4", Fraction(1, 4), "0.25"),
        (" 1e-3 ", Fraction(1, 1000), "0.001"),
        ("0.1", Fraction(1, 10), "0.1"),
        ("2.0", Fraction(2), "2"),
        ("1/3", Fraction(1, 3), "1/3"),
        ("1234567", Fraction(1234567), "1234567"),
        ("1e-9", Fraction(1, 10**9), "1/1000000000"),
        ("-1", Fraction(-1), "-1"),
        ("0", Fraction(0), "0"),
    ],
)
def test_spellings(text: str, value: Fraction, spelling: str) -> None:
    assert fraction(text) == value
    assert exact(value) == spelling


@pytest.mark.parametrize(
    "text",
    ["", "abc", "nan", "inf", "-inf", "1/0", "1//2", "0,5", "8/255/1", "None", True, float("nan"), float("inf")],
)
def test_what_is_no_number(text: Any) -> None:
    with pytest.raises(UsageError, match=r"^sigma '.*' is not a number\nWrite it as") as error:
        fraction(text, "sigma")
    assert str(text) in error.value.what


@pytest.mark.parametrize("text", ["1e301", "1e-301", "1e999999999", "1E-999_999_999", "1" + 301 * "0", "-1e400"])
def test_a_number_that_no_float_can_hold_is_refused_at_once(text: str) -> None:
    with pytest.raises(UsageError, match="too large or too small"):
        fraction(text)


@pytest.mark.parametrize(
    "value", ["0." + "1" * 4_299, "1" * 4_200, "0" * 10**6, 10**5_000, "1e-" + "0" * 5_000 + "1"], ids=range(5)
)
def test_a_number_of_thousands_of_digits_is_refused_at_once(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^beta '.*' is (too long|not a number)\nWrite it as") as error:
        fraction(value, "beta")
    assert len(error.value.what) < 100


@pytest.mark.parametrize(
    "text", ["0.250", " 0.25", "0.25\r", "0.3\n\n", "2/8", "1e-1", "\u0660.\u0662\u0665", "+1", ".5", "-0", "1_0"]
)
def test_a_stored_number_has_one_spelling(text: str) -> None:
    with pytest.raises(UsageError, match=r"^sigma '.*' is not in its one spelling\nIt is ") as error:
        check_exact(text, "sigma")
    assert error.value.what.isprintable()
    right = exact(fraction(text))
    assert check_exact(right, "sigma") == fraction(text)


def test_a_long_text_is_quoted_in_part() -> None:
    with pytest.raises(UsageError) as error:
        fraction("x" * 10_000 + "\n\nx")
    assert len(error.value.what) < 100
    assert "\n" not in error.value.what


# -- JSON --------------------------------------------------------------------------------------------------------------


@given(VALUES)
@settings(max_examples=50)
def test_what_is_written_is_read_again(value: Any) -> None:
    assert parse_json(canonical(value), "test") == value
    assert canonical(parse_json(canonical(value), "test")) == canonical(value)


@given(st.dictionaries(st.text(), VALUES), st.randoms())
@settings(max_examples=50)
def test_equal_tables_give_equal_bytes_whatever_the_order_of_their_keys(table: dict[str, Any], random: Any) -> None:
    keys = list(table)
    random.shuffle(keys)
    assert canonical({key: table[key] for key in keys}) == canonical(table)
    assert canonical([{"b": table, "a": 1}]) == canonical([{"a": 1, "b": table}])


def test_canonical_is_compact_sorted_and_utf_8() -> None:
    assert canonical({"σ": 0.25, "b": [1, None, True], "a": "8/255"}) == (
        '{"a":"8/255","b":[1,null,true],"σ":0.25}'.encode()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_canonical_takes_no_nan(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical({"loss": [value]})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"{} x", "Extra data"),
        (b'{"a":1,"b":{"c":1,"c":1}}', "a key stands twice"),
        (b'{"a":NaN}', "NaN is not a JSON number"),
        (b'{"a":-Infinity}', "-Infinity is not a JSON number"),
        (b'{"a":1e999}', "Out of range"),
        (b'{"a":' + b"9" * 400 + b".0}", "Out of range"),
        (b'{"a":' + b"9" * 5000 + b"}", "digits"),
        (b'{"a":"\xff"}', "codec can't decode"),
        (b'{"a":"\\ud800"}', "surrogates not allowed"),
        (b'\xef\xbb\xbf{"a":1}', "BOM"),
        (b"[" * 100_000 + b"]" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
        (b" " * MAX_JSON + b"1", f"larger than {MAX_JSON} bytes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_that_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(IntegrityError, match=why) as error:
        parse_json(data, "refs.json")
    assert error.value.what.startswith("refs.json is not the JSON it should be: ")
    assert "\n" not in error.value.what
    assert error.value.fix


def test_json_of_the_largest_size_and_with_whole_surrogate_pairs_is_read() -> None:
    assert parse_json(b" " * (MAX_JSON - 1) + b"1", "test") == 1
    assert parse_json(b'{"a":"\\ud83d\\ude00","b":1e200,"c":"e+100"}', "test") == {"a": "😀", "b": 1e200, "c": "e+100"}


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data, "test")
    except IntegrityError:
        return
    assert json.loads(data) == value
    canonical(value)


def test_digest_is_sha_256_with_its_name() -> None:
    assert digest(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("of", [1, 7, 12, 45, 360, 1000])
def test_wilson_ends_where_shares_end(of: int) -> None:
    assert wilson(0, of)[0] == 0.0
    assert wilson(of, of)[1] == 1.0
    low, high = wilson(of, of + 1)
    assert 0 < low < of / (of + 1) < high < 1


def test_wilson_is_the_textbooks() -> None:
    z, n, p = 1.959963984540054, 20, 0.25
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert wilson(5, 20) == pytest.approx([(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)])


@pytest.mark.parametrize(
    ("value", "told"),
    [(None, "–"), (-1e-17, "0.0%"), (0.9999999999999999, "100.0%"), (1 / 3, "33.3%"), (1.0, "100.0%")],
)
def test_shares_are_told_to_a_tenth_of_a_per_cent(value: float | None, told: str) -> None:
    assert percent(value) == told


def test_one_is_counted_as_one() -> None:
    assert [counted(n, "epoch") for n in (0, 1, 2, 1000)] == ["0 epochs", "1 epoch", "2 epochs", "1,000 epochs"]
