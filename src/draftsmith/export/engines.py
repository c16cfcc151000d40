"""What the engines are started with: command lines and the files that say the same, for one machine and for many.

Keys and flags are those of vLLM 0.33.0, SGLang 0.5.23, llama.cpp 0c1e57098, Ray Serve 2.60 and KServe 0.21; the tests
check them against docs/schemas/engines.json, and against the engines' own parsers where those are installed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from draftsmith.export.yaml_text import yaml_text

__all__ = [
    "Deployment",
    "launch_command",
    "llama_cpp_files",
    "llama_cpp_speculation",
    "sglang_files",
    "sglang_speculation",
    "vllm_files",
    "vllm_speculation",
]

IMAGES: Final[Mapping[str, str]] = MappingProxyType(
    {"vllm": "vllm/vllm-openai:v0.33.0", "sglang": "lmsysorg/sglang:v0.5.23"}
)
SHORTEST_MATCH: Final = 2  # tokens that have to repeat before a copy is proposed, as in our own prompt lookup
_ON_THIS_MACHINE: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A pair where it will run. ``target`` and ``draft``: paths there, or hub names; ``revision``: of the target on the
    hub. ``name``: what clients call the model. ``folder``: where the export lies there. ``other_tokens``: the draft's
    vocabulary differs. ``tensor_parallel_size`` GPUs share a model, ``max_replicas`` of them serve at most."""

    name: str
    target: str
    draft: str
    folder: str
    num_draft_tokens: int
    max_context: int
    revision: str | None = None
    other_tokens: bool = False
    tensor_parallel_size: int = 1
    max_replicas: int = 4

    @property
    def label(self) -> str:
        """The name as Kubernetes allows it: small letters, digits and dashes, 50 at most."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:50].strip("-") or "model"


def vllm_speculation(draft: str | None, num_draft_tokens: int, *, other_tokens: bool = False) -> dict[str, Any]:
    """What vLLM's ``--speculative-config`` holds; ``draft`` None copies from the text."""
    if draft is None:
        matches = {"prompt_lookup_max": 4, "prompt_lookup_min": SHORTEST_MATCH}
        return {"method": "ngram", "num_speculative_tokens": num_draft_tokens, **matches}
    speculative: dict[str, Any] = {
        "method": "draft_model",
        "model": draft,
        "num_speculative_tokens": num_draft_tokens,
    }
    return {**speculative, "use_heterogeneous_vocab": True} if other_tokens else speculative


def sglang_speculation(draft: str | None, num_draft_tokens: int) -> dict[str, Any]:
    """SGLang's options; ``draft`` None copies from the text.

    A chain of k draft tokens is k steps of the draft with one choice each, checked with the token before them.
    """
    if draft is None:
        return {"speculative-algorithm": "NGRAM", "speculative-num-draft-tokens": num_draft_tokens + 1}
    return {
        "speculative-algorithm": "STANDALONE",
        "speculative-draft-model-path": draft,
        "speculative-num-steps": num_draft_tokens,
        "speculative-eagle-topk": 1,
        "speculative-num-draft-tokens": num_draft_tokens + 1,
    }


def llama_cpp_speculation(draft: str | None, num_draft_tokens: int) -> dict[str, str]:
    """Options of llama-server; ``draft`` None copies from the text."""
    if draft is None:
        sizes = {"spec-ngram-simple-size-n": str(SHORTEST_MATCH), "spec-ngram-simple-size-m": str(num_draft_tokens)}
        return {"spec-type": "ngram-simple", **sizes}
    return {"model-draft": draft, "spec-type": "draft-simple", "spec-draft-n-max": str(num_draft_tokens)}


def launch_command(
    engine: str, target: str, draft: str | None, num_draft_tokens: int, *, other_tokens: bool = False
) -> str:
    """One shell line that starts ``engine`` (vllm, sglang, llama.cpp) with a target and a draft, None: prompt lookup.

    With 0 draft tokens nothing is drafted.
    """
    options: dict[str, Any] = {}
    if engine == "vllm":
        words = ["vllm", "serve", target]
        if num_draft_tokens:
            speculative = vllm_speculation(draft, num_draft_tokens, other_tokens=other_tokens)
            options["speculative-config"] = json.dumps(speculative)
    elif engine == "sglang":
        words = ["python3", "-m", "sglang.launch_server", "--model-path", target]
        options = sglang_speculation(draft, num_draft_tokens) if num_draft_tokens else {}
    else:
        words = ["llama-server", "--model", target]
        options = dict(llama_cpp_speculation(draft, num_draft_tokens)) if num_draft_tokens else {}
    return shlex.join([*words, *(word for key, value in options.items() for word in (f"--{key}", str(value)))])


def vllm_files(deployment: Deployment) -> dict[str, str]:
    """Names and contents: vllm.yaml and launch.sh for one machine, ray-serve.yaml and kserve.yaml for many."""
    speculative = vllm_speculation(deployment.draft, deployment.num_draft_tokens, other_tokens=deployment.other_tokens)
    speculative["draft_tensor_parallel_size"] = deployment.tensor_parallel_size  # must be the target's
    shared: dict[str, Any] = {"tensor-parallel-size": deployment.tensor_parallel_size}
    if deployment.revision is not None:
        shared["revision"] = deployment.revision
    config = {
        "model": deployment.target,
        "served-model-name": deployment.name,
        "host": _ON_THIS_MACHINE,
        "port": 8000,
        "max-model-len": deployment.max_context,
        **shared,
        "speculative-config": speculative,
    }
    engine = {key.replace("-", "_"): value for key, value in shared.items()}
    engine |= {"max_model_len": deployment.max_context, "speculative_config": speculative}
    arguments = [
        f"--model={deployment.target}",
        f"--served-model-name={deployment.name}",
        "--port=8080",
        f"--max-model-len={deployment.max_context}",
        *(f"--{key}={value}" for key, value in shared.items()),
        f"--speculative-config={json.dumps(speculative)}",
    ]
    return {
        "vllm.yaml": yaml_text(config, "vllm serve --config vllm.yaml\nvLLM 0.33"),
        "launch.sh": _script(["vllm", "serve", "--config"], "vllm.yaml"),
        "ray-serve.yaml": yaml_text(_ray_serve(deployment, engine), "serve deploy ray-serve.yaml\nRay Serve LLM 2.60"),
        "kserve.yaml": _kserve(deployment, "vllm", [], arguments),
    }


def sglang_files(deployment: Deployment) -> dict[str, str]:
    """Names and contents: sglang.yaml and launch.sh for one machine, kserve.yaml for many."""
    config: dict[str, Any] = {
        "model-path": deployment.target,
        "served-model-name": deployment.name,
        "context-length": deployment.max_context,
        "tp-size": deployment.tensor_parallel_size,
        **sglang_speculation(deployment.draft, deployment.num_draft_tokens),
    }
    if deployment.revision is not None:
        config["revision"] = deployment.revision
    alone = {**config, "host": _ON_THIS_MACHINE, "port": 30000, "enable-metrics": True}
    arguments = [*(f"--{key}={value}" for key, value in config.items()), "--host=0.0.0.0", "--port=8080"]
    command = ["python3", "-m", "sglang.launch_server"]
    return {
        "sglang.yaml": yaml_text(alone, "python3 -m sglang.launch_server --config sglang.yaml\nSGLang 0.5.23"),
        "launch.sh": _script([*command, "--config"], "sglang.yaml"),
        "kserve.yaml": _kserve(deployment, "sglang", command, arguments),
    }


def llama_cpp_files(deployment: Deployment) -> dict[str, str]:
    """Names and contents: launch.sh with the command, models.ini with the same for a server of several models."""
    settings = {
        "model": deployment.target,
        **llama_cpp_speculation(deployment.draft, deployment.num_draft_tokens),
        "ctx-size": str(deployment.max_context),
    }
    command = ["llama-server"]
    for key, value in settings.items():
        command += [f"--{key}", value]
    command += ["--host", _ON_THIS_MACHINE, "--port", "8080", "--metrics"]
    lines = ["; llama-server --models-preset models.ini", f"[{deployment.label}]"]
    return {
        "launch.sh": _script(command),
        "models.ini": "\n".join([*lines, *(f"{key} = {value}" for key, value in settings.items())]) + "\n",
    }


def _script(command: Sequence[str], file: str | None = None) -> str:
    """A shell script that runs the command, with a file beside it as the last argument, and what it is given."""
    words = [shlex.quote(word) for word in command]
    if file is not None:
        words.append(f'"$(dirname "$0")/{file}"')
    return f'#!/bin/sh\nexec {" ".join(words)} "$@"\n'


def _ray_serve(deployment: Deployment, engine: Mapping[str, Any]) -> dict[str, Any]:
    model = {
        "model_loading_config": {"model_id": deployment.name, "model_source": deployment.target},
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": deployment.max_replicas}},
        "engine_kwargs": dict(engine),
    }
    application = {
        "name": deployment.label,
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [model]},
    }
    return {"applications": [application]}


def _kserve(deployment: Deployment, engine: str, command: Sequence[str], arguments: Sequence[str]) -> str:
    """An InferenceService with the engine's own image, and the export on a volume that all nodes can read."""
    container: dict[str, Any] = {"name": "kserve-container", "image": IMAGES[engine]}
    if command:
        container["command"] = list(command)
    container |= {
        "args": list(arguments),
        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
        "resources": {"limits": {"nvidia.com/gpu": str(deployment.tensor_parallel_size)}},
        "volumeMounts": [{"name": "models", "mountPath": deployment.folder, "readOnly": True}],
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": deployment.label},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "maxReplicas": deployment.max_replicas,
                "containers": [container],
                "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
            }
        },
    }
    heading = "kubectl apply -f kserve.yaml\nThe claim `models` is a volume that holds this folder; KServe 0.21"
    return yaml_text(service, heading)
