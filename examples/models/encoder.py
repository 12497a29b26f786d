"""Prune all-MiniLM-L6-v2 for the examples: python examples/models/encoder.py SOURCE.

SOURCE is the F16 that llama.cpp's converter makes of sentence-transformers/all-MiniLM-L6-v2. Two of
its six layers stay, the first 128 positions, and of the vocabulary the special tokens, single characters
and those that are most frequent in the examples' corpora.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).parents[2] / "workflow"))

from quantmill.engine.vocabulary import Vocabulary

HERE: Final = Path(__file__).parent
TARGET: Final = HERE / "tiny-bert-F16.gguf"
LAYERS, TOKENS, POSITIONS = 2, 2048, 128
LONGEST: Final = 50_000  # characters of a text that are looked at


def kept(source: Path, texts: list[str]) -> list[int]:
    """The ids of the tokens that stay, in their order."""
    with Vocabulary(source) as vocabulary:
        counts = Counter(token for text in texts for token in vocabulary.tokenize(text).tolist())
        names = [vocabulary.token_text(token) for token in range(vocabulary.size)]
    needed = {id for id, name in enumerate(names) if len(name.removeprefix("\u2581")) == 1}
    needed |= {names.index(special) for special in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    frequent = (token for token, _ in counts.most_common() if token not in needed)
    ascii_first = sorted(needed, key=lambda id: (not names[id].removeprefix("\u2581").isascii(), id))
    chosen = ascii_first[: TOKENS // 4]
    return sorted(
        [*chosen, *[token for _, token in zip(range(TOKENS - len(chosen)), frequent, strict=False)]]
    )


def main(source: Path) -> None:
    """Write the pruned model beside this file."""
    reader = gguf.GGUFReader(source)
    values = {name: field.contents() for name, field in reader.fields.items()}
    columns = [
        pq.read_table(path).column("content") for path in sorted((HERE / "../corpora").glob("*.parquet"))
    ]
    ids = kept(source, [text[:LONGEST] for column in columns for text in column.to_pylist()])
    names, types = (values[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    tokens = [names[id] for id in ids]
    writer = gguf.GGUFWriter(TARGET, "bert")
    writer.add_name("Tiny BERT")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(values["bert.embedding_length"])
    writer.add_feed_forward_length(values["bert.feed_forward_length"])
    writer.add_head_count(values["bert.attention.head_count"])
    writer.add_layer_norm_eps(values["bert.attention.layer_norm_epsilon"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(values["bert.pooling_type"]))
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre(values["tokenizer.ggml.pre"])
    writer.add_token_list(tokens)
    writer.add_token_types([types[id] for id in ids])
    for add, name in (
        (writer.add_bos_token_id, "[CLS]"),
        (writer.add_eos_token_id, "[SEP]"),
        (writer.add_sep_token_id, "[SEP]"),
        (writer.add_unk_token_id, "[UNK]"),
        (writer.add_pad_token_id, "[PAD]"),
        (writer.add_mask_token_id, "[MASK]"),
    ):
        add(tokens.index(name))
    for tensor in reader.tensors:
        block = tensor.name.split(".")
        if block[0] == "blk" and int(block[1]) >= LAYERS:
            continue
        data = np.array(tensor.data)
        rows = {"token_embd.weight": ids, "position_embd.weight": range(POSITIONS)}.get(tensor.name)
        writer.add_tensor(tensor.name, data if rows is None else np.ascontiguousarray(data[list(rows)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
