"""The structure of the package: which module may import which, and where each is tested."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "localgemma_cli"  # the source: the demo's training is not installed
FLOORS = {
    "__main__": 7,
    "cli": 6,
    "commands": 6,
    "batch": 5,
    "bench": 5,
    "chat": 5,
    "serve": 5.1,
    "warm": 5,
    "backends": 4,
    "backends.llamacpp": 4.1,
    "backends.pytorch": 4.6,
    "backends.pytorch.generation": 4.5,
    "backends.pytorch.loading": 4.4,
    "backends.pytorch.lora": 4.3,
    "backends.pytorch.layers": 4.2,
    "backends.pytorch.kernels": 4.1,
    "backends.pytorch.weights": 4.0,
    "planning": 3,
    "prompts": 3,
    "render": 3,
    "sessions": 3,
    "models": 2,
    "config": 1,
    "constraint": 1,
    "conversation": 1,
    "command_options": 1,
    "documents": 1,
    "environment": 1,
    "errors": 1,
    "events": 1,
    "optional_dependencies": 1,
    "option_spec": 1,
    "prompt_template": 1,
    "saved_prompts": 1,
    "options": 1,
    "redaction": 1,
    "sampling": 1,
    "sanitize": 1,
    "text": 1,
    "text_score": 1,
    "types": 1,
    "units": 1,
}
# A module `a/b.py` is tested in tests/a/test_b.py, or in the file named here.
TESTED_IN = {
    "__main__.py": "test_interrupted_start.py",
    "backends/answer_stream.py": "backends/pytorch/test_backend.py",
    "backends/base.py": "backends/pytorch/test_backend.py",
    "backends/http/text_filters.py": "backends/http/test_sse.py",
    "backends/http/backend.py": "backends/http/test_hostile.py",
    "backends/http/detect.py": "commands/test_endpoint.py",
    "backends/http/dialect.py": "backends/http/test_endpoint.py",
    "backends/http/server_errors.py": "backends/http/test_endpoint.py",
    "backends/http/fallbacks.py": "commands/test_endpoint.py",
    "backends/http/notices.py": "backends/http/test_before_connecting.py",
    "backends/http/openai.py": "backends/http/test_sse.py",
    "backends/http/proxy_settings.py": "backends/http/test_before_connecting.py",
    "backends/http/rockchip.py": "commands/test_rockchip.py",
    "backends/http/transport.py": "backends/http/test_deadlines.py",
    "backends/llamacpp/parameters.py": "backends/llamacpp/test_backend.py",
    "backends/llamacpp/process.py": "backends/llamacpp/test_backend.py",
    "backends/llamacpp/worker.py": "backends/llamacpp/test_backend.py",
    "backends/scored_token.py": "backends/pytorch/generation/test_token_scores.py",
    "text_score.py": "commands/test_score.py",
    "backends/llamacpp/scoring.py": "backends/llamacpp/test_llamacpp_scoring.py",
    "backends/pytorch/generation/cpu_step_calls.py": "backends/pytorch/generation/test_cpu_step.py",
    "backends/pytorch/generation/cpu_step_support.py": "backends/pytorch/generation/test_cpu_step.py",
    "backends/pytorch/generation/kv_cache.py": "backends/pytorch/generation/test_decode.py",
    "backends/pytorch/generation/row_step.py": "backends/pytorch/test_rows.py",
    "backends/pytorch/kernels/nf4.py": "backends/pytorch/weights/test_quantize_nf4.py",
    "backends/pytorch/layers/nf4.py": "backends/pytorch/weights/test_quantize_nf4.py",
    "backends/pytorch/loading/assemble.py": "backends/pytorch/test_families.py",
    "backends/pytorch/loading/completeness.py": "models/test_load_errors.py",
    "backends/pytorch/loading/convert_4bit.py": "backends/pytorch/weights/test_quantize_nf4.py",
    "backends/pytorch/loading/gpu_4bit.py": "backends/pytorch/weights/test_gpu_streaming.py",
    "backends/pytorch/loading/load_4bit.py": "backends/pytorch/weights/test_gpu_streaming.py",
    "backends/pytorch/loading/loader.py": "backends/pytorch/loading/test_quirks.py",
    "backends/pytorch/loading/quantized_file.py": "backends/pytorch/weights/test_quantize_nf4.py",
    "backends/pytorch/loading/transformers_config.py": "backends/pytorch/test_families.py",
    "backends/pytorch/lora/full_weights.py": "backends/pytorch/lora/test_adapter_forms.py",
    "backends/pytorch/lora/adapter_weights.py": "backends/pytorch/lora/test_refused_adapters.py",
    "backends/pytorch/lora/attach.py": "backends/pytorch/lora/test_adapters.py",
    "backends/pytorch/layers/int4.py": "backends/pytorch/loading/test_awq.py",
    "backends/pytorch/weights/groups.py": "backends/pytorch/kernels/test_grouped.py",
    "commands/removal.py": "commands/test_prompts.py",
    "commands/torchrun.py": "backends/pytorch/test_tensor_parallel.py",
    "batch/answer_rows.py": "commands/test_batch.py",
    "batch/batch_run.py": "commands/test_batch.py",
    "batch/read_ahead.py": "commands/test_batch.py",
    "batch/results.py": "commands/test_batch.py",
    "batch/resume.py": "commands/test_batch.py",
    "batch/stopping.py": "commands/test_batch.py",
    "batch/unique_ids.py": "batch/test_rows.py",
    "bench/__main__.py": "commands/test_bench.py",
    "bench/bandwidth.py": "bench/test_engines.py",
    "bench/engine.py": "bench/test_engines.py",
    "bench/gauges.py": "bench/test_engines.py",
    "bench/host_peak.py": "bench/test_engines.py",
    "bench/job.py": "bench/test_engines.py",
    "bench/machine.py": "commands/test_bench.py",
    "bench/prompts.py": "bench/test_engines.py",
    "bench/random_weights.py": "bench/test_engines.py",
    "bench/reference.py": "bench/test_engines.py",
    "bench/report.py": "commands/test_bench.py",
    "bench/run.py": "commands/test_bench.py",
    "bench/subprocess_runner.py": "bench/test_engines.py",
    "bench/table.py": "commands/test_bench.py",
    "bench/timed_backend.py": "bench/test_engines.py",
    "chat/background_load.py": "chat/terminal/test_typed_ahead.py",
    "chat/chat_run.py": "commands/test_chat.py",
    "chat/engine.py": "commands/test_chat.py",
    "chat/engine_choice.py": "commands/test_chat.py",
    "chat/interrupt.py": "chat/terminal/test_interrupting.py",
    "chat/one_shot.py": "commands/test_chat.py",
    "chat/prompt_input.py": "commands/test_chat.py",
    "chat/open_session.py": "commands/test_chat.py",
    "chat/phrases.py": "chat/slash/test_slash_commands.py",
    "chat/prompt_text.py": "chat/terminal/test_paste_tracker.py",
    "chat/slash/actions.py": "chat/slash/test_slash_commands.py",
    "chat/slash/arguments.py": "chat/test_going_on.py",
    "chat/slash/context_view.py": "chat/slash/test_slash_commands.py",
    "chat/slash/outcome.py": "chat/test_chat_session.py",
    "chat/slash/session_commands.py": "chat/slash/test_slash_commands.py",
    "chat/start_engine.py": "commands/test_batch.py",
    "chat/typed_answer.py": "commands/test_typed_answers.py",
    "chat/summary.py": "chat/test_chat_session.py",
    "chat/terminal/clipboard.py": "chat/slash/test_slash_commands.py",
    "chat/terminal/completion.py": "chat/terminal/test_typed_ahead.py",
    "chat/terminal/input_history.py": "test_privacy.py",
    "chat/terminal/keys.py": "chat/terminal/test_paste_tracker.py",
    "chat/terminal/model_runner.py": "chat/terminal/test_interrupting.py",
    "chat/terminal/prompt.py": "chat/terminal/test_typed_ahead.py",
    "chat/terminal/terminal_state.py": "chat/terminal/test_typed_ahead.py",
    "chat/terminal/toolbar.py": "chat/terminal/test_looks.py",
    "chat/turn.py": "backends/pytorch/test_backend.py",
    "cli.py": "hostile_files/test_user_files.py",
    "command_options.py": "test_options.py",
    "commands/serve.py": "serve/test_server.py",
    "commands/prompt.py": "commands/test_chat.py",
    "commands/shell_values.py": "commands/test_completion.py",
    "config.py": "test_documents.py",
    "conversation.py": "sessions/test_store.py",
    "demo/attention.py": "demo/test_model.py",
    "demo/train.py": "demo/test_model.py",
    "errors.py": "hostile_files/test_user_files.py",
    "events.py": "backends/pytorch/test_backend.py",
    "commands/model_listing.py": "commands/test_models.py",
    "models/adapter_config.py": "backends/pytorch/lora/test_refused_adapters.py",
    "models/json_fields.py": "models/test_model_config.py",
    "models/gguf_config.py": "models/test_gguf_header.py",
    "models/hub/cache.py": "models/hub/test_client.py",
    "models/hub/download.py": "models/hub/test_hostile.py",
    "models/hub/gguf_cache.py": "models/hub/test_gguf.py",
    "models/hub/transfer.py": "models/hub/test_client.py",
    "models/fetch.py": "commands/test_names.py",
    "models/hub/consent.py": "commands/test_consent.py",
    "models/safetensors_file.py": "backends/pytorch/loading/test_quantized_cache.py",
    "models/shapes.py": "models/test_model_config.py",
    "option_spec.py": "test_options.py",
    "optional_dependencies.py": "backends/pytorch/lora/test_adapters.py",
    "planning/gguf_settings.py": "backends/llamacpp/test_backend.py",
    "planning/model_options.py": "commands/test_plan.py",
    "planning/prequantized.py": "planning/test_settings.py",
    "prompts/partial_bpe.py": "prompts/test_gguf_tokenizer.py",
    "prompts/markers.py": "prompts/test_template_process.py",
    "prompts/stop_strings.py": "prompts/test_prompt_forms.py",
    "prompts/template_worker.py": "prompts/test_template_process.py",
    "prompts/tokenizer_files.py": "prompts/test_tokenizer.py",
    "prompts/tokenizer_loader.py": "prompts/test_tokenizer.py",
    "render/base.py": "render/test_plain.py",
    "render/blocks.py": "render/test_markdown.py",
    "render/console.py": "render/test_terminal_safety.py",
    "render/highlight.py": "render/test_markdown.py",
    "render/inline.py": "render/test_markdown.py",
    "render/json.py": "render/test_terminal_safety.py",
    "render/messages.py": "render/test_terminal_safety.py",
    "render/theme.py": "render/test_markdown.py",
    "serve/answer_response.py": "serve/test_server.py",
    "serve/api_error.py": "serve/test_chat_request.py",
    "serve/api_key.py": "serve/test_server.py",
    "serve/application.py": "serve/test_guard.py",
    "serve/listeners.py": "serve/test_server.py",
    "serve/reply.py": "serve/test_clients.py",
    "serve/request_fields.py": "serve/test_chat_request.py",
    "serve/serve_run.py": "serve/test_server.py",
    "sessions/database.py": "sessions/test_store.py",
    "sessions/database_file.py": "sessions/test_damage.py",
    "sessions/export_file.py": "sessions/test_formats.py",
    "sessions/names.py": "sessions/test_store.py",
    "sessions/opening.py": "sessions/test_damage.py",
    "sessions/schema.py": "sessions/test_damage.py",
    "sessions/search_index.py": "sessions/test_damage.py",
    "sessions/summaries.py": "sessions/test_store.py",
    "sessions/titles.py": "sessions/test_store.py",
    "sessions/transaction.py": "sessions/test_store.py",
    "commands/ps.py": "warm/test_kept.py",
    "commands/stop.py": "warm/test_kept.py",
    "warm/about.py": "warm/test_wire.py",
    "warm/client.py": "warm/test_server.py",
    "warm/control.py": "warm/test_server.py",
    "warm/folder.py": "warm/test_start.py",
    "warm/inputs.py": "warm/test_key.py",
    "warm/model_thread.py": "warm/test_server.py",
    "warm/process.py": "warm/test_start.py",
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "demo" not in path.parts and path.stem != "__init__")


def imported(path: Path) -> set[str]:
    return names(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def names(nodes: Iterable[ast.AST]) -> set[str]:
    """Dotted names of what these statements import."""
    modules = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def floor(parts: tuple[str, ...]) -> float:
    """The deepest room that FLOORS names."""
    parts = tuple(part.removesuffix(".py") for part in parts)
    return next(FLOORS[name] for n in (3, 2, 1) if (name := ".".join(parts[:n])) in FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_floor_or_below(path: Path) -> None:
    own = floor(path.relative_to(PACKAGE).parts)
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "localgemma_cli" and rest[0] != "__version__":
            assert floor(tuple(rest)) <= own, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_pytorch_backend_and_the_benchmark_import_torch_and_transformers(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    parts = path.relative_to(PACKAGE).parts
    if "pytorch" not in parts and parts[0] != "bench":
        assert not tops & {"torch", "transformers", "accelerate", "bitsandbytes"}


def test_models_prompts_and_llamacpp_load_no_torch_and_no_transformers() -> None:
    """Not even through another module: they serve engines that need neither."""
    rooms = ("models", "prompts", "backends/llamacpp")
    modules = [module_name(path) for room in rooms for path in (PACKAGE / room).rglob("*.py")]
    heavy = ("torch", "transformers", "accelerate", "bitsandbytes")
    code = f"import sys\nimport {', '.join(modules)}\nprint(*({{*{heavy!r}}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def module_level(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The statements that run when a module is imported: all outside of functions and classes."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from module_level(ast.iter_child_nodes(node))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def test_no_modules_import_each_other_in_a_circle() -> None:
    paths = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    graph = {}
    for module, path in paths.items():
        found = names(module_level(ast.parse(path.read_text(encoding="utf-8")).body))
        # `from package import name` imports the module of that name, or else a name of the package
        targets = {name if name in paths else name.rpartition(".")[0] for name in found}
        graph[module] = targets & set(paths)
    TopologicalSorter(graph).prepare()  # a CycleError, which names the modules of the circle


def test_every_module_has_a_test_module() -> None:
    tests = Path(__file__).parent
    modules = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if p.stem != "__init__"}
    own = {path for path in modules if (tests / path).with_name(f"test_{Path(path).name}").exists()}
    add = [f'add     "{path}": "FOLDER/test_….py",' for path in sorted(modules - own - set(TESTED_IN))]
    remove = [f'remove  "{path}": … (no such module)' for path in sorted(set(TESTED_IN) - modules)]
    mend = [
        f'change  "{path}": "{test}", (no such file in tests/)'
        for path, test in TESTED_IN.items()
        if path in modules and not (tests / test).exists()
    ]
    lines = "\n".join(add + remove + mend)
    assert not lines, f"In TESTED_IN of tests/test_floors.py:\n{lines}"
