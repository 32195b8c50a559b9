"""Every kind of tokenizer, alone and in a corpus."""

import functools
import json
import re
import subprocess
import sys
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from configs.ablations import tokenizers as tokenizer_rows
from cramjax.config import load
from cramjax.config.data import NORMALIZER_STEPS, TOKENIZER_KINDS
from cramjax.data import encode, order, prepare, sources, tokenizer
from cramjax.data.readers import File, ReadContext
from cramjax.data.tokenizer import KINDS
from cramjax.errors import UserError
from cramjax.glue import data as glue_data
from cramjax.tokens import PAD, SEP, SPECIAL_TOKENS
from cramjax.training.validation import token_bytes

SIZE = 500
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
APART = ("bpe", "unigram")  # decoded, their punctuation has a space before it


def books(documents):
    """Returns the first documents of the embedded books, 4 kB each."""
    path = resources.files("cramjax") / sources.EMBEDDED["embedded:books"]
    file = File(path=path, max_documents=documents)
    return list(file.documents(ReadContext(tiny_config("unused").data)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a function: kind, steps -> a tokenizer, trained, written and loaded."""
    documents = books(20)

    @functools.cache
    def of(kind, steps=NORMALIZER_STEPS):
        words = tokenizer.train(lambda: documents, SIZE, steps, kind)
        path = tmp_path_factory.mktemp(kind) / "tokenizer.json"
        words.save(str(path))
        return tokenizer.load(path, "")

    return of


def by_hand(kind, model, steps=NORMALIZER_STEPS):
    words = tokenizer._assembled(kind, steps, model)
    words.add_special_tokens(list(SPECIAL_TOKENS))
    words.encode_special_tokens = True
    return words


def ids_of(words, text):
    return words.encode(text, add_special_tokens=False).ids


def test_normaliser():
    text = "``Caf\u00e9''  \u00c5ngstr\u00f6m \u4e2d!"

    def normalized(*left_out):
        steps = [step for step in NORMALIZER_STEPS if step not in left_out]
        return tokenizer.normalizer(steps).normalize_str(text)

    assert normalized() == '"cafe" angstrom !'
    assert normalized("quotes") == "``cafe'' angstrom !"
    assert normalized("nfd") == '"caf" ngstrm !'
    assert normalized("lowercase") == '"Cafe" Angstrom !'
    assert normalized("ascii") == '"cafe" angstrom \u4e2d!'
    assert normalized("spaces") == '"cafe"  angstrom !'
    assert (
        normalized("strip_accents", "nfd", "ascii")
        == '"caf\u00e9" \u00e5ngstr\u00f6m \u4e2d!'
    )
    assert normalized(*NORMALIZER_STEPS) == text
    assert tuple(tokenizer.STEPS) == ("clean", *NORMALIZER_STEPS)
    assert tokenizer.all_steps("bpe", ("nfd",)) == ("nfd",)
    assert tokenizer.all_steps("bert_wordpiece", ("nfd",)) == ("clean", "nfd")
    clean = tokenizer.normalizer(["clean"]).normalize_str("\u00c9\x07\u4e2d\u6587\tb")
    assert clean == "\u00c9 \u4e2d  \u6587  b"


def test_text_in_another_script_is_refused_and_kept_on_demand(tmp_path):
    generator = np.random.default_rng(0)
    words = ["\u043c\u0438\u0440", "\u0434\u043e\u043c", "\u0406\u0441", "of", "1992"]
    texts = [" ".join(generator.choice(words, 40)) for _ in range(60)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    overrides = (f"data.sources={tmp_path}/a.txt", "model.vocab_size=36")
    config = tiny_config(tmp_path / "d", *overrides)
    with pytest.raises(
        UserError, match=r"normalizer removes \d\d% of the text"
    ) as error:
        prepare.prepare(config)
    assert "\n" not in str(error.value)
    way_out = re.search(r'--config\.(data\.normalizer=)"(.*)"$', str(error.value))
    config = tiny_config(tmp_path / "d", *overrides, "".join(way_out.groups()))
    kept = prepare.prepare(config).tokenizer
    assert kept.encode("\u041c\u0418\u0420 of").tokens == ["\u043c\u0438\u0440", "of"]


def test_the_kinds_are_those_of_the_config():
    assert tuple(KINDS) == TOKENIZER_KINDS
    with pytest.raises(UserError, match="config.data.tokenizer_kind is 'wordpeice': m"):
        load("configs/small.py", ["data.tokenizer_kind=wordpeice"])


@pytest.mark.parametrize("row", tokenizer_rows.ROWS)
def test_every_row_of_the_study_parses(row):
    data = load(f"configs/ablations/tokenizers.py:{row}").data
    assert data.tokenizer_kind == (row if row in KINDS else "wordpiece")


@ALL_KINDS
def test_the_vocabulary_is_exact_and_begins_with_the_special_tokens(trained, kind):
    words = trained(kind)
    ids = sorted(words.get_vocab().values())
    assert ids == list(range(SIZE))
    assert [words.id_to_token(i) for i in range(7)] == list(SPECIAL_TOKENS)
    begins = [begins for _, begins in tokenizer.spellings(words)]
    assert 0.2 * SIZE < sum(begins) <= SIZE - 7
    assert kind == "wordlevel" or sum(begins) < 0.9 * SIZE


# "▁" (U+2581) begins a word. Merges are in the order of their training.
MERGES = "a t|c at|m at|▁ cat|t h|th e|▁ the|▁ ."
LETTERS = "▁ t h e c a s m ."
# Of "▁cats", ▁cat + s costs 3.5, less than 5; of "▁..", ▁. + . costs 6, less than 6.5;
# of "s..", s + .. costs 5, less than 5.5.
SCORES = {"▁the": 1, "▁cat": 2, "▁cats": 5, "s": 1.5, "▁": 3, ".": 2, "▁.": 4}
SCORES |= {"..": 3.5, "mat": 2, "a": 9}


def _vocab(pieces):
    return {piece: i for i, piece in enumerate((*SPECIAL_TOKENS, *pieces))}


def _bpe():
    merges = [tuple(pair.split()) for pair in MERGES.split("|")]
    vocab = _vocab([*LETTERS.split(), *map("".join, merges)])
    return models.BPE(vocab, merges, unk_token="<unk>")


def _unigram():
    pieces = [(piece, -cost) for piece, cost in SCORES.items()]
    return models.Unigram([*((t, 0.0) for t in SPECIAL_TOKENS), *pieces], 3, False)


BY_HAND = {
    "wordpiece": (
        lambda: models.WordPiece(_vocab(["the", "cat", "##s", ".", "##.", "mat"])),
        "the cat ##s . ##. mat .",
    ),
    "bert_wordpiece": (
        lambda: models.WordPiece(_vocab(["the", "cat", "##s", ".", "##.", "mat"])),
        "the cat ##s . . mat .",
    ),
    "bpe": (_bpe, "▁the ▁cat s ▁. . ▁ mat ▁."),
    "unigram": (_unigram, "▁the ▁cat s ▁. . ▁ mat ▁."),
    "sentencepiece_bpe": (_bpe, "▁the ▁cat s . . ▁ mat ."),
    "sentencepiece_unigram": (_unigram, "▁the ▁cat s .. ▁ mat ."),
    "wordlevel": (
        lambda: models.WordLevel(_vocab(["the", "cats", "..", "mat"]), "<unk>"),
        "the cats .. mat <unk>",
    ),
}


@ALL_KINDS
def test_tokens_by_hand(kind):
    model, expected = BY_HAND[kind]
    words = by_hand(kind, model())
    encoder = tokenizer.BatchEncoder(words, tokenizer.all_steps(kind, NORMALIZER_STEPS))
    for text in ("The  cats..\nm\u00e1t.", "The  cats..\nmat."):
        (ids,) = encoder.ids([text])
        assert " ".join(map(words.id_to_token, ids)) == expected


def test_control_characters_end_words_but_for_bert():
    pieces = _vocab(["ma", "t", "mat"])
    for kind, expected in (
        ("wordpiece", ["ma", "<unk>", "t"]),
        ("bert_wordpiece", ["mat"]),
    ):
        words = by_hand(kind, models.WordPiece(pieces, unk_token="<unk>"))
        assert words.encode("ma\x07t", add_special_tokens=False).tokens == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "wo" not in kind])
def test_long_words_go_through_in_parts(kind):
    words = KINDS[kind].pre_tokenizer.pre_tokenize_str("a " + "b" * 250)
    assert [text for text, _ in words] == [
        *("\u2581a", "\u2581" + "b" * 99),
        *("b" * 100, "b" * 51),
    ]


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece_bpe"])
def test_merges_by_hand(kind):
    """Five times lo, ▁lo and ▁low; then twice ▁lowe. Ties go to the lower ids."""
    texts = ["low low", "low lower lowest"]
    words = tokenizer.train(lambda: texts, 7 + 8 + 4, NORMALIZER_STEPS, kind)
    pieces = ["e", "l", "o", "r", "s", "t", "w", "▁", "lo", "▁lo", "▁low", "▁lowe"]
    assert words.get_vocab() == _vocab(pieces)


def test_frequent_words_come_first():
    texts = ["b a c", "c b, b d"]
    words = tokenizer.train(lambda: texts, 11, NORMALIZER_STEPS, "wordlevel")
    assert words.get_vocab() == _vocab(["b", "c", ",", "a"])


@ALL_KINDS
def test_a_sentence_comes_back(trained, kind):
    text = "and he said that it was so, and not so."
    words = trained(kind)
    expected = text
    if kind in APART:
        expected = "and he said that it was so , and not so ."
    assert words.decode(ids_of(words, text.upper())) == expected


# What a normaliser, the pieces or the marks could get wrong.
ODD = [*"aB .,'`-\n\t\r\x0b\x1c\x00\u2581#<>", "the", "<mask>", "<s>", "##"]
ODD += ["\u00e9", "\u0130", "\u212a", "\u0301", "\u2003", "\u4e2d", "\u0085"]


@ALL_KINDS
@settings(deadline=None, max_examples=200)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(ODD) | st.characters()).map("".join),
        min_size=1,
        max_size=8,
    ),
    piece=st.integers(1, 20),
    steps=st.sampled_from([NORMALIZER_STEPS, ("lowercase",), ()]),
)
def test_encoding_in_pieces_gives_the_tokenizers_ids(
    trained, kind, texts, piece, steps
):
    """No token is lost or invented at a cut, nor by the short way for ASCII."""
    words = trained(kind, steps)
    texts = [text.encode(errors="replace").decode() for text in texts]
    for text in texts:
        pieces = encode.split(text, piece)
        assert re.sub("[ \n]", "", "".join(pieces)) == re.sub("[ \n]", "", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "PIECE_CHARS", piece)
        encoder = tokenizer.BatchEncoder(words, tokenizer.all_steps(kind, steps))
        encoded = list(encode._encoded(encoder, texts))
    for (text, parts), expected in zip(encoded, texts, strict=True):
        assert text == expected
        ids = ids_of(words, text)
        assert [i for part in parts for i in part] == ids
        assert all(i == 3 or i >= 7 for i in ids)  # 3: <unk>


@ALL_KINDS
def test_special_tokens_in_text_are_plain_characters(kind, tmp_path):
    """Even where the text is full of them, and they might become pieces."""
    spelled = " ".join(f"{c}<mask>{c} {c}<s>{c} {c}<unk>," for c in "abcdefghij")
    texts = [*books(10), *[spelled] * 200]
    words = tokenizer.train(lambda: texts, 300, NORMALIZER_STEPS, kind)
    words.save(str(tmp_path / "t.json"))
    words = tokenizer.load(tmp_path / "t.json", "")
    ids = ids_of(words, "a <mask> b<s>c <sep> <unk> </s><pad>")
    assert min(ids) >= 7 or set(ids) & set(range(7)) == {3}
    assert "mask" in words.decode(ids) or kind == "wordlevel"


SCRIPT = """
import hashlib, json, sys
from cramjax.data import tokenizer
from cramjax.data.tokenizer import KINDS
from cramjax.config.data import NORMALIZER_STEPS
texts = json.load(sys.stdin)
for kind in KINDS:
    words = tokenizer.train(lambda: texts, 500, NORMALIZER_STEPS, kind)
    print(hashlib.sha256(words.to_str().encode()).hexdigest())
"""


def test_the_same_text_gives_the_same_tokenizer():
    """In the library, ties and numbers depend on a hash map's order, and on threads."""
    texts, found = books(20), []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed, "PYTHONPATH": "."},
        )
        found.append(done.stdout.split())
    assert len(found[0]) == len(set(found[0])) == len(KINDS)
    assert found[0] == found[1]


@ALL_KINDS
def test_the_same_text_with_many_ties_gives_the_same_tokenizer(kind):
    words = ["wel", "come", "to", "the", "tok", "en", "izers", "libr", "ary", "zero"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation(words)) for _ in range(20)]
    size = {"wordlevel": 16, "unigram": 27, "sentencepiece_unigram": 27}.get(kind, 50)
    trained = {
        tokenizer.train(lambda: texts, size, NORMALIZER_STEPS, kind).to_str()
        for _ in range(20)
    }
    assert len(trained) == 1


@ALL_KINDS
def test_a_size_that_the_text_cannot_fill_names_one_that_it_can(kind):
    texts = books(2)

    def train(size):
        return tokenizer.train(lambda: texts, size, NORMALIZER_STEPS, kind)

    for size, message in ((9000, "allows at most"), (16, "characters alone need")):
        if (size, kind) == (16, "wordlevel"):  # which needs no characters
            assert train(size).get_vocab_size() == size
            continue
        with pytest.raises(UserError, match=message) as error:
            train(size)
        way_out = re.search(r"--config.model.vocab_size=(\d+) or", str(error.value))
        possible = int(way_out.group(1))
        assert train(possible).get_vocab_size() == possible
        if size == 9000:  # it really is the most
            with pytest.raises(UserError, match=message):
                train(possible + 1)


def test_where_the_library_prunes_too_far_the_goal_is_raised():
    texts = books(2)
    words = tokenizer._assembled("unigram", NORMALIZER_STEPS, models.Unigram())
    documents = iter([texts, texts, texts])
    model = tokenizer._train_unigram(words, lambda: next(documents), 400)
    assert list(documents) == []  # a third pass
    assert Tokenizer(model).get_vocab_size() == 400


def test_an_imported_tokenizer_keeps_its_normalizer(tmp_path):
    """And gets our ids, and ours alone."""
    names = ["[PAD]", "a", "b", "[UNK]", "[CLS]", "c", "[SEP]", "[MASK]", "d"]
    theirs = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, "[UNK]"))
    theirs.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace("!", " d ")]
    )
    theirs.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    theirs.save(str(tmp_path / "theirs.json"))
    text = tokenizer.adopt(tmp_path / "theirs.json", 9, (), "imported")
    (tmp_path / "ours.json").write_text(text)
    ours = tokenizer.load(tmp_path / "ours.json", "")
    steps = tokenizer.all_steps("imported", ())
    found = tokenizer.BatchEncoder(ours, steps).ids(["A! c", "\u00c9 B", "[MASK]"])
    words = [[ours.id_to_token(i) for i in ids] for ids in found]
    assert words == [["a", "d", "c"], ["[UNK]", "b"], ["[UNK]"]]
    assert [ours.token_to_id(n) for n in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")] == [
        *(0, 3, 4, 5)
    ]
    for vocabulary, message in (
        ({name: i for i, name in enumerate(names)}, "has an entry with the id 8 and"),
        ({"a": 0, "[MASK]": 99}, "has an entry with the id 99 and"),
        ({"a": 0}, "has none of"),
    ):
        theirs = Tokenizer(models.WordLevel(vocabulary, "a"))
        theirs.save(str(tmp_path / "theirs.json"))
        with pytest.raises(UserError, match=f"json {message}"):
            tokenizer.adopt(tmp_path / "theirs.json", 8, (), "imported")
    with pytest.raises(UserError, match="tokenizer_kind is 'imported': must be anothe"):
        load("configs/quickstart.py", ["data.tokenizer_kind=imported"])


def test_spellings():
    prefixed = by_hand("wordpiece", models.WordPiece(_vocab(["the", "##s", "##"])))
    spelled = [("", False)] * 7
    assert tokenizer.spellings(prefixed) == [
        *spelled,
        *(("the", True), ("s", False), ("##", True)),
    ]
    marked = by_hand(
        "bpe", models.BPE(_vocab(["▁", "é", "▁é"]), [("▁", "é")], unk_token="<unk>")
    )
    assert tokenizer.spellings(marked) == [
        *spelled,
        *(("", True), ("é", False), ("é", True)),
    ]
    assert list(token_bytes(marked)[7:]) == [0, 2, 2]
    corpus = SimpleNamespace(tokenizer=marked, manifest={"vocab_size": 10})
    assert list(-order._decoded_length(corpus)[7:]) == [1, 1, 2]


def test_periods():
    pieces = [*[".", "##.", "▁.", "mat.", "▁mat.", ".."], '."', "a.b", "▁.."]
    words = by_hand("wordlevel", models.WordLevel(_vocab(pieces), unk_token="<unk>"))
    corpus = SimpleNamespace(tokenizer=words, manifest={"vocab_size": 7 + len(pieces)})
    assert list(order._periods(corpus)[7:]) == [1, 0, 1, 1, 1, 0, 0, 0, 0]


@ALL_KINDS
def test_a_corpus(tmp_path, kind):
    """The store holds what the tokenizer says; orders, report and GLUE can use it."""
    documents = [text.replace(" of ", " o\x07f ") for text in books(30)]
    for number in range(2):
        text = "\n\n".join(documents[number::2])
        (tmp_path / f"{number}.txt").write_text(text)
    config = tiny_config(
        tmp_path / "d",
        f"data.sources={tmp_path}/*.txt",
        f"data.tokenizer_kind={kind}",
        "data.held_out_share=0.2",
    )
    corpus = prepare.prepare(config)
    words = corpus.tokenizer
    ids = {True: [], False: []}
    for text in (*documents[::2], *documents[1::2]):
        tokens = ids_of(words, text)
        ids[encode.is_held_out(text, 0.2)] += [*tokens, SEP]
    for blocks, held_out in ((corpus.train, False), (corpus.held_out, True)):
        tokens = ids[held_out][: len(ids[held_out]) // 32 * 32]
        tokens_NxL = blocks.take(np.arange(len(blocks)))
        np.testing.assert_array_equal(tokens_NxL, np.reshape(tokens, (-1, 32)))
    for name, values in order.TOKEN_SCORES.items():
        assert len(set(values(corpus))) > 1, name
        permutation = order.first_epoch(corpus, name, 0)
        assert sorted(permutation) == list(range(len(corpus.train)))
    report = (corpus.path / "report.md").read_text()
    samples = report.split("chosen at random\n")[1]
    assert " the " in samples and "\u2581" not in samples
    assert not re.search(r"[^ \n] *##", samples)  # a block may begin inside a word
    rows = glue_data.Rows([("It was so.", "He said"), ("The", "")], np.array([0, 1]))
    tokens = glue_data.encode(rows, words, 48).tokens_NxL
    pair = [4, *ids_of(words, "it was so."), 5, *ids_of(words, "he said"), 5]
    assert [t for t in tokens[0] if t != PAD] == pair
    settings_of = corpus.manifest["settings"]
    assert settings_of["tokenizer_kind"] == kind


def test_tokens_of_a_large_vocabulary(tmp_path):
    numbers = [f"w{i}" for i in range(66_500)]
    texts = (" ".join(numbers[i : i + 400]) for i in range(0, len(numbers), 400))
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    config = tiny_config(
        tmp_path / "d",
        f"data.sources={tmp_path}/a.txt",
        "data.tokenizer_kind=wordlevel",
        "data.held_out_share=0.01",
        "model.vocab_size=65540",
    )
    corpus = prepare.prepare(config)
    blocks_NxL = corpus.train.take(np.arange(len(corpus.train)))
    assert blocks_NxL.dtype == np.uint32 and blocks_NxL.max() > 65_535
    last = corpus.tokenizer.id_to_token(65_539)
    rows = glue_data.Rows([(last,)], np.array([0]))
    tokens = glue_data.encode(rows, corpus.tokenizer, 48).tokens_NxL
    assert [t for t in tokens[0] if t != PAD] == [4, 65_539, 5, 5]


def test_a_tokenizer_of_another_corpus(tiny, corpus, tmp_path):
    path = corpus.path / "tokenizer.json"
    texts = ["an odd little text " * 9 + str(i) for i in range(99)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    overrides = [f"data.sources={tmp_path}/a.txt", f"data.tokenizer={path}"]
    other = prepare.prepare(tiny_config(tmp_path / "d", *overrides))
    assert other.tokenizer.to_str() == corpus.tokenizer.to_str()
    assert "odd" in other.tokenizer.decode(other.train.take(np.array([0]))[0])
    copies = {name: json.loads(path.read_text()) for name in ("swapped", "cut", "bert")}
    vocab = copies["swapped"]["model"]["vocab"]
    vocab["<mask>"], vocab["<sep>"] = 5, 6
    copies["cut"]["truncation"] = {
        "direction": "Right",
        "max_length": 9,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    copies["bert"]["pre_tokenizer"] = {"type": "BertPreTokenizer"}
    for name, values in copies.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    bert = "; pass --config.data.tokenizer_kind=bert_wordpiece"
    for override, message in (
        (f"data.tokenizer={tmp_path}/x", "x cannot be read"),
        ("model.vocab_size=300", "has 256 entries, not config.model.vocab_size=300"),
        ("data.normalizer=('nfd',)", "another normalizer"),
        (
            f"data.tokenizer={tmp_path}/swapped.json",
            "does not have the special tokens <pad> <s> </s> <unk> <cls> <sep> <mask> "
            r"as its first ones; the tokenizer\.json of a packed corpus has them",
        ),
        (f"data.tokenizer={tmp_path}/cut.json", "tokenizer_kind=wordpiece trains$"),
        (f"data.tokenizer={tmp_path}/bert.json", f"_kind=wordpiece trains{bert}"),
        ("data.tokenizer_kind=bpe", "trains; pass --config.data.tokenizer_kind=wordpi"),
    ):
        with pytest.raises(UserError, match=f"config.data.tokenizer: .*{message}"):
            prepare.prepare(tiny_config(tmp_path / "d", *overrides, override))


@ALL_KINDS
def test_every_kind_can_be_given_to_another_corpus(trained, kind, tmp_path):
    trained(kind).save(str(tmp_path / "t.json"))
    given = tokenizer.adopt(tmp_path / "t.json", SIZE, NORMALIZER_STEPS, kind)
    assert given == trained(kind).to_str()
    for other in set(KINDS) - {kind}:
        with pytest.raises(
            UserError, match=f"pass --config.data.tokenizer_kind={kind}$"
        ):
            tokenizer.adopt(tmp_path / "t.json", SIZE, NORMALIZER_STEPS, other)
