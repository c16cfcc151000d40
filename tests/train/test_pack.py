"""A packed draft: the rows of the ids that it writes, its layers, and what the engine makes of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from draftsmith.checkpoint import RopeConfig, open_checkpoint
from draftsmith.checkpoint.draft_vocabulary import DraftVocabulary
from draftsmith.engine import LLM
from draftsmith.errors import CheckpointError, TokenizerError, UsageError
from draftsmith.model.native import NativeModel
from draftsmith.model.protocol import TokenRun
from draftsmith.speculate import PrunedModel
from draftsmith.train.models import Learner, load_learner
from draftsmith.train.pack import DRAFT_FILE, pack_draft, unpack_draft
from draftsmith.train.schema import InitStage, PackStage
from draftsmith.types import SamplingParams
from tests.support.fakes import EOS
from tests.support.tiny import tiny_folder
from tests.support.tiny_models import write_llama_gguf

STAGE = PackStage(name="pack", kind="pack", blocks="F16", vocabulary_blocks="F16")
FURTHER = InitStage(name="begin", kind="init", packed="given apart")
KEPT = [EOS, *range(97, 123), 32, 46]


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    folder = tiny_folder(tmp_path_factory.mktemp("draft") / "tiny", seed=5)
    return replace(load_learner(str(folder)), kept_ids=torch.tensor(KEPT))


@pytest.fixture(scope="module")
def draft(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    report = pack_draft(STAGE, learner, folder)
    assert report["bytes"] == (folder / DRAFT_FILE).stat().st_size
    return folder / DRAFT_FILE


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(tiny_folder(tmp_path_factory.mktemp("target") / "tiny", seed=1), "none", threads=1)


def test_the_file_gives_the_logits_of_the_kept_ids(learner: Learner, draft: Path) -> None:
    checkpoint = open_checkpoint(draft)
    vocabulary = DraftVocabulary.of(checkpoint.metadata, checkpoint.config.vocab_size, draft)
    assert vocabulary is not None
    assert vocabulary.token_ids.tolist() == KEPT
    assert vocabulary.fingerprint == learner.tokenizer.fingerprint()
    model = PrunedModel(NativeModel.load(checkpoint, threads=1), vocabulary)
    ids = [104, 101, 108, 108, 111]
    [logits] = model.forward([TokenRun(model.new_cache(), ids, num_logits=5)])
    with torch.no_grad():
        expected = learner.model(torch.tensor([ids])).logits[0].numpy()
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits[:, KEPT], expected[:, KEPT], atol=0.05)
    others = np.delete(np.arange(logits.shape[1]), KEPT)
    assert (logits[:, others] < -1e29).all()


def test_other_ids_are_read_as_the_ones_most_like_them(draft: Path) -> None:
    checkpoint = open_checkpoint(draft)
    vocabulary = DraftVocabulary.of(checkpoint.metadata, checkpoint.config.vocab_size, draft)
    assert vocabulary is not None
    model = PrunedModel(NativeModel.load(checkpoint, threads=1), vocabulary)
    stand_in = KEPT[int(vocabulary.rows[65])]
    read, stood_in = (model.forward([TokenRun(model.new_cache(), [104, i])])[0] for i in (65, stand_in))
    assert np.array_equal(read, stood_in)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.forward([TokenRun(model.new_cache(), [len(vocabulary.rows)])])


SAMPLINGS = {
    "greedy": SamplingParams(greedy=True, max_new_tokens=24),
    "seeded": SamplingParams(seed=3, temperature=1.3, top_k=0, top_p=1.0, max_new_tokens=24),
    "all options": SamplingParams(
        seed=11,
        max_new_tokens=24,
        temperature=0.9,
        top_k=40,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        logit_bias={105: 1.5, 200: 5.0},
    ),
}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("suffix", ["", "+lookup"])
def test_the_text_is_that_of_plain_decoding(target: LLM, draft: Path, name: str, suffix: str) -> None:
    helped = LLM(target.target, f"{draft}{suffix}", num_draft_tokens=3, threads=1)
    prompts = [[104, 105, 33, 200], [97, 98, 97, 98, 97], [65, 66]]
    alone = [target.generate(ids, SAMPLINGS[name])[0] for ids in prompts]
    assert [helped.generate(ids, SAMPLINGS[name])[0].token_ids for ids in prompts] == [c.token_ids for c in alone]
    together = helped.generate(prompts, SAMPLINGS[name])
    assert [completion.token_ids for completion in together] == [c.token_ids for c in alone]
    counted = [completion.speculation for completion in together]
    assert all(stats is not None and stats.num_draft_tokens > 0 for stats in counted)


def test_what_is_drawn_with_the_same_noise_is_accepted(learner: Learner, draft: Path) -> None:
    """The draft was packed from this target: where both may write the same ids, they write the same."""
    itself = LLM(learner.parent["reference"], "none", threads=1)
    helped = LLM(itself.target, draft, num_draft_tokens=4, threads=1)
    letters_only = {i: -1e4 for i in range(260) if i not in KEPT or i == EOS}
    sampling = SamplingParams(seed=5, max_new_tokens=60, logit_bias=letters_only)
    [written] = helped.generate([104, 105], sampling)
    assert written.token_ids == itself.generate([104, 105], sampling)[0].token_ids
    assert written.speculation is not None
    assert written.speculation.acceptance_rate > 0.8


def test_sampled_drafts_under_the_rejection_rule_work_too(learner: Learner, draft: Path) -> None:
    helped = LLM(learner.parent["reference"], draft, num_draft_tokens=3, rule="rejection", threads=1)
    [written] = helped.generate([104, 105], SamplingParams(seed=5, max_new_tokens=40))
    assert len(written.token_ids) == 40
    assert written.speculation is not None
    assert written.speculation.num_accepted_tokens > 0


def test_a_draft_for_another_vocabulary_is_refused(draft: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", swap=True)
    with pytest.raises(TokenizerError, match="was made for another vocabulary"):
        LLM(other, draft, threads=1)


def test_there_is_no_shipped_draft_for_any_model(target: LLM) -> None:
    with pytest.raises(UsageError, match=r"no draft for .* is shipped with draftsmith"):
        LLM(target.target, "embedded")
    assert LLM(target.target, "auto").drafter_name == "lookup"


def test_a_model_with_its_whole_vocabulary_is_not_packed(learner: Learner, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"stage\.pack: the model has its whole vocabulary"):
        pack_draft(STAGE, replace(learner, kept_ids=None), tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_draft_can_be_taken_further(learner: Learner, tmp_path: Path, tied: bool) -> None:
    """As a model with all rows, which packs to the same file again, byte for byte."""
    packed = replace(learner, config=replace(learner.config, tie_embeddings=tied))
    report = pack_draft(STAGE, packed, tmp_path)
    again, recorded = unpack_draft(FURTHER, str(tmp_path), learner.parent["reference"])
    assert recorded["packed"]["sha256"] == open_checkpoint(tmp_path / DRAFT_FILE).sha256()
    assert again.config.vocab_size == learner.config.vocab_size
    (tmp_path / "again").mkdir()
    assert pack_draft(STAGE, again, tmp_path / "again") == report
    first, second = (path.read_bytes() for path in (tmp_path / DRAFT_FILE, tmp_path / "again" / DRAFT_FILE))
    assert first == second
    ids = torch.tensor([[104, 65, 108, 7]])  # 65 and 7 are read as the ids most like them
    checkpoint = open_checkpoint(tmp_path / DRAFT_FILE)
    vocabulary = DraftVocabulary.of(checkpoint.metadata, checkpoint.config.vocab_size, tmp_path / DRAFT_FILE)
    assert vocabulary is not None
    model = PrunedModel(NativeModel.load(checkpoint, threads=1), vocabulary)
    [expected] = model.forward([TokenRun(model.new_cache(), ids[0].tolist(), num_logits=4)])
    with torch.no_grad():
        logits = again.model(ids).logits[0].numpy()
    np.testing.assert_allclose(logits[:, KEPT], expected[:, KEPT], atol=0.05)  # half precision in the engine


def test_what_cannot_be_taken_further_is_told(learner: Learner, draft: Path, tmp_path: Path) -> None:
    tiny = learner.parent["reference"]
    whole = write_llama_gguf(tmp_path / "whole.gguf")
    other = str(tiny_folder(tmp_path / "other", swap=True))
    with pytest.raises(
        UsageError, match=r"no draft is shipped for the vocabulary of .*; there is one for smollm2-135m"
    ):
        unpack_draft(FURTHER, "embedded", tiny)
    with pytest.raises(UsageError, match="which no pack stage wrote; give it as model instead"):
        unpack_draft(FURTHER, str(whole), tiny)
    with pytest.raises(TokenizerError, match="was made for another vocabulary than that of"):
        unpack_draft(FURTHER, str(draft), other)
    with pytest.raises(CheckpointError, match="there is no"):
        unpack_draft(FURTHER, str(tmp_path / "no.gguf"), tiny)


def test_rope_by_factors_is_stated_as_the_target_states_it(learner: Learner, tmp_path: Path) -> None:
    """GGUF files hold a factor for each frequency, which folders cannot say."""
    rope = RopeConfig(
        theta=10000.0, max_position_embeddings=256, rope_type="llama3", factor=8.0, original_max_position_embeddings=64,
        low_freq_factor=1.0, high_freq_factor=4.0,
    )  # fmt: skip
    config = replace(learner.config, rope=rope)
    pack_draft(STAGE, replace(learner, config=config), tmp_path)
    folder = Path(learner.parent["reference"])
    described = json.loads((folder / "config.json").read_text())
    described |= {"rope_theta": rope.theta, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }}  # fmt: skip
    target = shutil.copytree(folder, tmp_path / "target")
    (target / "config.json").write_text(json.dumps(described))
    again, _ = unpack_draft(FURTHER, str(tmp_path / DRAFT_FILE), str(target))
    assert again.config.rope.rope_type == "llama3"
    assert not again.config.rope.frequency_factors
    with pytest.raises(UsageError, match="states RoPE factors one by one"):
        unpack_draft(FURTHER, str(tmp_path / DRAFT_FILE), learner.parent["reference"])


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": list(range(5))},
        {"token_ids": [0, 1, 2, 3, 3, 5]},
        {"token_ids": [0, 1, 2, 3, 4, 99]},
        {"token_ids": [0, 1, 2, 3, 4, -1]},
        {"token_ids": "012345"},
        {"rows": [0, 1, 2, 3, 4, 5, 6, 0]},
        {"rows": [1, 0, 2, 3, 4, 5, 0, 0]},
        {"rows": None},
        {"fingerprint": 7},
    ],
)
def test_vocabularies_that_make_no_sense_are_told(change: dict[str, object]) -> None:
    good = DraftVocabulary(np.arange(6), np.array([0, 1, 2, 3, 4, 5, 0, 0]), "print")
    read = DraftVocabulary.of(good.metadata(), 6, Path("draft.gguf"))
    assert read is not None
    assert read.rows.tolist() == good.rows.tolist()
    damaged = good.metadata() | {f"draftsmith.draft.{key}": value for key, value in change.items()}
    with pytest.raises(CheckpointError, match="does not fit its 6 rows"):
        DraftVocabulary.of(damaged, 6, Path("draft.gguf"))
