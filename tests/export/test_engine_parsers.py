"""What is written for other engines, read by the engines' own parsers, where they are installed.

None of them is among the tools of this project: with vLLM, SGLang, Ray or SkyPilot in an environment, this file tells
whether their present versions still take what is written. ``docs/deploy.md`` names the versions that did.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from draftsmith.cli import main
from tests.support.tiny import tiny_folder

K = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and two drafts, one of them with other tokens."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("target", 0), ("draft", 1)):
        tiny_folder(folder / name, seed=seed)
    tiny_folder(folder / "other", swap=True)
    return folder


def exported(models: Path, out: Path, engine: str, draft: str = "draft") -> Path:
    options = ["--target", str(models / "target"), "--num-draft-tokens", str(K)]
    assert main(["export", engine, str(models / draft), str(out), *options]) == 0
    return out


def module(name: str) -> Any:
    """An engine's module, whose warnings at import are its own."""
    pytest.importorskip(name.partition(".")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return import_module(name)
        except (ImportError, OSError) as error:
            pytest.skip(f"{name} cannot be imported here: {error}")


def parsed_by_vllm(arguments: Sequence[str]) -> Any:
    parsers, cli = module("vllm.utils.argparse_utils"), module("vllm.entrypoints.common.cli_args")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = cli.make_arg_parser(parsers.FlexibleArgumentParser(prog="vllm serve"))
        return parser.parse_args(list(arguments))


@pytest.fixture
def on_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser of vLLM's build for GPUs wants to know a device, and here there may be none."""
    platforms = module("vllm.platforms")
    if not platforms.current_platform.device_type:
        monkeypatch.setattr(platforms, "_current_platform", module("vllm.platforms.cpu").CpuPlatform())


@pytest.mark.usefixtures("on_processor")
@pytest.mark.parametrize("draft", ["draft", "other"])
def test_vllm(models: Path, tmp_path: Path, draft: str) -> None:
    """The config file through ``--config``, KServe's arguments, and both drafts' settings by vLLM's own class."""
    out = exported(models, tmp_path / "pair", "vllm", draft)
    arguments = module("vllm.engine.arg_utils")
    fields = {field.name for field in dataclasses.fields(module("vllm.config.speculative").SpeculativeConfig)}
    container = yaml.safe_load((out / "kserve.yaml").read_text())["spec"]["predictor"]["containers"][0]
    for given in (["serve", "--config", str(out / "vllm.yaml")], container["args"]):
        found = parsed_by_vllm(given)
        speculative = found.speculative_config
        assert speculative["model"] == str(out / "draft")
        assert speculative["num_speculative_tokens"] == K
        assert speculative.get("use_heterogeneous_vocab", False) == (draft == "other")
        assert speculative.keys() <= fields
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine = arguments.EngineArgs.from_cli_args(found)
        assert engine.model == str(models / "target")
        assert engine.speculative_config == speculative
    with pytest.raises(SystemExit):
        parsed_by_vllm([*container["args"], "--no-such-option=1"])


def test_sglang(models: Path, tmp_path: Path) -> None:
    """The config file as ``--config`` merges it, and KServe's arguments."""
    out = exported(models, tmp_path / "pair", "sglang")
    server, merger = module("sglang.srt.server_args"), module("sglang.srt.utils.server_args_config_parser")
    parser = argparse.ArgumentParser()
    server.ServerArgs.add_cli_args(parser)
    container = yaml.safe_load((out / "kserve.yaml").read_text())["spec"]["predictor"]["containers"][0]
    merged = merger.ConfigArgumentMerger(parser).merge_config_with_args(["--config", str(out / "sglang.yaml")])
    for given in (merged, container["args"]):
        found = parser.parse_args(given)
        assert found.model_path == str(models / "target")
        assert found.speculative_algorithm == "STANDALONE"
        assert found.speculative_draft_model_path == str(out / "draft")
        assert (found.speculative_num_steps, found.speculative_eagle_topk) == (K, 1)
        assert found.speculative_num_draft_tokens == K + 1
    with pytest.raises(SystemExit):
        parser.parse_args([*container["args"], "--no-such-option=1"])


def test_ray_serve(models: Path, tmp_path: Path) -> None:
    """The deployment by Ray's schema; the engine's part of it by vLLM's arguments."""
    out = exported(models, tmp_path / "pair", "vllm")
    deployment = yaml.safe_load((out / "ray-serve.yaml").read_text())
    schema = module("ray.serve.schema").ServeDeploySchema
    read = schema.model_validate(deployment)
    assert read.applications[0].import_path == "ray.serve.llm:build_openai_app"
    engine = deployment["applications"][0]["args"]["llm_configs"][0]["engine_kwargs"]
    with pytest.raises(ValueError, match="import_path"):
        schema.model_validate({"applications": [{**deployment["applications"][0], "import_path": "nonsense"}]})
    known = {field.name for field in dataclasses.fields(module("vllm.engine.arg_utils").EngineArgs)}
    assert engine.keys() <= known
    assert json.loads(json.dumps(engine["speculative_config"]))["method"] == "draft_model"


def test_skypilot(repository: Path) -> None:
    """The training example by SkyPilot's schema."""
    jsonschema, schemas = module("jsonschema"), module("sky.utils.schemas")
    task = yaml.safe_load((repository / "examples" / "train.sky.yaml").read_text())
    jsonschema.validate(task, schemas.get_task_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**task, "no_such_field": 1}, schemas.get_task_schema())
