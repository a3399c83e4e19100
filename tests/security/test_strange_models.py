"""A model folder by a stranger runs nothing and leads nowhere else."""

import json

import pytest
from strangers import edit, payload

from linearard.errors import ModelError
from linearard.model import ModelConfig, load_config, load_model, load_tokenizer


class TestModelFolder:
    def test_code_is_not_run(self, with_code, ran):
        config = ModelConfig(name=str(with_code), device="cpu", dtype="float32")
        load_model(config)
        assert not ran.exists()

    def test_code_that_is_needed_is_named(self, with_code, ran):
        edit(with_code / "config.json", model_type="unheard-of")
        with pytest.raises(ModelError) as error:
            load_config(ModelConfig(name=str(with_code)))
        assert "custom code" in error.value.got and "--model.trust_remote_code" in error.value.fix
        assert not ran.exists()

    @pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
    def test_kernels_of_the_hub(self, key, with_code):
        edit(with_code / "config.json", **{key: "someone/kernel"})
        with pytest.raises(ModelError, match="no kernels of the hub"):
            load_config(ModelConfig(name=str(with_code)))

    def test_an_adapter_over_another_model(self, with_code, base_folder):
        """transformers would load the model that the adapter names, with code of peft's choice."""
        (with_code / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(base_folder), "peft_type": "LORA"})
        )
        with pytest.raises(ModelError, match="an adapter over another model"):
            load_config(ModelConfig(name=str(with_code)))

    @pytest.mark.parametrize("method", ["fp8", "gptq", "torchao", "bitsandbytes", "mxfp4"])
    def test_packed_weights(self, method, with_code):
        """Their readers load kernels and packages that the folder chooses."""
        edit(with_code / "config.json", quantization_config={"quant_method": method})
        with pytest.raises(ModelError, match="dense weights"):
            load_config(ModelConfig(name=str(with_code)))

    @pytest.mark.parametrize(
        "changes",
        [
            {"vocab_size": 2**40},
            {"vocab_size": -5},
            {"hidden_size": 2**40},
            {"num_hidden_layers": 2**31},
            {"num_hidden_layers": 0},
            {"num_attention_heads": 0},
            {"num_key_value_heads": 0},
            {"head_dim": -1},
            {"max_position_embeddings": 2**70},
            {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
            {
                "rope_parameters": {
                    "rope_type": "linear",
                    "rope_theta": 1e4,
                    "factor": float("inf"),
                }
            },
        ],
        ids=str,
    )
    def test_sizes_that_no_model_has(self, changes, with_code):
        """What is counted through or allocated before a weight is read."""
        edit(with_code / "config.json", **changes)
        with pytest.raises(ModelError):
            load_config(ModelConfig(name=str(with_code)))

    @pytest.mark.parametrize("name", ["../../outside", "a/b", "/tmp/x", "..\\x"])
    def test_chat_templates_stay_in_their_folder(self, name, with_code):
        templates = [{"name": name, "template": "x"}, {"name": "default", "template": "y"}]
        edit(with_code / "tokenizer_config.json", chat_template=templates)
        with pytest.raises(ModelError, match="names of files"):
            load_tokenizer(ModelConfig(name=str(with_code)))

    def test_pickled_weights_run_nothing(self, with_code, ran):
        (with_code / "model.safetensors").unlink()
        (with_code / "pytorch_model.bin").write_bytes(payload(ran))
        with pytest.raises(ModelError):
            load_model(ModelConfig(name=str(with_code), device="cpu", dtype="float32"))
        assert not ran.exists()

    def test_a_package_within_a_package_is_not_imported_to_find_it(
        self, tmp_path, ran, monkeypatch
    ):
        (tmp_path / "outer_package").mkdir()
        (tmp_path / "outer_package" / "__init__.py").write_text(f"open({str(ran)!r}, 'w')")
        (tmp_path / "outer_package" / "inner.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("package:outer_package.inner", "package:outer_package"):
            with pytest.raises(ModelError):
                load_config(ModelConfig(name=name))
        assert not ran.exists()
