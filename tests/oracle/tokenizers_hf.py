"""Hugging Face `tokenizers` built from the vocabulary in a GGUF file, as the truth for ours.

smollm: byte-level BPE with the pre-tokenizers of HuggingFaceTB/SmolLM2's tokenizer.json, Digits and ByteLevel.
gemma:  BPE with byte fallback, " " written as U+2581; its merges are all ways to cut a piece into two, best score
        first, as `transformers` makes them from a SentencePiece model.
Control tokens are found in the text everywhere, like `thermocline tokenize --no-special` does.
"""
import gguf
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def load(path):
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens, types = get("tokens"), get("token_type")
    vocab = {token: id for id, token in enumerate(tokens)}
    if get("model") == "gpt2":
        tokenizer = byte_level(get, vocab)
    else:
        tokenizer = sentence_piece(get, tokens, types, vocab)
    added = [id for id, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(tokens[id], normalized=False) for id in added])
    assert all(tokenizer.token_to_id(tokens[id]) == id for id in added)
    return tokenizer


def byte_level(get, vocab):
    merges = [tuple(merge.split(" ")) for merge in get("merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    split = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "gpt-2": [],
    }[get("pre")]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split + [byte_level])
    return tokenizer


def sentence_piece(get, tokens, types, vocab):
    scores = get("scores")
    plain = {token for token, kind in zip(tokens, types) if kind in (NORMAL, UNUSED)}
    merges = []
    for id, token in enumerate(tokens):
        if token not in plain:
            continue
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        cuts = [(left, right) for left, right in cuts if left in plain and right in plain]
        cuts.sort(key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))
        merges += [(scores[id], left, right) for left, right in cuts]
    merges.sort(key=lambda merge: -merge[0])   # stable
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[merge[1:] for merge in merges], byte_fallback=True))
    assert not get("add_space_prefix")
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    return tokenizer
