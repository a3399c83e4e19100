"""Read exported models with transformers and peft alone, in a process of its own.

usage: python read_back.py IDS.pt RESULTS.pt FOLDER...
"""

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()


def read(folder):
    try:
        from peft import PeftConfig, PeftModel

        base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    except ValueError:  # no adapter_config.json: a complete model
        return AutoModelForCausalLM.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, config=config), folder
    )


def main(ids_path, results_path, *folders):
    ids, results = torch.load(ids_path), {}
    for folder in folders:
        model = read(folder).eval()
        with torch.no_grad():
            logits = [model(input_ids=part, use_cache=False).logits for part in ids]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        results[folder] = (logits, tokenizer("rope").input_ids, tokenizer.model_max_length)
    assert not any(name.startswith("linearard") for name in sys.modules)
    torch.save(results, results_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
