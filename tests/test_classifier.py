"""The user's own classifier: its folder, training it, and predicting with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cramjax
from cramjax.checkpoints import classifier as classifier_module
from cramjax.checkpoints.classifier import SavedClassifier, save
from cramjax.errors import UserError
from cramjax.model.encoder import Classifier


def test_a_saved_classifier_is_the_same_when_loaded(tiny, corpus, tmp_path):
    module = Classifier(tiny.model, classes=3, head_width=16)
    params = module.init(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    kept = SavedClassifier(
        tiny.model, params, corpus.tokenizer, ("a", "b", "c"), ("x", "y"), 16, 32, True
    )
    save(tmp_path / "kept", kept, {"metric": "accuracy"})
    found = cramjax.load_classifier(tmp_path / "kept")
    for field in dataclasses.fields(kept):
        if field.name not in ("params", "tokenizer"):
            assert getattr(found, field.name) == getattr(kept, field.name)
    # Each row has the outputs it has alone, whatever its length and its place.
    texts = [("the sea " * n, "a ship") for n in (9, 1, 30)]
    outputs_NxC = found.outputs(texts)
    assert outputs_NxC.shape == (3, 3)
    for text, outputs_C in zip(texts, outputs_NxC, strict=True):
        alone_C = kept.outputs([text])[0]
        np.testing.assert_allclose(outputs_C, alone_C, atol=1e-5)
    best = outputs_NxC.argmax(axis=1)
    predicted = found.predict(texts)
    assert [label for label, _ in predicted] == ["abc"[i] for i in best]
    assert all(1 / 3 <= probability <= 1 for _, probability in predicted)
    assert found.outputs([]).shape == (0, 3)


def test_a_folder_that_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no classifier"):
        classifier_module.load(tmp_path)
