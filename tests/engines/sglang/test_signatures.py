"""The stand-in, which the engine's tests run on, held against SGLang's own sources. Nothing of
SGLang is imported.

PENSTOCK_SGLANG is the folder of its package; scripts/test_sglang.sh downloads it.
"""

import ast
import os
from pathlib import Path

import pytest

from penstock.engines.sglang.options import _NOT_HERE, argument_names
from penstock.engines.sglang.translation import sampling_params
from penstock.types import Sampling, StructuredOutput

pytestmark = pytest.mark.sglang

STAND_IN = Path(__file__).parents[2] / "support" / "sglang_standin" / "sglang"
MANAGER = "srt/managers/tokenizer_manager.py"
INHERITED = {
    MANAGER: "srt/managers/tokenizer_control_mixin.py",
    "srt/entrypoints/engine.py": "srt/entrypoints/engine_score_mixin.py",
}
"""Where a class gets methods from that its own file does not have."""
OWN = {"load", "unload", "answers", "increments", "output", "joined", "cached", "answer"}
OWN |= {"embeddings", "scores", "__init__"}
"""Methods of the stand-in's manager that Penstock does not call."""


@pytest.fixture(scope="module")
def real():
    folder = os.environ.get("PENSTOCK_SGLANG")
    if not folder:
        pytest.skip("PENSTOCK_SGLANG does not say where SGLang's sources are")
    return Path(folder)


def classes(file):
    return {
        node.name: node
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    }


def methods(node):
    return {
        part.name: part
        for part in node.body
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def real_methods(real, file, name):
    found = methods(classes(real / file)[name])
    if file in INHERITED:
        for mixin in classes(real / INHERITED[file]).values():
            found = {**methods(mixin), **found}
    return found


def fields(node):
    return {ast.unparse(part.target): part for part in node.body if isinstance(part, ast.AnnAssign)}


def parameters(function):
    """Name → (position, None where it is given by name, has a default)."""
    given = function.args
    positional = given.posonlyargs + given.args
    without = len(positional) - len(given.defaults)
    named = {arg.arg: (place, place >= without) for place, arg in enumerate(positional)}
    by_name = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return named | {arg.arg: (None, default is not None) for arg, default in by_name}


@pytest.mark.parametrize(
    ("file", "name"), [("srt/entrypoints/engine.py", "Engine"), (MANAGER, "TokenizerManager")]
)
def test_methods_are_called_as_sglang_declares_them(real, file, name):
    theirs = real_methods(real, file, name)
    ours = methods(classes(STAND_IN / file)[name])
    used = [ours[each] for each in ours if each not in OWN or name == "Engine"]
    assert used
    for function in used:
        other = theirs[function.name]
        assert type(function) is type(other), f"{function.name} is not asynchronous in one of them"
        declared = parameters(other)
        for parameter, (place, optional) in parameters(function).items():
            assert parameter in declared, f"{function.name} has no '{parameter}'"
            # The engine's are all given by name.
            if place is not None and name == "TokenizerManager":
                assert declared[parameter][0] == place, (
                    f"{function.name}: '{parameter}' is at another place"
                )
            assert declared[parameter][1] == optional, (
                f"{function.name}: '{parameter}' is (not) optional"
            )
        needed = {each for each, (_, optional) in declared.items() if not optional}
        assert needed <= parameters(function).keys(), f"{function.name} needs more arguments"


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (
            "srt/managers/io_struct.py",
            [
                "ContinueGenerationReqInput",
                "FlushCacheReqOutput",
                "LoRAUpdateOutput",
                "PauseGenerationReqInput",
                "ReleaseMemoryOccupationReqInput",
                "ResumeMemoryOccupationReqInput",
            ],
        ),
        ("srt/managers/load_snapshot.py", ["LoadSnapshot"]),
        ("srt/sampling/sampling_params.py", ["SamplingParams"]),
    ],
)
def test_structures_have_the_fields(real, file, names):
    theirs, ours = classes(real / file), classes(STAND_IN / file)
    assert ours.keys() == set(names)
    for name in names:
        for field, declared in fields(ours[name]).items():
            assert field in fields(theirs[name]), f"{name} has no {field}"
            assert (declared.value is None) == (fields(theirs[name])[field].value is None), (
                f"{name}.{field}"
            )


def test_everything_that_is_imported_is_there(real):
    model = Path(sampling_params.__code__.co_filename).with_name("model.py")
    found = [
        node for node in ast.walk(ast.parse(model.read_text())) if isinstance(node, ast.ImportFrom)
    ]
    ours = {
        node.module: node.names
        for node in found
        if node.module and node.module.startswith("sglang.")
    }
    assert ours
    for module, names in ours.items():
        assert {alias.name for alias in names} <= classes(
            real.parent / f"{module.replace('.', '/')}.py"
        ).keys()


def test_server_arguments_are_found_under_their_names(real):
    theirs = argument_names(real)
    order = ast.parse((real / "srt/arg_groups/field_order.py").read_text())
    stated = {
        ast.literal_eval(entry)
        for node in order.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for entry in node.value.elts
    }
    assert len(stated) > 300
    assert stated <= theirs
    assert argument_names(STAND_IN) <= theirs
    assert _NOT_HERE.keys() <= theirs


def test_attributes_and_keys_that_are_read_are_set(real):
    manager = (real / MANAGER).read_text()
    for attribute in (
        "tokenizer",
        "model_config",
        "is_generation",
        "max_req_input_len",
        "context_len",
    ):
        assert f"self.{attribute} = " in manager
    assert "self.vocab_size = " in (real / "srt/configs/model_config.py").read_text()
    for key in ("finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens"):
        assert f'"{key}": recv_obj' in manager
    for key in (
        "text",
        "output_ids",
        "meta_info",
        "output_token_logprobs",
        "output_top_logprobs",
        "embedding",
    ):
        assert f'"{key}"' in manager
    assert "max_req_len - 5" in (real / "srt/managers/tp_worker.py").read_text()
    assert "self.max_req_len - input_len - 1" in (real / "srt/managers/scheduler.py").read_text()
    scheduler = [
        real / "srt/managers/scheduler.py",
        *(real / "srt/managers/scheduler_components").glob("*.py"),
    ]
    assert any('"effective_max_running_requests_per_dp"' in file.read_text() for file in scheduler)


def test_importing_it_sets_the_policy_of_event_loops(real):
    # So that loops that were there before are not the current one any more.
    for package in (real, STAND_IN):
        assert (
            "\nasyncio.set_event_loop_policy("
            in (package / "srt/entrypoints/engine.py").read_text()
        )


def test_sampling_parameters_have_sglangs_names(real):
    declared = fields(classes(real / "srt/sampling/sampling_params.py")["SamplingParams"])
    for structured in (StructuredOutput("json_schema", "{}"), StructuredOutput("regex", "a")):
        everything = Sampling(stop=("a",), stop_token_ids=(1,), seed=1, structured=structured)
        assert sampling_params(everything, 1).keys() <= declared.keys()


def test_sglangs_processes_end_with_their_parent(real):
    for file in ("scheduler", "detokenizer_manager", "data_parallel_controller"):
        assert (
            "    kill_itself_when_parent_died()" in (real / f"srt/managers/{file}.py").read_text()
        )
