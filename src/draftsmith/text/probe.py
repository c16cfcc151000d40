"""A text that tells tokenizers apart: whoever rewrites a tokenizer compares its ids on it before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from draftsmith.text.tokenizer import Tokenizer

__all__ = ["PROBE", "differing_line"]

PROBE: Final = """\
Hello world, how's it going?  Two spaces,   three,     and a tab\tthere.
DON'T you'll WE'VE I'm they'd 'tis ''quoted'' "double" (brackets) [and] {braces}
1 22 333 4444 55555 1234567890 3.14159 2026-11-23 1,000,000 v2.0.1 0x1F
def main(args: list[str]) -> int:\n    if x == 1 and y != 2:\n\t\treturn {"a": [1, 2]}  # why
 leading space and trailing space \n\n\n three empty lines\r\nand a carriage return
ÀÉÎõü ßſ İstanbul naïve café Ωmega е́ Привет, мир! 你好，世界。 こんにちは世界 안녕하세요 مرحبا שלום नमस्ते ไทย
½ ② ⅷ ﬁ ﬂ ＦＵＬＬ ½㎏ … — – “ ” ‘ ’ « » • © ® ™ 🎉👨‍👩‍👧‍👦🇩🇪 é zero\u200bwidth ▁under▁
<s> </s> <unk> <0x0A> <|im_start|> <|im_end|> <|endoftext|> [INST] <tool_call> <pad>
http://example.org/a?b=c&d=%20e user@example.com C:\\path\\to\\file.txt ~/.config/x #tag @name $5.00 100%
----====####****____    ........!!!!???? ;;::,, += -= *= /= == != <= >= && || << >> ** // -> =>
### Instruction:\n### Input:\n### Response:\n
"""


def differing_line(left: Tokenizer, right: Tokenizer, *, inside: bool = False) -> str | None:
    """The first line of the probe that the two encode differently; the whole text counts too; None when all agree.

    ``inside``: as parts of a longer text, so that a space put before its beginning does not count.
    """
    for line in (*PROBE.splitlines(keepends=True), PROBE, "", " ", "a"):
        if inside:
            ids = [tokenizer.encode_piece(line, after="text") for tokenizer in (left, right)]
        else:
            ids = [tokenizer.encode(line) for tokenizer in (left, right)]
        if ids[0] != ids[1]:
            return line
    return None
