def test_the_toy_model_loads_in_transformers_with_its_chat_template(toy_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    model = AutoModelForCausalLM.from_pretrained(toy_model)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi é 😀"}], tokenize=False)
    assert text == "<|im_start|>user\nHi é 😀<|im_end|>\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert model.num_parameters() < 200_000
