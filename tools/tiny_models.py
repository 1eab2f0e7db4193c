"""What the makers of tiny models with random weights share: a tokenizer of bytes, the export by
optimum-intel, and the archive.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


def byte_level_bpe(
    texts: Sequence[str], vocabulary: int, special: Sequence[str] = (), unknown: str | None = None
) -> Any:
    """A tokenizer of the library `tokenizers` that knows every byte and, up to the size of its
    vocabulary, pieces of the texts. Its first ids are those of the special tokens.
    """
    tokenizers = import_module("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=unknown))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def export(source: Path, target: Path, task: str, weights: str, *more: str) -> None:
    """Write the model in `source` to `target` in OpenVINO's form, its weights in that format."""
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    command += ["--model", str(source), "--task", task, "--library", "transformers", *more]
    subprocess.run([*command, "--weight-format", weights, str(target)], check=True)


def archive_of_vision(write: Callable[[Path], Any], archive: Path) -> None:
    """Make the archive of a vision-language model that `write` writes in Hugging Face's form, with
    weights of 8 bits.
    """
    from penstock.engines.openvino.model.source import keep_image_settings

    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "source"), Path(name, "target")
        write(source)
        export(source, target, "image-text-to-text", "int8")
        keep_image_settings(source, target)
        pack(target, archive)


def pack(folder: Path, archive: Path) -> None:
    """Write the files of a folder into an archive."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                packed.write(file, file.relative_to(folder))
