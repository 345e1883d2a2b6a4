"""`localgemma prompts` and `--prompt`, in the real program."""

import json
import stat
from pathlib import Path

import pytest
from support.program import Program
from support.terminal import Terminal


def saved(program: Program, name: str, text: str) -> Path:
    path = program.config / "prompts" / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def user_text(program: Program, *words: str, stdin: str | None = None) -> str:
    done = program("prompt", "--json", *words, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["text"].split("user\n", 1)[1].split("<end_of_turn>")[0]


def test_a_call_s_options_are_saved_in_a_private_file(program: Program) -> None:
    (program.folder / "system.txt").write_text("Two\nlines\n")
    words = ["-m", "./model", "--mode", "factual", "--no-compile", "--system-file", "system.txt", "--json"]
    program = program.with_environment(LOCALGEMMA_SEED="3")  # of this shell, not of the prompt
    done = program("prompts", "save", "ask", *words, "--field", "n=3", "Name", "{n} {input}.")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == 'Saved. Use it with: localgemma -p ask "TEXT"\n'
    path = program.config / "prompts" / "ask.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(program("prompts", "show", "ask", "--json").stdout) == {
        "name": "ask",
        "path": str(path),
        "prompt": "Name {n} {input}.",
        "fields": {"n": "3"},
        "options": {
            "model": str(program.folder / "model"),
            "mode": "factual",
            "compile": False,
            "json": True,
            "system": "Two\nlines\n",
        },
    }
    assert program("prompts", "show", "ask").stdout == path.read_text()
    again = program("prompts", "save", "ask", "-", stdin="Other")
    assert (again.returncode, path.read_text().count("Name")) == (2, 1)
    assert program("prompts", "save", "--replace", "ask", "-", stdin="Other\n").returncode == 0
    assert path.read_text() == 'prompt = "Other"\n'


def test_a_schema_is_saved_not_the_name_of_its_file(program: Program) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    (program.folder / "schema.json").write_text(json.dumps(schema, indent=1))
    assert program("prompts", "save", "p", "--schema", "schema.json", "What is a?").returncode == 0
    text = (program.config / "prompts" / "p.toml").read_text()
    assert text == f"prompt = \"What is a?\"\nschema = '{json.dumps(schema)}'\n"
    assert program("-m", "demo", "-q", "-p", "p").stdout == '{"a": 1}\n'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["../x", "text"], "Not a valid name for a prompt: '../x'."),
        (["x"], "Nothing to save."),
        (["x", "{a"], "The prompt has a brace without its partner or a name: '{a'."),
        (["x", "--choice", "a,b", "-x", "text"], "--choice and --extract cannot be used together."),
        (["x", "--schema", "{", "text"], "--schema cannot be used: it is not JSON"),
        (["x", "--field", "a=1", "text"], "The prompt has no field 'a'."),
        (
            ["x", "--temperature", "9999", "text"],
            "--temperature must be between 0.001 and 1000, or 0 (got 9999.0).",
        ),
    ],
)
def test_what_cannot_be_saved_is_wrong_usage(program: Program, words: list[str], message: str) -> None:
    done = program("prompts", "save", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"localgemma: {message}")
    assert not (program.config / "prompts").exists()


def test_the_command_line_overrides_the_prompt_which_overrides_config_toml(program: Program) -> None:
    (program.config / "config.toml").write_text('model = "nonsense"\nsystem-file = "missing"\n')
    saved(program, "p", 'model = "demo"\nsystem = "Of the prompt."\nprompt = "Say {input} in {lang}"\n')
    assert (
        user_text(program, "-p", "p", "--field", "lang=German", "hi") == "Of the prompt.\n\nSay hi in German"
    )
    by_flag = user_text(program, "-p", "p", "-s", "Of the flag.", "--field", "lang=x", stdin="piped\n")
    assert by_flag == "Of the flag.\n\nSay piped in x"
    (program.folder / "system.txt").write_text("Of the file.")
    by_file = user_text(program, "-pp", "--system-file", "system.txt", "--field=lang=x", "hi", stdin="all")
    assert by_file == "Of the file.\n\nSay hi\n\nall in x"


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ('prompt = "{a}"', ["-p", "p", "hi"], "The prompt p needs a value for: a."),
        ('prompt = "{input}"', ["-p", "p"], "The prompt p needs an input."),
        (
            "temperature = 9999",
            ["-p", "p", "hi"],
            "temperature in {path} must be between 0.001 and 1000, or 0 (got 9999.0).",
        ),
        ('temperature = "warm"', ["-p", "p", "hi"], "temperature in {path} must be a number (got 'warm')."),
        ("", ["--field", "a=1", "hi"], "--field needs --prompt."),
    ],
)
def test_what_is_wrong_with_a_call_is_named(
    program: Program, text: str, words: list[str], message: str
) -> None:
    path = saved(program, "p", text)
    done = program(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == f"localgemma: {message.format(path=path)}"


def test_a_broken_file_hides_no_other_prompt(program: Program) -> None:
    saved(program, "broken", "prompt = ")
    saved(program, "role", 'system = "Be brief."\n')
    done = program("prompts")
    assert (done.returncode, done.stdout) == (0, "role                 system = Be brief.\n")
    assert "broken.toml cannot be read" in done.stderr


def test_removing_asks_on_a_terminal_and_needs_yes_elsewhere(program: Program) -> None:
    path = saved(program, "p", 'prompt = "x"\n')
    done = program("prompts", "rm", "p")
    assert (done.returncode, done.stderr.splitlines()[1]) == (2, "  Run: localgemma prompts rm --yes p")
    with Terminal(program, ["prompts", "rm", "p"]) as terminal:
        terminal.wait("Remove p for good")
        terminal.type("n\r")
        assert terminal.wait_for_end(120) == 0
    assert path.exists()
    assert program("prompts", "rm", "p", "missing", "--yes").returncode == 4
    assert path.exists()
    assert program("prompts", "rm", "p", "--yes").stdout == "removed p\n"
    assert not path.exists()
