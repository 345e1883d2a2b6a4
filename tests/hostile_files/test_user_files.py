"""Any content of the user's TOML files is read, or gives one error that names what is wrong."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.fuzzing import damaged, examples, program, require_one_error

TOML = [
    "inf",
    "-inf",
    "nan",
    "0",
    "-1",
    "1e308",
    "9" * 400,
    "9" * 5000,
    "0x" + "f" * 9000,
    "true",
    '"x"',
    "[]",
]
TOML += [
    "{}",
    "[[1]]",
    "1979-05-27",
    "1979-05-27T07:32:00Z",
    '""',
    '"\\u001b]0;x\\u0007"',
    "{ a = { b = 1 } }",
]
TOML += [
    "[" * 2_000,
    "[" * 200 + "]" * 200,
    '"%s"' % ("x" * 5000),
    "'''\n\x1b'''",
    "1.5",
    "-9223372036854775809",
]
VALUES = st.sampled_from(TOML)
OPTIONS = ["model", "preset", "temperature", "top-p", "top-k", "seed", "max-new-tokens", "json", "context"]
OPTIONS += [
    "device",
    "device-memory",
    "template",
    "endpoint",
    "offline",
    "system",
    "mode",
    "compile",
    "nothing",
]
SETTINGS = ["dtype", "quantization", "nested_quantization", "attention", "cache", "compile", "offload"]
SETTINGS += ["assistant", "compact", "inherits", "summary", "cuda", "cpu", "other"]
OWN = ["repository", "revision", "template", "adapter", "endpoint", "system", "sampling", "more"]
NUMBER_KEYS = ["temperature", "top-p", "top_k", "min-p", "repetition-penalty", "seed", "max-new-tokens", "x"]


@st.composite
def user_file(draw: st.DrawFn) -> tuple[str, bytes]:
    """A name in the config folder, and what it holds."""
    name = draw(st.sampled_from(["config.toml", "models.toml", "presets/own.toml"]))
    value = draw(VALUES)
    if name == "config.toml":
        text = f"{draw(st.sampled_from(OPTIONS))} = {value}"
    elif name == "models.toml":
        inner = draw(st.sampled_from(NUMBER_KEYS))
        text = draw(st.sampled_from([
            f"[mine]\nrepository = 'demo'\n{draw(st.sampled_from(OWN))} = {value}",
            f"[mine]\nrepository = 'demo'\nsampling = {{ {inner} = {value} }}",
            f"mine = {value}",
            f'["{draw(st.text(max_size=5))}"]\nrepository = {value}',
        ]))  # fmt: skip
    else:
        key = draw(st.sampled_from(SETTINGS))
        text = draw(st.sampled_from([f'inherits = "exact"\n{key} = {value}', f"[cpu]\n{key} = {value}"]))
    return name, draw(damaged(text.encode("utf-8", "surrogatepass")))


@examples(100)
@given(file=user_file())
def test_any_file_of_the_user_s_own_is_read_or_refused(file: tuple[str, bytes], folder: Path) -> None:
    name, data = file
    path = folder / "home" / "config" / name
    path.write_bytes(data)
    try:
        require_one_error(program("plan", "-m", "mine" if name == "models.toml" else "demo"), (0, 2, 4, 5))
    finally:
        path.unlink()
