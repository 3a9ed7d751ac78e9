"""The pages say what is: tables come from records, commands exist, links lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from docs.blocks import blocks
from robustkt.cli.company import SHARED
from tests.conftest import command_line

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IN_CONTAINER = re.compile(r"^.*docker (run .* robustkt(:\w+)?|compose run --rm \w+) ")  # all before the command
LAUNCHED = re.compile(r"^torchrun .* -- ")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return importlib.import_module("benchmarks.tables")


def test_tables_are_those_of_the_records(tables: ModuleType) -> None:
    for page in tables.PAGES:
        text = page.read_text()
        assert tables.BLOCK.search(text), f"{page.name} has lost its tables"
        assert tables.rendered(text) == text, f"{page.name} is stale: python -m benchmarks.tables"


def test_every_table_and_value_is_on_a_page(tables: ModuleType) -> None:
    pages = "".join(page.read_text() for page in tables.PAGES)
    shown = {match[2] for pattern in (tables.BLOCK, tables.INLINE) for match in pattern.finditer(pages)}
    assert {*tables.TABLES, *tables.VALUES} - shown == set()


NUMBER = re.compile(r"(?<![\w.-])\d+(?:,\d{3})*(?:\.\d+)?")
COUNT = r"(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|twenty|half|few|several|an?)"
SHARE = r"(half|third|quarter|fifth|sixth|seventh|eighth|ninth|tenth|\w+teenth|\w+tieth)s?"
FINDINGS = (rf"{COUNT}( (to|or|and a) {COUNT})? (points?|times|per ?cent)", rf"{COUNT} {SHARE}", "twice|thrice")
FINDING = re.compile("|".join(rf"\b({words})\b" for words in FINDINGS), re.IGNORECASE)
LEVELS = {"95", "99"}  # of intervals


def _settings(table: str) -> str:
    """What a table says of how it was measured: its header, the first cell of each row, and the lines under it."""
    lines = [line for line in table.splitlines() if not line.startswith("<!--")]
    head, *body = (line for line in lines if line.startswith("|"))
    return "\n".join([head, *(row.split("|")[1] for row in body), *(line for line in lines if line[:1] != "|")])


def test_every_number_in_the_results_comes_from_a_record(tables: ModuleType) -> None:
    """In sentences stand settings of the section's tables, and values that are computed; findings are no words."""
    for section in re.split(r"^## ", (ROOT / "docs" / "results.md").read_text(), flags=re.MULTILINE)[1:]:
        settings = [_settings(m[0]) for m in tables.BLOCK.finditer(section)]
        known = {number.replace(",", "") for told in settings for number in NUMBER.findall(told)} | LEVELS
        prose = re.sub(r"`[^`]*`|\b\d{4}\.\d{5}\b", "", tables.INLINE.sub("", tables.BLOCK.sub("", section)))
        strange = {number for number in NUMBER.findall(prose) if number.replace(",", "") not in known}
        title = section.splitlines()[0]
        assert not strange, f"{title}: {strange} are settings of none of its tables; see benchmarks/values.py"
        assert not FINDING.search(prose), f"{title}: {FINDING.search(prose)}: write it as a number"


def _under_tables() -> list[str]:
    told = re.findall(r"`python -m (benchmarks\.[^`]+)`", (ROOT / "docs" / "results.md").read_text())
    return sorted({command for command in told if not command.endswith((".tables", ".figures"))})


@pytest.mark.parametrize("command", _under_tables())
def test_the_command_under_a_table_is_one_of_its_script(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the script requires is in it, and nothing that the script does not know."""
    module, *words = shlex.split(command)
    if module == "benchmarks.parity":
        pytest.importorskip("torchattacks", reason="torchattacks is not installed: pip install --no-deps torchattacks")
    parse = argparse.ArgumentParser.parse_args

    def once(self: argparse.ArgumentParser) -> None:
        parse(self)
        raise KeyboardInterrupt  # it would begin to measure

    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", once)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(module).main()


def test_pictures_are_those_of_the_records() -> None:
    figures = importlib.import_module("benchmarks.figures")
    for name, make in figures.FIGURES.items():
        first = (ROOT / "docs" / "images" / f"{name}.svg").read_text().splitlines()[0]
        assert first == f"<!-- {figures.digest(make())} -->", f"{name} is stale: python -m benchmarks.figures"


def test_values_stand_within_lines(tables: ModuleType) -> None:
    for page in tables.PAGES:  # at the start of a line a comment would end the paragraph
        assert not re.search(r"^\s*<!-- value:", page.read_text(), re.MULTILINE), page.name


def test_a_changed_number_is_noticed(tables: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    number = re.search(r"\| (\d\d\.\d) \|", text)
    assert number
    assert tables.rendered(text.replace(number[0], "| 12.3 |", 1)) != text.replace(number[0], "| 12.3 |", 1)


@pytest.mark.parametrize("record", sorted((ROOT / "benchmarks" / "records").glob("*.json")), ids=lambda p: p.name)
def test_records_name_no_place_of_the_machine_that_made_them(record: Path) -> None:
    assert not re.search(r'"(/|[A-Za-z]:\\\\|file:|~)', record.read_text())


def _blocks(kind: str) -> list[str]:
    """The blocks of one language in the page on scale."""
    text = (ROOT / "docs" / "scale.md").read_text()
    return [body for told, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) if told == kind]


def _launched() -> list[list[str]]:
    """What torchrun starts in the page on scale, word by word, after its own options."""
    scripts = "".join(_blocks("bash") + _blocks("sbatch")).replace("\\\n", " ")
    found = [shlex.split(line) for line in scripts.splitlines() if "torchrun" in line]
    jobs = [job for block in _blocks("yaml") for job in yaml.safe_load_all(block) if job["kind"] == "TrainJob"]
    found += [[*job["spec"]["trainer"]["command"], *job["spec"]["trainer"]["args"]] for job in jobs]
    return found


def test_commands_for_several_machines_are_ones_that_torchrun_and_we_understand() -> None:
    from torch.distributed.run import get_args_parser

    assert len(_launched()) >= 6
    for words in _launched():
        place = words.index("robustkt")
        mine = [word for word in words[words.index("torchrun") + 1 : place] if word != "--"]
        replaced = ["2" if word.startswith("$") else word for word in mine]
        told = get_args_parser().parse_args([*replaced, "robustkt"])
        assert told.module
        name, *rest = words[place + 1 :]
        assert name in SHARED
        command_line().commands[name].make_context(name, rest)  # raises where an option is unknown or lacks its value


def test_the_batch_script_and_the_manifests_are_well_formed() -> None:
    (script,) = _blocks("sbatch")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert all(line.startswith("#SBATCH --") for line in script.splitlines() if "SBATCH" in line)
    (block,) = _blocks("yaml")
    runtime, job = yaml.safe_load_all(block)
    assert (runtime["kind"], job["kind"]) == ("TrainingRuntime", "TrainJob")
    assert job["spec"]["runtimeRef"] == {"kind": runtime["kind"], "name": runtime["metadata"]["name"]}
    trainer = job["spec"]["trainer"]
    assert f"world_size={trainer['numNodes'] * trainer['numProcPerNode']}" in trainer["args"]
    assert all(isinstance(word, str) for word in trainer["args"])


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def _commands() -> list[str]:
    found: list[str] = []
    for page in PAGES:
        for block in blocks(page):
            lines = [LAUNCHED.sub("", IN_CONTAINER.sub("robustkt ", line)) for line in block.commands]
            lines = [re.sub(r"^- (run: )?", "", line) for line in lines]  # a step of CI
            found += [line for line in lines if line.startswith("robustkt ") and block.language in ("bash", "yaml")]
        found += [c for c in re.findall(r"`(robustkt [^`]*)`", page.read_text()) if "…" not in c]
    return sorted({re.sub(r"\s+", " ", command) for command in found})


@pytest.mark.parametrize("command", _commands())
def test_every_command_in_the_pages_is_understood(command: str) -> None:
    _, *words = shlex.split(command)
    tree: Any = command_line()
    if not words or words[0].startswith("-"):
        return
    while words and words[0] in getattr(tree, "commands", {}):
        tree = tree.commands[words.pop(0)]
    assert not hasattr(tree, "commands"), f"{command} names no command"
    options = {name: option for option in tree.params for name in (*option.opts, *option.secondary_opts)}
    unknown = [w for w in words if re.match(r"--?[a-z]", w) and w.partition("=")[0] not in options]
    assert not unknown, f"{tree.name} has no {unknown}"
    if words:  # else it is a command's name in a sentence
        tree.make_context(tree.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_no_index_host_and_no_machine_path_is_named() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--index-url|--find-links|file:", lock)
    assert lock.count("--hash=sha256:") > 500


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return importlib.import_module("docs.generate")


def test_what_is_written_from_the_code_is_that_of_the_code(generator: ModuleType) -> None:
    used = set()
    for page in generator.pages():
        text = page.read_text()
        used |= {match[2] for match in generator.BLOCK.finditer(text)}
        assert generator.rendered(text) == text, f"{page} is stale: python -m docs.generate"
    assert used == set(generator.PARTS)


@pytest.mark.parametrize(
    ("page", "old"),
    [
        ("objectives.md", "`temperature=30.0`"), ("reference/cli.md", "`--simultaneous`"),
        ("reference/formats.md", "| `last_weights` |"), ("reference/api.md", "alpha: float = 0.001"),
        ("reference/names.md", "| `dualtoken` |"), ("reference/errors.md", "| `DivergedError` |"),
    ],
)  # fmt: skip
def test_a_stale_part_is_noticed(generator: ModuleType, page: str, old: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert old in text
    assert generator.rendered(text.replace(old, "gone")) == text


def test_every_field_that_is_stored_has_a_remark(generator: ModuleType) -> None:
    text = (ROOT / "docs" / "reference" / "formats.md").read_text()
    assert not re.search(r"^\| `.*\|\s*\|$", text, re.MULTILINE)


def test_every_command_and_function_has_its_section() -> None:
    from robustkt import api
    from robustkt.cli import FAMILIES

    commands = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert [n for names in FAMILIES.values() for n in names if f"\n## {n}\n" not in commands] == []
    functions = (ROOT / "docs" / "reference" / "api.md").read_text()
    assert [name for name in api.__all__ if f"\n## {name}\n" not in functions] == []
