"""A method of the user's own: loaded, its settings checked, its loss tried before anything is started."""

import pytest
import torch

from negalign_ray.config import CustomConfig
from negalign_ray.errors import ConfigError
from negalign_ray.methods import METHODS, Needs, method_of
from negalign_ray.methods.custom_check import check_method
from negalign_ray.metrics import metric_for
from tests.methods.cases import negative, sample, tensors

OWN = "tests.methods.own_methods"


def own(name: str, **more) -> CustomConfig:
    return CustomConfig(target=f"{OWN}:{name}", **more)


def refusal(section: CustomConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_method(section)
    return str(caught.value)


def test_a_method_in_the_users_file_computes_its_loss_with_its_settings():
    section = own("HINGE", settings={"margin": 3})
    check_method(section)
    method = method_of(section)
    assert method.name == "hinge"
    assert method.needs(section) == Needs(negatives=True, references=True)
    output = method.loss(tensors([[negative(-2.0), sample(-1.0)], [negative(-4.0)]]), section)
    torch.testing.assert_close(output.loss_G, torch.tensor([1.0, 0.0], dtype=torch.float64))  # 3 - 2, 3 - 4 cut off


def test_metrics_of_its_own_get_a_name_that_the_catalogue_knows():
    output = method_of(own("HINGE")).loss(tensors([[negative(-0.5)]]), own("HINGE"))
    assert {name: values_G.tolist() for name, values_G in output.metrics_G.items()} == {"own_active_frac": [1.0]}
    assert metric_for("learner/own_active_frac").unit == "of the method"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_check_accepts_every_packaged_method(name):
    section = own(f"PACKAGED.{name}", reward_head="any")
    if name == "neat":
        assert "Needs(candidates=True) is for method.name=neat alone" in refusal(section)
    else:
        check_method(section)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BROKEN.tensor", "the loss returned a Tensor; return LossOutput(loss_G=..., metrics_G={...})"),
        ("BROKEN.mean", "returned loss_G of shape () for 2 groups; return one value per group, (2,)"),
        ("BROKEN.per_answer", "returned loss_G of shape (2, 3) for 2 groups"),
        ("BROKEN.metric_gradient", "returned the metric own_x with a gradient; add `.detach()`"),
        ("BROKEN.metric_mean", "returned own_x of shape () for 2 groups"),
        ("BROKEN.metric_name", "returned a metric called 'own_My x'; use small letters, digits and _"),
        ("BROKEN.no_gradient", "the loss has no gradient; compute it from groups.logprobs_GR"),
        ("BROKEN.not_finite", "padding has reward nan and log-prob 0"),
        ("BROKEN.poisoned", "has a gradient that is not finite on made-up groups; choose with torch.where BEFORE"),
        ("BROKEN.coupled", "of a group changes with the other groups of its micro-batch"),
        ("BROKEN.raises", "failed on 2 made-up groups (AttributeError: "),
        ("BROKEN.not_empty", "failed on 0 made-up groups (IndexError: "),
        ("CANDIDATES", "Needs(candidates=True) is for method.name=neat alone; drop it"),
        ("REWARD", "needs rewards, but method.reward_head is not set; name one of scorers.heads"),
        ("NO_METHOD", "is a function, not a negalign_ray.methods.Method; end the file with `METHOD = Method("),
        ("Settings", "is the class Settings, not a negalign_ray.methods.Method"),
        ("NO_FUNCTION", "loss is 3, not a function"),
        ("NO_NEEDS", "needs returned a str; return negalign_ray.methods.Needs(...)"),
        ("NO_SETTINGS", "is not a class under negalign_ray.config.Section"),
        ("MISSING", f"'{OWN}' has no 'MISSING'. It defines: "),
    ],
)
def test_a_broken_method_is_refused_with_what_to_do(name, reason):
    message = refusal(own(name))
    assert reason in message
    assert message.startswith(f"method.target='{OWN}:{name}'")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margn": 1}, "method.settings.margn=1: the method has no such setting; did you mean margin?"),
        ({"x": 1}, "method.settings.x=1: the method has no such setting; it has margin."),
        (
            {"margin": "big"},
            "method.settings.margin='big': should be a valid number, unable to parse string as a number",
        ),
        ({"margin": 0}, "method.settings.margin=0: should be greater than 0; correct it."),
    ],
)
def test_a_setting_that_the_method_does_not_take_is_refused(settings, message):
    assert refusal(own("HINGE", settings=settings)).startswith(message)


def test_an_error_in_the_users_file_names_its_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from negalign_ray.methods import Method, Needs, always\n"
        "def loss(groups, settings):\n"
        "    return groups.logprob\n"
        "METHOD = Method('mine', loss, always(Needs(negatives=True)))\n"
    )
    assert "failed on 2 made-up groups in line 3 (AttributeError" in refusal(CustomConfig(target=f"{file}:METHOD"))
