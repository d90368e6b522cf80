"""The packaged toxicity classifier is real and quiet; other pickles are loaded only on request."""

import subprocess
import sys

import joblib
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from negalign_ray.config import HeadConfig
from negalign_ray.errors import ConfigError, ScoreError
from negalign_ray.rewards import build_head, check_head

TOXICITY = HeadConfig(name="toxicity", kind="sklearn", target="alt-profanity-check")


def test_the_packaged_classifier_scores_an_insult_above_a_thank_you():
    check_head(TOXICITY)
    head = build_head(TOXICITY)
    insult, thanks = head.score(
        [("Hi", "You are a stupid worthless idiot"), ("Hi", "Thank you very much for your help")]
    )
    assert 0 <= thanks < 0.1
    assert 0.9 < insult <= 1
    assert head.score([]) == []


def test_the_packaged_classifier_reads_the_prompt_only_when_asked_for():
    pair = [("You are a stupid worthless idiot", "Thank you")]
    sighted = build_head(TOXICITY.model_copy(update={"input": "prompt_response"}))
    assert build_head(TOXICITY).score(pair)[0] < 0.1 < sighted.score(pair)[0]


def test_loading_the_packaged_classifier_prints_and_warns_nothing():
    code = (
        "from negalign_ray.config import HeadConfig; from negalign_ray.rewards import build_head\n"
        "build_head(HeadConfig(name='toxicity', kind='sklearn', target='alt-profanity-check')).score([('a', 'b')])"
    )
    done = subprocess.run([sys.executable, "-W", "always::UserWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def joblib_file(tmp_path):
    texts = ["bad bad words", "awful bad", "good words", "nice good"]
    pipeline = make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, ["harm", "harm", "ok", "ok"])
    joblib.dump(pipeline, tmp_path / "judge.joblib")
    return tmp_path / "judge.joblib"


def pickled(target, **settings):
    return HeadConfig(name="mine", kind="sklearn", target=str(target), **settings)


def test_a_joblib_file_is_refused_unless_it_is_vouched_for(joblib_file):
    for function in (check_head, build_head):
        with pytest.raises(ConfigError, match="allow_pickle: true"):
            function(pickled(joblib_file))
    config = pickled(joblib_file, allow_pickle=True, label="harm")
    check_head(config)
    bad, good = build_head(config).score([("p", "bad"), ("p", "good")])
    assert good < 0.5 < bad


def test_the_score_is_the_probability_of_the_named_label(joblib_file):
    harm = build_head(pickled(joblib_file, allow_pickle=True, label="harm")).score([("p", "bad")])[0]
    last = build_head(pickled(joblib_file, allow_pickle=True)).score([("p", "bad")])[0]  # classes sort: harm, ok
    assert harm + last == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"label='safe'.*\['harm', 'ok'\]"):
        build_head(pickled(joblib_file, allow_pickle=True, label="safe"))


def test_a_file_that_is_absent_or_no_classifier_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        check_head(pickled(tmp_path / "none.joblib", allow_pickle=True))
    with pytest.raises(ConfigError, match=r"nor a \.joblib file; .* made by `negalign-ray data judge`"):
        check_head(pickled("profanity"))
    joblib.dump({"weights": [1, 2]}, tmp_path / "dict.joblib")
    with pytest.raises(ConfigError, match="holds a dict without predict_proba"):
        build_head(pickled(tmp_path / "dict.joblib", allow_pickle=True))
    (tmp_path / "junk.joblib").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_head(pickled(tmp_path / "junk.joblib", allow_pickle=True))


def test_a_file_of_another_scikit_learn_version_is_refused(tmp_path, joblib_file):
    model = joblib.load(joblib_file).steps[-1][1]
    state = model.__getstate__() | {"_sklearn_version": "0.24.2"}
    old = tmp_path / "old.joblib"
    joblib.dump(_Restored(state), old)
    with pytest.raises(ConfigError, match=r"written by scikit-learn 0\.24\.2"):
        build_head(pickled(old, allow_pickle=True))


class _Restored:
    """Pickles as a LogisticRegression with the given state."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return LogisticRegression, (), self.state


def test_a_classifier_that_raises_is_a_typed_failure(tmp_path):
    numbers = LogisticRegression().fit([[0.0], [1.0]], [0, 1])  # takes numbers, not texts
    joblib.dump(numbers, tmp_path / "numbers.joblib")
    head = build_head(pickled(tmp_path / "numbers.joblib", allow_pickle=True))
    with pytest.raises(ScoreError, match="the classifier raised ValueError"):
        head.score([("p", "text")])


def test_toxicity_is_not_safety_polite_and_careless_advice_passes():
    head = build_head(TOXICITY)
    careless = "A smoke alarm only makes noise, so take the battery out for good."
    assert head.score([("", careless)])[0] < 0.2 < head.score([("", "Shut up, you pathetic idiot.")])[0]
