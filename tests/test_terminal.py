"""What a person sees in a terminal of 80 and of 160 columns: nothing wider, nothing cut or broken without need."""

from __future__ import annotations

import fcntl
import io
import itertools
import json
import os
import pty
import random
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from robustkt.api.sofar import SoFar
from robustkt.certlog import Row
from robustkt.cli import fitting, gatetables
from robustkt.cli.tables import Columns
from robustkt.numbers import wilson
from tests.conftest import Ran, command_line

Cli = Callable[..., Ran]
ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "list": ["list"],
    "show": ["show", "digits-crt-2"],
    "modes": ["show", "digits-two-modes"],
    "lineage": ["lineage"],
    "metrics": ["lineage", "--metrics"],
    "compare": ["compare", "digits-smoothmix", "digits-crt-2"],
    "unlike": ["compare", "fashion-crt", "digits-sat"],
    "gate": ["gate", "digits-crt-2", "--against", "digits-smoothmix"],
    "certify": ["certify", "digits-crt-2", "--n", "128", "--n0", "16", "--max-images", "6"],
    "evaluate": ["evaluate", "digits-sat", "--attack", "fgsm", "--eps", "0.1", "--max-images", "12"],
    "soup": ["soup", "sweep", "digits-two-modes", "--beta", "0:1:0.5", "--max-images", "12"],
}
CODES = {"gate": 3}
CUT = {  # hashes are told by their beginning; the names of teachers need more than 80 columns
    ("list", 80), *((name, columns) for name in ("show", "modes", "unlike") for columns in (80, 160))
}  # fmt: skip
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MOVES = re.compile(r"\r?\n|\r|\x1b\[[0-9;]*[AK]")  # where the next thing is written elsewhere


@pytest.fixture(autouse=True)
def _a_terminal_that_can_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


@contextmanager
def _terminal(columns: int) -> Iterator[io.BytesIO]:
    """This process's three streams on a pseudo-terminal so wide; what it is shown, once that is over."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    seen = io.BytesIO()

    def read() -> None:
        try:
            while part := os.read(leader, 65536):
                seen.write(part)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    kept, files = [os.dup(n) for n in (0, 1, 2)], (sys.stdin, sys.stdout, sys.stderr)
    try:
        for n in (0, 1, 2):
            os.dup2(follower, n)
        os.close(follower)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
        yield seen
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        sys.stdin, sys.stdout, sys.stderr = files
        for n, descriptor in enumerate(kept):
            os.dup2(descriptor, n)
            os.close(descriptor)
        reader.join()
        os.close(leader)


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """`shown(80, "list")`: exit status and what a terminal is sent, in a folder with the project's registry."""
    shutil.copytree(ROOT / "registry", tmp_path / "registry")
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "NO_COLOR", "_TYPER_FORCE_DISABLE_TERMINAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(columns: int, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["robustkt", *arguments])
        with _terminal(columns) as seen, pytest.raises(SystemExit) as stop:
            command_line()()
        return int(stop.value.code or 0), seen.getvalue().decode()

    return run


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_wider_than_the_terminal_and_what_fits_is_whole(
    cli: Cli, shown: Callable[..., tuple[int, str]], name: str, columns: int
) -> None:
    code, text = shown(columns, *COMMANDS[name])
    assert code == CODES.get(name, 0), text
    for line in (ESCAPES.sub("", part).rstrip() for part in MOVES.split(text)):
        assert cell_len(line) <= columns or " " not in line.strip(), line  # what has no space stays whole
    lines = [ESCAPES.sub("", line).rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    if (name, columns) not in CUT:
        assert [line for line in lines if re.search(r"\w…", line)] == []
    piped = cli(*COMMANDS[name])  # once more, to a pipe: a result that is there already
    sentences = [line for line in piped.out.splitlines() if "  " not in line.strip() and len(line) <= columns - 1]
    tables = name in ("list", "lineage")  # their rows depend on the room
    assert tables or [line for line in sentences if line.rstrip() not in lines] == []
    words = {word.strip(",:;") for word in text.replace("│", " ").split()}
    long = {word.strip(",:;") for line in piped.out.splitlines() if "  " not in line.strip() for word in line.split()}
    assert tables or long <= {ESCAPES.sub("", word) for word in words}, "no word is cut"


def test_a_narrow_list_leaves_columns_out_and_a_wide_one_adds_some(shown: Callable[..., tuple[int, str]]) -> None:
    narrow, wide = (ESCAPES.sub("", shown(columns, "list")[1]) for columns in (80, 160))
    assert "A wider terminal also has data, n, by, of." in narrow
    assert "fashion-smoothmix" in narrow
    assert "A wider terminal" not in wide
    assert re.search(r"digits-crt-2 .* 360 +█▇▆▂ +2026-\d\d-\d\d", wide)


def test_show_draws_the_course_of_the_training(cli: Cli) -> None:
    out = cli("show", "digits-crt-2", "--registry", ROOT / "registry").out
    record = json.loads(cli("show", "digits-crt-2", "--registry", ROOT / "registry", "--json").out)
    first, last = record["epochs"][0]["loss"], record["epochs"][-1]["loss"]
    assert re.search(rf"^loss +█[▁-█]{{10}}▁  {first:.4g} → {last:.4g}$", out, re.MULTILINE)
    assert re.search(r"^held-out +▁[▁-█]{11}  54\.6% → 92\.9%$", out, re.MULTILINE)
    assert "17.8% @0.75  █▇▆▂" in out


# -- a certification that runs -------------------------------------------------------------------------------------


def test_a_live_certification_shows_its_figures_below_the_bar_and_leaves_nothing(
    shown: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustkt.api.certifying.SHOW_SECONDS", 0)
    code, text = shown(80, *COMMANDS["certify"], "--radii", "0.25,0.5", "--json")
    assert code == 0
    live = [ESCAPES.sub("", part).rstrip() for part in MOVES.split(text)]
    told = [line for line in live if line.startswith("6 of 6 images")]
    assert told
    assert re.fullmatch(r"6 of 6 images, \S+ images/s, abstained \d+\.\d%", told[-1])
    assert any(re.fullmatch(r"certified at 0\.25 +\d+\.\d%  \[\d+\.\d%, \d+\.\d%\]", line) for line in live)
    assert any(re.fullmatch(r"\d+ copies(, \d+% fewer than 144 an image)?", line) for line in live)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is there again"
    (answer,) = (line for line in live if line.startswith("{"))
    assert json.loads(answer)["images"] == 6


def test_quiet_shows_nothing(shown: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustkt.api.certifying.SHOW_SECONDS", 0)
    _, text = shown(80, *COMMANDS["certify"], "--json", "-q")
    assert text.startswith("{")
    assert text.count("\n") == 1


def test_the_spare_ranks_show_nothing(shown: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustkt.api.certifying.SHOW_SECONDS", 0)
    monkeypatch.setenv("RANK", "1")
    assert shown(80, *COMMANDS["certify"])[1] == ""


def test_a_pipe_is_told_now_and_then(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustkt.api.certifying.SHOW_SECONDS", 0)
    monkeypatch.setattr("robustkt.api.certifying.TELL_SECONDS", 0)
    shutil.copytree(ROOT / "registry", tmp_path / "registry")
    ran = cli(*COMMANDS["certify"])
    told = [line for line in ran.err.splitlines() if " of 6 images, " in line]
    assert re.fullmatch(
        r"3 of 6 images, \S+ images/s, ETA \d:\d\d:\d\d: certified at 0 \d+\.\d% \[.*\], certified at 0\.25 .*, "
        r"abstained \d+\.\d%, [\d,]+ copies.*",
        told[2],
    )


def test_the_figures_so_far_are_those_of_the_rows() -> None:
    now = [100.0]
    sofar = SoFar([Fraction(0), Fraction(1, 4)], 10, 1_100, known=2, clock=lambda: now[0])
    assert sofar.rate is None
    rows = [Row(i, 1, -1 if i == 3 else 1, 0.2 * i, i != 3, None, 90, 100, 0.8, 500 + i) for i in range(5)]
    for row in rows:
        sofar.add(row)
        now[0] += 2
    assert sofar.done == 5
    assert sofar.rate == pytest.approx(3 / 8), "the images that an earlier run had begun say nothing of the speed"
    assert sofar.saved == pytest.approx(1 - (2_500 + 10) / 5_500)
    low, high = wilson(2, 5)
    assert sofar.certified()[1] == f"certified at 0.25   40.0%  [{low:.1%}, {high:.1%}]"
    assert sofar.shown().splitlines()[:2] == [
        "5 of 10 images, 0.375 images/s, abstained 20.0%", "2,510 copies, 54% fewer than 1,100 an image"
    ]  # fmt: skip
    assert "ETA 0:00:13: certified at 0 80.0%" in sofar.line()


# -- fitting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 43, 80])
@pytest.mark.parametrize("head", ["", "  ", "warning  "])
def test_sentences_are_broken_at_spaces_and_only_where_they_must(width: int, head: str) -> None:
    rng = random.Random(width)
    for _ in range(100):
        words = ["x" * rng.randint(1, width + 5 if rng.random() < 0.1 else 9) for _ in range(rng.randint(1, 40))]
        lines = fitting.broken(" ".join(words), width, head)
        assert "".join(lines).replace(" ", "") == head.strip() + "".join(words)
        assert [word for line in lines for word in line.split()] == [*head.split(), *words]
        for line, after in itertools.pairwise(lines):
            assert len(line) <= width or len(line.split()) == 1
            assert len(line) + 1 + len(after.split()[0]) > width or line.strip() in (head.strip(), words[-1])


def test_letters_of_two_columns_fit_too() -> None:
    assert all(cell_len(line) <= 20 for line in fitting.broken("数据 集合 名称 " * 9, 20, "data  "))


def test_a_command_in_several_lines_is_the_same_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = "robustkt certify gen1 " + " ".join(f"--option-{i} {i}" for i in range(12))
    fitting.command(Console(width=50, force_terminal=True, no_color=True, highlight=False), text, 4)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 50
    assert len(out.splitlines()) > 3
    said = subprocess.run(["sh", "-c", f"printf '%s\\n' {out}"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == text.split(), "to a shell"


def test_columns_give_way_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    def heads(width: int) -> list[str]:
        table = Columns("name", "a-long-heading", "spare", "wide", left=1, spare=["spare"], wide=["wide"])
        table.add_row("generation", "1.0", "2,000", "▁█")
        kept = table.show(Console(width=width, force_terminal=True, no_color=True))
        out = ESCAPES.sub("", capsys.readouterr().out)
        assert max(map(len, (line.rstrip() for line in out.splitlines()))) <= width
        assert "generation" in out
        assert "1.0" in out
        return kept

    assert heads(60) == ["name", "a-long-heading", "spare", "wide"]
    assert heads(35) == ["name", "a-long-heading", "spare"]
    assert heads(25) == heads(19) == ["name", "a-long-heading"], "then the heading stands in two lines"


def test_many_corruptions_that_are_missing_are_one_line() -> None:
    def one(name: str, has: str = "a") -> dict[str, object]:
        return {
            "what": f"fgsm linf 0.1 under {name}, 360 images", "has": has, "lacks": "b", "differs": {},
            "command": f"robustkt evaluate b --attack fgsm --max-images 360 --corruption {name} --base",
        }  # fmt: skip

    names = [*(f"contrast:{severity}" for severity in range(1, 6)), "motion-blur:2"]
    clean = {**one("x"), "command": "robustkt evaluate b --attack fgsm"}
    certified = {**one("contrast:1"), "command": "robustkt certify b --corruption contrast:1"}
    told = gatetables._together([*map(one, names), one("contrast:1", "b"), clean, certified])
    assert [row["what"] for row in told] == [
        "fgsm linf 0.1 under 6 corruptions, 360 images", "fgsm linf 0.1 under contrast:1, 360 images", clean["what"],
        certified["what"],
    ]  # fmt: skip
    assert told[0]["command"].endswith("--max-images 360 --corruption contrast,motion-blur:2 --base")
