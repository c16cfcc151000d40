"""Text to token ids and back: tokenizers, streaming detokenisation, stop strings and prompt formats.

Nothing here knows of models. The modules that need the ``tokenizers`` or ``jinja2`` libraries import them when they are
first used, so importing this package is cheap. The public surface::

    tok = Tokenizer.from_folder(path)              # an HF folder: tokenizer.json, or else tokenizer.model
    tok = Tokenizer.from_json(data, config)        # bytes of tokenizer.json
    tok = Tokenizer.from_sentencepiece(data, config)
    tok = Tokenizer.from_gguf(metadata)            # the tokenizer.* keys of a GGUF file; arrays as any sequences
    tok.encode(text, add_bos=None, parse_special=False) -> list[int]
    tok.decode(ids, skip_special=False) -> str
    tok.vocab_size, .bos_id, .eos_ids, .pad_id, .unk_id, .add_bos, .chat_template, .name, .kind
    tok.token_bytes(i), .is_special(i), .id_of(text), .text_of(i), .fingerprint()

    tok.encode_piece(text, after="start" | "special" | "text")   # a part of a longer text, nothing special in it
    tok.split_special(text), tok.special_texts

    detokenizer = Detokenizer(tok)                 # continues a prompt; at_start=True: the ids begin the text
    detokenizer.push(token_id) -> str; detokenizer.flush() -> str

    matcher = StopMatcher(("### Input:",))
    emit, stopped = matcher.push(text); rest = matcher.flush()

    fmt = choose_format(tok, None | "alpaca" | "chat" | "path/to/template.jinja")
    prompt = fmt.encode(messages, add_generation_prompt=True)      # EncodedPrompt(token_ids, loss_mask, text)
    fmt.stop_strings, fmt.name, fmt.template
"""

from draftsmith.text.alpaca import AlpacaFormat
from draftsmith.text.choose import choose_format
from draftsmith.text.detokenizer import Detokenizer
from draftsmith.text.formats import EncodedPrompt, PromptFormat
from draftsmith.text.jinja_format import JinjaFormat
from draftsmith.text.stop import StopMatcher
from draftsmith.text.tokenizer import Tokenizer

__all__ = [
    "AlpacaFormat",
    "Detokenizer",
    "EncodedPrompt",
    "JinjaFormat",
    "PromptFormat",
    "StopMatcher",
    "Tokenizer",
    "choose_format",
]
