"""An ONNX embedding or rerank model as OpenVINO's files: `python -m
penstock.engines.openvino.model.onnx_ir FOLDER TARGET CONTEXT`.

OpenVINO reads the model itself. It has no tokenizer in that form: one of the WordPiece kind (BERT,
MPNet, MiniLM, BGE, GTE, E5 …) is made here of its `tokenizer.json`, as openvino-tokenizers makes
it; other kinds are left to transformers, which the extra [convert] brings.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openvino as ov

from penstock.engines.openvino.model.files import onnx_file

# Imported so for want of type stubs.
steps = import_module("openvino_tokenizers.tokenizer_pipeline")
utils = import_module("openvino_tokenizers.utils")

_NORMAL = steps.RegexNormalizationStep
_TEMPLATE = "processed_post_processor_template"
_ONE, _OTHER = -1, -2
"""The places of the texts of a pair in a template."""


def main(folder: Path, target: Path, context: int) -> None:
    """Write model and tokenizer of `folder` into `target`. Exits with a line that says why not."""
    file = onnx_file(folder)
    assert file is not None
    model = ov.Core().read_model(file)
    rank = len(model.outputs[0].get_partial_shape())
    embeds = model.outputs[0].get_any_name() != "logits"
    if embeds and rank != 3:
        sys.exit(
            f"'{file}' gives no states of tokens (its first output has {rank}"
            " dimensions and not 3): export the model without pooling"
        )
    ov.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    description = json.loads((folder / "tokenizer.json").read_bytes())
    needs_types = any("token_type_ids" in port.get_names() for port in model.inputs)
    if _is_word_piece(description):
        _write_word_piece(description, target, context, needs_types)
    elif find_spec("transformers") is not None:
        _write_by_transformers(folder, target, needs_types)
    else:
        kind = (description.get("model") or {}).get("type")
        sys.exit(
            f"the tokenizer of '{folder}' ({kind}) is no WordPiece of the usual kind, and is"
            " converted by transformers: pip install 'penstock[convert]'"
        )


def _is_word_piece(description: dict[str, Any]) -> bool:
    """Whether each part of the tokenizer is one that is made here."""
    parts = {
        "normalizer": (None, "BertNormalizer"),
        "pre_tokenizer": ("BertPreTokenizer",),
        "post_processor": ("TemplateProcessing", "BertProcessing", "RobertaProcessing"),
        "model": ("WordPiece",),
    }
    return all((description.get(name) or {}).get("type") in kinds for name, kinds in parts.items())


def _write_word_piece(
    description: dict[str, Any], target: Path, context: int, needs_types: bool
) -> None:
    vocabulary = steps.WordPieceTokenizationStep.get_vocab_as_list(description["model"]["vocab"])
    special = {one["content"]: one for one in description["added_tokens"] if one["special"]}
    processor = description["post_processor"]
    combine = {
        "TemplateProcessing": steps.CombineSegmentsStep.from_hf_json_template_postprocessor,
        "BertProcessing": steps.CombineSegmentsStep.from_hf_json_bert_postprocessor,
        "RobertaProcessing": steps.CombineSegmentsStep.from_hf_json_roberta_processor,
    }[processor["type"]](processor)
    pad = next((name for name in ("[PAD]", "<pad>") if name in vocabulary), vocabulary[0])
    names = {one["id"]: name for name, one in special.items()}
    pipeline = steps.TokenizerPipeline(vocab=vocabulary, skip_tokens=list(names))
    pipeline.add_steps(
        [
            steps.SpecialTokensSplit(
                [
                    steps.SpecialToken(name, one.get("lstrip", False), one.get("rstrip", False))
                    for name, one in special.items()
                ]
            ),
            *_normalizers(description.get("normalizer")),
            *steps.RegexSplitStep.bert_splitter(),
            steps.WordPieceTokenizationStep.from_hf_json(description),
            steps.TruncationStep(max_length=context - combine.number_of_added_tokens),
            combine,
            steps.PaddingStep(token=pad, _token_id=vocabulary.index(pad)),
            steps.VocabDecoderStep.from_hf_json(description, vocabulary, names, names),
            steps.FuseStep(),
            steps.RegexDecodingStep.strip_forward_space(),
            steps.RegexDecodingStep.clean_up_tokenization_spaces(),
        ]
    )
    model = pipeline.get_tokenizer_ov_subgraph()
    kept = [one for one in model.outputs if needs_types or "token_type_ids" not in one.names]
    tokenizer = ov.Model(kept, model.get_parameters(), "tokenizer")
    tokenizer.add_sinks(model.get_sinks())
    utils.change_outputs_type(tokenizer, ov.Type.i64)
    tokenizer.set_rt_info(json.dumps(_templates(processor, special)), _TEMPLATE)
    tokenizer.set_rt_info(version("openvino-tokenizers"), "openvino_tokenizers_version")
    tokenizer.set_rt_info(vocabulary.index(pad), "pad_token_id")
    ov.save_model(tokenizer, target / "openvino_tokenizer.xml")
    detokenizer = pipeline.get_detokenizer_ov_subgraph()
    utils.change_inputs_type(detokenizer, ov.Type.i64)
    ov.save_model(detokenizer, target / "openvino_detokenizer.xml")


def _normalizers(stated: dict[str, Any] | None) -> list[Any]:
    """The operations of a BertNormalizer.

    https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/normalizers/bert.rs
    """
    found: list[Any] = []
    if stated is None:
        return found
    if stated.get("clean_text"):
        found += [_NORMAL.del_control_chars_regex(), _NORMAL.replace_whitespace_regex()]
    if stated.get("handle_chinese_chars"):
        found.append(_NORMAL.handle_chinese_chars_regex())
    accents = stated.get("strip_accents")
    if accents or (accents is None and stated.get("lowercase")):
        found += [steps.NormalizeUnicode("NFD"), _NORMAL.strip_accents_regex()]
    if stated.get("lowercase"):
        found.append(steps.CaseFoldStep())
    return found


def _templates(processor: dict[str, Any], special: dict[str, Any]) -> dict[str, Any]:
    """The places of one text, and of two, among special tokens: GenAI reads this for pairs."""
    if processor["type"] != "TemplateProcessing":
        end, start = processor["sep"][1], processor["cls"][1]
        between = [end, end] if processor["type"] == "RobertaProcessing" else [end]
        other = 0 if len(between) == 2 else 1
        pair = [start, _ONE, *between, _OTHER, end]
        types = [0] * (2 + len(between)) + [other, other]
        return {
            "single": {"ids": [start, _ONE, end], "type_ids": [0, 0, 0]},
            "pair": {"ids": pair, "type_ids": types},
        }
    found = {}
    for name in ("single", "pair"):
        ids, types = [], []
        for part in processor[name]:
            token, text = part.get("SpecialToken"), part.get("Sequence")
            types.append((token or text)["type_id"])
            if token is not None:
                ids.append(special[token["id"]]["id"])
            else:
                ids.append(_ONE if text["id"] == "A" else _OTHER)
        found[name] = {"ids": ids, "type_ids": types}
    return found


def _write_by_transformers(folder: Path, target: Path, needs_types: bool) -> None:
    transformers, convert = import_module("transformers"), import_module("openvino_tokenizers")
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if needs_types else [])]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_input_names=names)
    pair = convert.convert_tokenizer(tokenizer, with_detokenizer=True)
    for model, name in zip(pair, ("tokenizer", "detokenizer"), strict=True):
        ov.save_model(model, target / f"openvino_{name}.xml")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
