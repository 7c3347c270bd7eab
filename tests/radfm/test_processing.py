"""From a case to the packed batch: shapes, intensities, geometry, ids."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from transformers import PreTrainedTokenizerFast

from radfm import Case, RadFMImageProcessor, RadFMProcessor, Scan
from radfm.configuration_radfm import DEFAULT_MODALITIES, PLANES


@pytest.fixture(scope="module")
def processor() -> RadFMProcessor:
    return RadFMProcessor(RadFMImageProcessor(size=32))


def scan(slices: int = 3, height: int = 40, width: int = 40, **fields) -> Scan:
    pixels = np.random.default_rng(slices).integers(0, 255, (slices, height, width)).astype(np.uint8)
    return Scan(pixels, **fields)


def test_the_packed_batch_has_the_contract_s_keys_shapes_and_types(processor):
    first = Case(scans=[scan(3, modality="CT", plane="axial", days=0.0), scan(1, modality="X-ray", plane="PA")])
    second = Case(scans=[scan(2, modality="MRI", plane="sagittal", days=31.0, key_slice=1)])
    batch = processor(cases=[first, second], text=["pneumothorax", "rib fracture"], return_tensors="pt")
    assert batch["pixel_values"].shape == (6, 3, 32, 32)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["slices_per_scan"].tolist() == [3, 1, 2]
    assert batch["scans_per_case"].tolist() == [2, 1]
    assert batch["modality_ids"].tolist() == [DEFAULT_MODALITIES.index(m) for m in ("CT", "X-ray", "MRI")]
    assert batch["plane_ids"].tolist() == [PLANES.index(p) for p in ("axial", "PA", "sagittal")]
    assert batch["days"][0] == 0
    assert batch["days"][1].isnan()
    assert batch["key_slices"].tolist() == [-1, -1, 1]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert {batch[k].dtype for k in ("slices_per_scan", "scans_per_case", "modality_ids", "input_ids")} == {torch.int64}


def test_no_case_a_case_without_scans_and_a_scan_without_slices_pack(processor):
    batch = processor(cases=[Case(), Case(scans=[scan(0)])])
    assert batch["pixel_values"].shape == (0, 3, 32, 32)
    assert batch["scans_per_case"].tolist() == [0, 1]
    assert batch["slices_per_scan"].tolist() == [0]
    with pytest.raises(ValueError, match="nothing to process"):
        processor()


def test_ct_windows_are_the_three_channels():
    hounsfield = np.full((1, 8, 8), -1000, np.int16)
    hounsfield[0, :, 4:] = 40
    images = RadFMImageProcessor(size=8, image_mean=None, image_std=None)
    lung, soft, bone = images(hounsfield, modality="CT")["pixel_values"][0]
    assert lung[0, 0] == pytest.approx((-1000 + 1350) / 1500)
    assert soft[0, 0] == 0
    assert soft[0, 7] == pytest.approx(0.5)
    assert bone[0, 7] == pytest.approx((40 + 500) / 1800)


def test_other_modalities_are_scaled_between_their_own_percentiles():
    pixels = np.linspace(1000, 3000, 64, dtype=np.float32).reshape(1, 8, 8)
    images = RadFMImageProcessor(size=8, image_mean=None, image_std=None, intensity_percentiles=(0, 100))
    values = images(pixels, modality="MRI")["pixel_values"]
    assert values.min() == 0
    assert values.max() == 1
    torch.testing.assert_close(values[:, 0], values[:, 2])
    torch.testing.assert_close(images(pixels * 7 - 50, modality="MRI")["pixel_values"], values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint64, np.float32])
def test_percentiles_equal_numpys_for_every_dtype(dtype):
    values = np.random.default_rng(0).normal(60, 30, (5, 20, 20)).clip(0, 120).astype(dtype)
    if dtype in (np.int8, np.int16):
        values -= dtype(100)
    if dtype == np.int32:
        values *= 1000  # more kinds than are counted
    images = RadFMImageProcessor(size=20, image_mean=None, image_std=None, intensity_percentiles=(3, 98.7))
    low, high = np.percentile(values, (3, 98.7))
    expected = ((values.astype(np.float32) - low) / (high - low)).clip(0, 1)
    processed = images(values, return_tensors="pt")["pixel_values"][:, 0]
    np.testing.assert_allclose(processed, expected, atol=1e-5)


def test_a_grey_scan_is_stored_once():
    values = RadFMImageProcessor(size=32)(np.ones((5, 16, 16), np.uint8), modality="MRI")["pixel_values"]
    assert values.shape == (5, 3, 32, 32)
    assert values.untyped_storage().nbytes() == 5 * 32 * 32 * 4


def test_the_shape_of_the_anatomy_is_kept():
    pixels = np.ones((1, 20, 40), np.uint8)
    pixels[0, 0, 0] = 0
    images = RadFMImageProcessor(size=40, image_mean=None, image_std=None, intensity_percentiles=(0, 100))
    upright = images(pixels)["pixel_values"][0, 0]
    assert upright[:10].max() == 0
    assert upright[12:28].min() == 1
    # Rows twice as far apart as columns: the anatomy is square.
    assert images(pixels, spacing_mm=(1, 2, 1))["pixel_values"][0, 0, 2:, 2:].min() > 0.9
    stretched = RadFMImageProcessor(size=40, image_mean=None, keep_aspect_ratio=False, intensity_percentiles=(0, 100))
    assert stretched(pixels)["pixel_values"][0, 0, 5:].min() == 1


def test_the_middle_is_cropped_where_the_shorter_side_has_a_length():
    pixels = np.zeros((1, 20, 40), np.uint8)
    pixels[0, 2:18, 12:28] = 255
    images = RadFMImageProcessor(size=16, shortest_edge=20, image_mean=None, intensity_percentiles=(0, 100))
    assert images(pixels)["pixel_values"].min() == 1
    assert images.placement((20, 40), None) == ((-2, 20), (-12, 40))
    assert images.placement((40, 20), (1, 0.5, 1)) == ((-2, 20), (-2, 20))  # the anatomy is square
    with pytest.raises(ValueError, match="shortest_edge is at least size"):
        RadFMImageProcessor(size=16, shortest_edge=12)


def test_bytes_can_be_rescaled_as_they_are_and_other_pixels_keep_their_percentiles():
    images = RadFMImageProcessor(size=8, rescale_bytes=True, image_mean=None, intensity_percentiles=(0, 100))
    pixels = np.linspace(51, 102, 64).reshape(1, 8, 8)
    np.testing.assert_allclose(images(pixels.astype(np.uint8))["pixel_values"][0, 0], pixels[0].astype(np.uint8) / 255)
    values = images(pixels.astype(np.uint16))["pixel_values"]
    assert (values.min(), values.max()) == (0, 1)


def test_slices_can_be_standardised_one_by_one_whatever_their_units():
    pixels = np.random.default_rng(0).normal(0, 300, (3, 8, 8)).astype(np.float32)
    pixels[2] = 7
    images = RadFMImageProcessor(size=8, standardize_slices=True, intensity_percentiles=(0, 100))
    values = images(pixels, modality="MRI")["pixel_values"][:, 0]
    expected = (pixels[:2] - pixels[:2].mean((1, 2), keepdims=True)) / pixels[:2].std((1, 2), ddof=1, keepdims=True)
    np.testing.assert_allclose(values[:2], expected, atol=1e-4)
    assert values[2].abs().max() < 1e-3  # an empty slice
    torch.testing.assert_close(images(pixels * 3 - 8)["pixel_values"][:2, 0], values[:2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_slices_are_resampled_as_torchvision_resamples_pictures(resample):
    pixels = np.random.default_rng(0).integers(0, 2, (1, 9, 9)).astype(np.uint8)
    options = {"image_mean": None, "intensity_percentiles": (0, 100), "resample": resample}
    values = RadFMImageProcessor(size=20, **options)(pixels)["pixel_values"]
    mode = InterpolationMode(resample)
    expected = resize(torch.from_numpy(pixels).float(), [20, 20], mode, antialias=True).clamp(0, 1)
    torch.testing.assert_close(values[:, 0], expected)


def test_colour_stays_colour():
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    pixels[..., 0] = 255
    images = RadFMImageProcessor(size=8, image_mean=None, intensity_percentiles=(0, 100))
    assert images(pixels, modality="ultrasound")["pixel_values"][0].amax((1, 2)).tolist() == [1, 0, 0]


def test_a_limit_of_slices_keeps_them_evenly_and_the_key_slice_with_them():
    processor = RadFMProcessor(RadFMImageProcessor(size=8, max_slices=4))
    pixels = np.arange(12, dtype=np.float32)[:, None, None] * np.ones((1, 8, 8), np.float32)
    batch = processor(cases=[Case(scans=[Scan(pixels, key_slice=7)])])
    assert batch["slices_per_scan"].tolist() == [4]
    assert processor.image_processor.choose_slices(12) == [0, 3, 6, 9]
    assert batch["key_slices"].tolist() == [2]


def test_planes_take_the_rows_of_a_modality_in_the_order_of_the_case():
    rows = ["padding", "CT", "CT 2", "MRI", "other"]
    processor = RadFMProcessor(RadFMImageProcessor(size=8, modalities=rows))
    planes = [("CT", "axial"), ("MRI", "axial"), ("CT", "coronal"), ("CT", "axial"), ("CT", "sagittal"), (None, None)]
    batch = processor(cases=[Case(scans=[scan(1, 8, 8, modality=m, plane=p) for m, p in planes])])
    assert batch["modality_ids"].tolist() == [1, 3, 2, 1, 2, 4]


def test_pixels_of_a_wrong_shape_or_not_finite_are_refused(processor):
    with pytest.raises(ValueError, match=r"got \(4, 4\)"):
        processor(cases=[Case(scans=[Scan(np.zeros((4, 4)))])])
    with pytest.raises(ValueError, match="NaN"):
        processor(cases=[Case(scans=[Scan(np.full((1, 4, 4), np.nan, np.float32))])])


def test_processor_survives_saving(processor, tmp_path):
    processor.image_processor.ct_windows = [[40.0, 80.0]]
    processor.save_pretrained(tmp_path)
    again = RadFMProcessor.from_pretrained(tmp_path)
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    assert again(text=["ACL tear"])["input_ids"].tolist() == processor(text=["ACL tear"])["input_ids"].tolist()


def test_a_ct_is_the_same_picture_after_saving(tmp_path):
    images = RadFMImageProcessor(size=8)
    images.save_pretrained(tmp_path)
    hounsfield = np.random.default_rng(0).integers(-1000, 1500, (2, 8, 8)).astype(np.int16)
    again = RadFMImageProcessor.from_pretrained(tmp_path)(hounsfield, modality="CT")["pixel_values"]
    assert torch.equal(again, images(hounsfield, modality="CT")["pixel_values"])


def test_the_planes_of_readers_are_planes_of_the_model():
    assert {"axial", "coronal", "sagittal", "oblique", "PA", "AP", "lateral", "MLO", "CC"} < set(PLANES)


def test_a_modality_that_the_model_lacks_is_the_broader_one_or_other(processor):
    scans = [Scan(np.zeros((1, 8, 8), np.uint8), name) for name in ("dental radiography", "dermoscopy", None)]
    batch = processor(cases=[Case(scans)], return_tensors="pt")
    assert [DEFAULT_MODALITIES[i] for i in batch["modality_ids"]] == ["X-ray", "other", "other"]


TEXTS = ["T2-weighted MRI", "No effusion.Liver:  NORMAL (3.5cm)...", "\tPneumothorax\n", "Ménière's", ""]
WORDS = [  # of nltk's wordpunct_tokenize of the text in lower case
    ["t2", "-", "weighted", "mri"],
    ["no", "effusion", ".", "liver", ":", "normal", "(", "3", ".", "5cm", ")..."],
    ["pneumothorax"],
    ["ménière", "'", "s"],
    [],
]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are what is between spaces."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *sorted({word for text in WORDS for word in text})])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def test_texts_are_cut_into_words_and_punctuation_where_the_processor_says_so(words, tmp_path):
    images = RadFMImageProcessor(size=32)
    RadFMProcessor(images, words, split_words=True).save_pretrained(tmp_path)
    processor = RadFMProcessor.from_pretrained(tmp_path)
    tokens = processor(text=TEXTS, padding=False, return_tensors=None)["input_ids"]
    assert [words.convert_ids_to_tokens(ids) for ids in tokens] == WORDS
    tokens = RadFMProcessor(images, words)(text=TEXTS[:1], return_tensors=None)["input_ids"]
    assert words.convert_ids_to_tokens(tokens[0]) == ["[UNK]", "[UNK]"]


def test_histories_are_cut_as_names_are(words):
    processor = RadFMProcessor(RadFMImageProcessor(size=32), words, use_history=True, split_words=True)
    batch = processor(cases=[Case(scans=[scan()], history=TEXTS[0])], pixels=False)
    assert words.convert_ids_to_tokens(batch["history_input_ids"][0]) == WORDS[0]


def test_the_longest_text_is_a_setting_that_is_saved(tmp_path):
    text = ["word " * 600]
    assert RadFMProcessor()(text=text)["input_ids"].shape == (1, 256)
    RadFMProcessor(max_tokens=300).save_pretrained(tmp_path)
    assert RadFMProcessor.from_pretrained(tmp_path)(text=text)["input_ids"].shape == (1, 300)
    processor = RadFMProcessor(max_tokens=10_000)
    assert processor(text=text)["input_ids"].shape == (1, processor.tokenizer.model_max_length)
