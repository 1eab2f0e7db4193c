"""Makes a tiny Whisper and a tiny SpeechT5 with random weights, and of each the archive that tests
unpack. Needs the extra `convert` and sentencepiece.

    python tools/make_speech_models.py tests/support
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from tiny_models import byte_level_bpe, export, pack

TEXT = "the quick brown fox jumps over a lazy dog while rain falls on green hills"
END = "<|endoftext|>"
COMMANDS = [
    *(f"<|{name}|>" for name in ("startoftranscript", "en", "de", "translate", "transcribe")),
    *(f"<|{name}|>" for name in ("startoflm", "startofprev", "nospeech", "notimestamps")),
]
TIMES = [f"<|{at * 0.02:.2f}|>" for at in range(1501)]


def write_whisper(path: Path) -> None:
    """Write a Whisper that says random words and times."""
    torch, transformers = import_module("torch"), import_module("transformers")
    torch.manual_seed(0)
    tokenizer = _bytes_tokenizer()
    tokenizer.save_pretrained(path)
    ids = dict(zip(COMMANDS, tokenizer.convert_tokens_to_ids(COMMANDS), strict=True))
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(path)
    common = {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        init_std=0.5,
        **common,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    times = tokenizer.convert_tokens_to_ids(TIMES)
    with torch.no_grad():  # words are likelier than times
        model.model.decoder.embed_tokens.weight[times] *= 0.1
    model.generation_config = transformers.GenerationConfig(
        is_multilingual=True,
        lang_to_id={name: ids[name] for name in ("<|en|>", "<|de|>")},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        alignment_heads=[[0, 0], [1, 1]],
        max_initial_timestamp_index=50,
        max_length=448,
        return_timestamps=False,
        begin_suppress_tokens=[],
        suppress_tokens=list(ids.values()),
        **common,
    )
    model.save_pretrained(path)


def write_speecht5(path: Path) -> None:
    """Write a SpeechT5 that makes noise, and beside it in `vocoder` what makes sound of that."""
    torch, transformers = import_module("torch"), import_module("transformers")
    sentencepiece = import_module("sentencepiece")
    torch.manual_seed(0)
    path.mkdir(parents=True)
    (path / "texts").write_text("\n".join([TEXT] * 4))
    sentencepiece.SentencePieceTrainer.train(
        input=str(path / "texts"),
        model_prefix=str(path / "spm_char"),
        model_type="char",
        vocab_size=40,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
    )
    tokenizer = transformers.SpeechT5Tokenizer(str(path / "spm_char.model"))
    extractor = transformers.SpeechT5FeatureExtractor()
    transformers.SpeechT5Processor(extractor, tokenizer).save_pretrained(path)
    config = transformers.SpeechT5Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        speech_decoder_prenet_units=16,
        speech_decoder_postnet_units=16,
        speech_decoder_postnet_layers=2,
        speaker_embedding_dim=512,
        initializer_range=0.5,
    )
    model = transformers.SpeechT5ForTextToSpeech(config)
    with torch.no_grad():  # else it stops at once
        model.speech_decoder_postnet.prob_out.bias.fill_(-8)
    model.save_pretrained(path)
    vocoder = transformers.SpeechT5HifiGanConfig(upsample_initial_channel=32, initializer_range=0.3)
    transformers.SpeechT5HifiGan(vocoder).save_pretrained(path / "vocoder")


def _bytes_tokenizer() -> Any:
    plain = byte_level_bpe([TEXT], 300)
    plain.add_special_tokens([END, *COMMANDS])
    plain.add_tokens(TIMES)
    return import_module("transformers").PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token=END, bos_token=END, pad_token=END, unk_token=END
    )


def main(folder: Path) -> None:
    """Make the archives in `folder`."""
    with tempfile.TemporaryDirectory() as name:
        whisper, speaker = Path(name, "whisper"), Path(name, "speaker")
        write_whisper(whisper)
        _archive(whisper, folder / "whisper_model.zip", "automatic-speech-recognition-with-past")
        write_speecht5(speaker)
        kwargs = f'{{"vocoder": "{speaker / "vocoder"}"}}'
        _archive(speaker, folder / "speech_model.zip", "text-to-audio", "--model-kwargs", kwargs)


def _archive(source: Path, archive: Path, task: str, *more: str) -> None:
    target = source.with_name(f"{source.name}-ir")
    export(source, target, task, "fp16", *more)
    pack(target, archive)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
