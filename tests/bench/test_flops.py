"""FLOPs of a training step, counted by hand."""

from pathlib import Path

from negalign_ray.bench.flops import ModelShape, train_flops
from negalign_ray.data.collate import pack_rows
from negalign_ray.records import Group, Prompt, Response, Role


def test_a_row_is_counted_as_by_hand():
    shape = ModelShape(linear_weights=1000, vocab_size=10, hidden_size=4, attention_width=8)
    prompt = Prompt(0, "", (), (5, 6), ())
    answers = (Response(Role.NEGATIVE, (7,), ""), Response(Role.SAMPLE, (8, 9), ""))
    rows = pack_rows([Group(0, prompt, answers)], max_row_tokens=100)
    # 2 prompt tokens once, 1 + 2 response tokens. Pairs that may attend: prompt 1 + 2, first answer 3, second 3 + 4.
    linear, head, attention = 6 * 1000 * 5, 6 * 10 * 4 * 3, 12 * 8 * (1 + 2 + 3 + 3 + 4)
    assert train_flops(shape, rows) == linear + head + attention == 31968


def test_the_toy_models_shape_is_counted_as_by_hand(toy_model: Path):
    shape = ModelShape.of(toy_model)
    # Per layer: q and o of 64 x (4 heads * 32), k and v of 64 x (2 heads * 32), three of 64 x 128 in the MLP.
    per_layer = 2 * 64 * 128 + 2 * 64 * 64 + 3 * 64 * 128
    assert shape == ModelShape(linear_weights=2 * per_layer, vocab_size=304, hidden_size=64, attention_width=2 * 4 * 32)
