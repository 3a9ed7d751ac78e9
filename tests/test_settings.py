"""`--set key=value` becomes what the field's annotation says, or one line that says why not."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Optional

import pytest

from robustkt.errors import UsageError
from robustkt.settings import fill, parse


@dataclass(frozen=True, kw_only=True)
class Method:
    sigma: Fraction
    steps: int = 4
    eta: float = 5.0
    step_size: Fraction | None = None
    clip: float | None = None
    old: Optional[int] = None  # noqa: UP045
    nesterov: bool = False
    schedule: str = "onecycle"
    milestones: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("hint", "given", "value"),
    [
        (int, "10", 10),
        (int, "1e2", 100),
        (int, 7, 7),
        (int, "8/4", 2),
        (float, "0.1", 0.1),
        (float, "1/4", 0.25),
        (float, 3, 3.0),
        (Fraction, "8/255", Fraction(8, 255)),
        (Fraction, 0.1, Fraction(1, 10)),
        (Fraction | None, "8/255", Fraction(8, 255)),
        (Fraction | None, "none", None),
        (Fraction | None, "None", None),
        (Fraction | None, None, None),
        (Optional[int], "3", 3),  # noqa: UP045
        (bool, "true", True),
        (bool, "YES", True),
        (bool, "0", False),
        (bool, True, True),
        (str, "cosine", "cosine"),
        (str, "none", "none"),
        (tuple[float, ...], "0.5,3/4", (0.5, 0.75)),
        (tuple[float, ...], "0.5", (0.5,)),
        (tuple[float, ...], "", ()),
        (tuple[float, ...], "0.5,", (0.5,)),
        (tuple[float, ...], ["74/76", 0.5], (74 / 76, 0.5)),
        (tuple[float, ...], 0.5, (0.5,)),
    ],
)
def test_values_by_their_annotations(hint: Any, given: Any, value: Any) -> None:
    found = parse(hint, given, "key")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("hint", "given", "what"),
    [
        (int, "1.5", "steps must be a whole number, not 1.5"),
        (int, "none", "steps must be a whole number, not none"),
        (int, "true", "steps must be a whole number, not true"),
        (int, "1e400", "steps must be a whole number, not 1e400"),
        (int | None, "x" * 99, f"steps must be a whole number, not {'x' * 59}…"),
        (float, "abc", "steps 'abc' is not a number"),
        (float, "nan", "steps 'nan' is not a number"),
        (float, "inf", "steps 'inf' is not a number"),
        (float, "1e400", "steps '1e400' is too large or too small"),
        (Fraction | None, "half", "steps 'half' is not a number"),
        (bool, "maybe", "steps must be true or false, not maybe"),
        (bool, "2", "steps must be true or false, not 2"),
        (tuple[float, ...], "0.5,x", "steps 'x' is not a number"),
        (tuple[float, ...], ["0.5", None], "steps 'None' is not a number"),
    ],
)
def test_values_that_do_not_fit(hint: Any, given: Any, what: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(hint, given, "steps")
    assert error.value.what == what
    assert error.value.fix.endswith(".")


def test_fill_takes_the_fields_and_leaves_other_keys_aside() -> None:
    given = {"sigma": "1/4", "steps": "2", "step_size": "none", "milestones": "0.5,0.75", "epochs": "3", "lr": "x"}
    assert fill(Method, given) == {
        "sigma": Fraction(1, 4),
        "steps": 2,
        "step_size": None,
        "milestones": (0.5, 0.75),
    }
    assert Method(**fill(Method, given)).schedule == "onecycle"


def test_fill_names_the_key_that_is_wrong() -> None:
    with pytest.raises(UsageError, match=r"^eta 'x' is not a number"):
        fill(Method, {"sigma": "1", "eta": "x"})
