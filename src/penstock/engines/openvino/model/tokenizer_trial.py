"""Whether a converted tokenizer splits texts as the model's own does: `python -m
penstock.engines.openvino.model.tokenizer_trial FOLDER` prints a line for each that it does not.

A model reads other tokens than those it was trained on as well as it can, and nobody notices.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

_MOST_SPECIAL = 64
DIFFERS = "differs: "
"""How a line of the report begins; the text follows as Python writes it."""
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    " I'm sure they've said: \"it's 5 o'clock\"… don't you?  Two  spaces,   three. ",
    "Tabs\tand\nlines\n\nand\r\nmore\n",
    "0 12 345 6789 1234567890 3.14159 1,000,000.00 €12,50 50% #42 2026-12-01T10:00:00Z",
    "def f(x):\n    return {'a': [x ** 2, None], \"b\": x != 1}  # a comment\n",
    '{"category": "refund", "items": [1, 2.5, true, null], "note": "a\\nb"}',
    "https://example.com/a/b?c=d&e=%20f#g mail@example.com C:\\Users\\me <b>bold</b> &amp;",
    "Zürich, façade, naïve, œuvre, Ærø, ŁÓDŹ, İstanbul, ß",
    "cafe\u0301 A\u030angstro\u0308m",
    "Съешь ещё этих мягких французских булок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "我的包裹在哪里？三个星期了！ 東京都で寿司を食べました。 한국어 문장입니다.",
    "نص عربي مع أرقام ١٢٣ שלום עולם हिन्दी में एक वाक्य ภาษาไทยไม่มีช่องว่าง",
    "😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️",
    "ＦＵＬＬ　ｗｉｄｔｈ “quotes” – dashes — ellipsis… ½ ² ™ ﬁ",
    "camelCase snake_case kebab-case SCREAMING_CASE iPhone15Pro x86_64",
    "a" * 200,
    "zero\u200bwidth soft\u00adhyphen no\u00a0break",
)


def differing(folder: Path) -> list[str]:
    """The texts that the tokenizer in a folder, OpenVINO's, splits otherwise than the
    `tokenizer.json` beside it. Special tokens are tried too. Without that file nothing is compared.
    """
    import openvino_genai as genai  # here: the process that starts this one reads `reported`

    file = folder / "tokenizer.json"
    if not file.is_file():
        return []
    own = import_module("tokenizers").Tokenizer.from_file(str(file))
    own.no_truncation()
    own.no_padding()
    converted = genai.Tokenizer(str(folder))
    added = list(own.get_added_tokens_decoder().values())[:_MOST_SPECIAL]
    special = "".join(f"{token.content}text" for token in added)
    return [
        text
        for text in (*TEXTS, special)
        if own.encode(text).ids != converted.encode(text).input_ids.data[0].tolist()
    ]


def reported(log: str) -> str:
    """What the report in a log comes to, in words; empty if nothing differs."""
    lines = [line for line in log.splitlines() if line.startswith(DIFFERS)]
    if not lines:
        return ""
    return (
        f"the converted tokenizer splits {len(lines)} of {len(TEXTS) + 1} texts otherwise than the"
        f" model's own, such as {lines[0].removeprefix(DIFFERS)}: answers may be worse; try"
        " --engine vllm"
    )


def main(folder: Path) -> None:
    """Print what differs."""
    for text in differing(folder):
        print(f"{DIFFERS}{text!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
