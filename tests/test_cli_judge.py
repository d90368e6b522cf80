"""`negalign-ray data judge`: the judge's rows and the rows left to train on never share a prompt."""

import json

from typer.testing import CliRunner

from negalign_ray.cli import app
from negalign_ray.rewards.linear import LinearHead


def test_a_judge_is_fitted_on_a_share_of_the_prompts_and_the_rest_is_written_out(tmp_path, toy_model):
    rows = []
    for number in range(60):
        rows.append({"prompt": f"question {number}", "response": f"you fool, go away {number}", "label": "unsafe"})
        rows.append({"prompt": f"question {number}", "response": f"gladly, here is how {number}", "label": "safe"})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    limits = ["--set", "data.max_prompt_tokens=600", "--set", "data.max_response_tokens=600"]
    command = ["data", "judge", str(data), str(tmp_path / "out"), "--frac", "0.5", "--set", f"model.path={toy_model}"]
    result = CliRunner().invoke(app, [*command, *limits])
    assert result.exit_code == 0, result.output
    assert "AUROC    1.000" in result.output
    assert "input: response" in result.output

    head = LinearHead.load(tmp_path / "out" / "judge")
    rude, kind = head.score([("question", "you fool, go away"), ("question", "gladly, here is how")])
    assert rude > 0.5 > kind
    assert head.card.text_input == "response"
    assert (head.card.num_harmful, head.card.num_benign) == (30, 30)
    rest = [json.loads(line) for line in (tmp_path / "out" / "rest.jsonl").read_text().splitlines()]
    assert len({row["prompt"][0]["content"] for row in rest}) == 30
    assert {row["label"] for row in rest} == {"safe", "unsafe"}
