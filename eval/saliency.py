"""Where a model sees a disorder: maps over all slices of a case.

    >>> from radfm.eval.saliency import saliency
    >>> maps = saliency(model, processor, case, "Pneumothorax")
    >>> [one.shape for one in maps], [scan.pixels.shape for scan in case.scans]

Decisions:
- Towers that were taught what single places show say it: a disorder's map is what their places say of it, which is
  also what the case's embedding begins with. On phantoms the gradient points far worse (`radfm.eval.localisation`).
- Other CNNs: HiResCAM (Draelos and Carin 2020, arXiv:2011.08891), the gradient of the disorder's logit times the last
  feature map, place by place. Grad-CAM (Selvaraju et al. 2017) averages the gradient over the slice first, and can then
  mark places that the logit was not computed from.
- The last feature map of small pictures is too coarse to point with (3 places a side of 96 pixels): then it is the
  deepest stage with at least 6. The logit is no longer a sum over its places, but what is marked is what it used.
- Vision transformers: the same product at the patches that enter the last block, gradient times input. What leaves that
  block will not do: where only the class token is read, patches have no gradient there.
- The gradient comes through the scan and the case encoder, so it holds what a slice counts for its scan and a scan for
  its case. All maps of a case are divided by one maximum: scans and slices compare, and a scan may be dark.
- Only what speaks for the disorder is kept. A dark map says that nothing does, not that the disorder is absent.
- Up to that layer the tower keeps no gradients and takes slices in chunks: memory is that of a diagnosis.
- A map shows what the logit came from, which need not be the lesion: `radfm.eval.localisation` measures how often it
  is, beside weights that learned nothing, as Adebayo et al. 2018 ("Sanity checks for saliency maps") ask for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from radfm.cases import Case, Scan
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.slice_encoder_radfm import RadFMSliceEncoder, slab_sizes
from radfm.starting_points import embed_texts
from radfm.towers_radfm import Tower

_FINE = 8  # as many points a side as a place has, between which the brightest is looked for
_COLOURS = ((0.0, (88, 24, 130)), (0.4, (212, 62, 80)), (0.7, (250, 150, 40)), (1.0, (252, 240, 130)))  # of a map
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes of the patient, and NIfTI's
_COVER = 0.62  # how much of the picture the brightest colour hides


@dataclass
class Explanation:
    """What speaks for one disorder, in all scans of a case.

    Attributes:
        disorder: its name.
        logit: the plain one, before any calibration: what the maps explain.
        scans: of the case.
        coarse: per scan (slices taken, h, w) float32 in [0, 1], as coarse as the tower's feature map and in the square
            that the tower sees; 1 is the case's maximum.
        attentions: per scan (slices taken,), the scan encoder's over its slices; the same for all disorders.
        taken: per scan, which slices the model was shown.
    """

    disorder: str
    logit: float
    scans: list[Scan]
    coarse: list[np.ndarray]
    attentions: list[np.ndarray]
    taken: list[list[int]]
    _images: RadFMImageProcessor

    def key_slice(self, scan: int) -> int:
        """The slice that counted most for its scan; where the model counts all alike, the one with most in its map."""
        weights = self.attentions[scan]
        if np.ptp(weights) < 1e-6 * weights.max():
            weights = self.coarse[scan].sum((1, 2))
        return self.taken[scan][int(weights.argmax())]

    def peak(self, scan: int) -> tuple[int, int, int]:
        """Slice, row and column of the scan's brightest point, between the places of a slice by cubics."""
        pixels, coarse = self.scans[scan].pixels, torch.from_numpy(self.coarse[scan])
        fine = F.interpolate(coarse[:, None], scale_factor=_FINE, mode="bicubic")[:, 0]
        index, *place = np.unravel_index(int(fine.argmax()), fine.shape)
        fit = _fit(self._images, pixels.shape[1:3], self.scans[scan].spacing_mm)
        point = []
        for at, cells, (start, length), size in zip(place, fine.shape[1:], fit, pixels.shape[1:3], strict=True):
            in_the_fit = ((at + 0.5) / cells * self._images.size - start) / length
            point.append(min(max(int(in_the_fit * size), 0), size - 1))
        return (self.taken[scan][int(index)], *point)

    def part_of_square(self, scan: int) -> tuple[float, float, float, float]:
        """Where the scan's pixels lie in the square that the tower sees: top, left, height, width, of 1."""
        size, shown = self._images.size, self.scans[scan]
        (top, height), (left, width) = _fit(self._images, shown.pixels.shape[1:3], shown.spacing_mm)
        return top / size, left / size, height / size, width / size

    def scan_map(self, scan: int, slices: Sequence[int] | None = None) -> np.ndarray:
        """(slices, H, W) float32 in [0, 1] over a scan's own pixels; or of the given slices alone.

        Between the slices that the model was shown it is interpolated.
        """
        pixels, taken, coarse = self.scans[scan].pixels, self.taken[scan], self.coarse[scan]
        wanted = np.arange(len(pixels)) if slices is None else np.asarray(slices)
        place = np.interp(wanted, taken, np.arange(len(taken)))
        below = np.floor(place).astype(int)
        above, share = np.ceil(place).astype(int), (place - below)[:, None, None]
        between = coarse[below] * (1 - share) + coarse[above] * share
        return in_the_scan(between.astype(np.float32), self._images, pixels.shape[1:3], self.scans[scan].spacing_mm)


def saliency(model: RadFMForDiagnosis, processor: RadFMProcessor, case: Case, disorder: str) -> list[np.ndarray]:
    """Per scan a map (slices, H, W) float32 in [0, 1] over its own pixels; 1 is the maximum of the case.

    Raises:
        ValueError: the case has no scan, or the model cannot be asked for this disorder.
    """
    found = explain(model, processor, case, [disorder])[0]
    return [found.scan_map(scan) for scan in range(len(case.scans))]


def explain(
    model: RadFMForDiagnosis, processor: RadFMProcessor, case: Case, disorders: Sequence[str]
) -> list[Explanation]:
    """One explanation for each disorder, of one pass through the tower.

    Args:
        disorders: names; those of the vocabulary are asked for as they are saved there, a text head reads the others.
    Raises:
        ValueError: the case has no scan, or an mlp head has no such disorder.
    """
    if not case.scans:
        raise ValueError("the case has no scan to look at")
    batch = processor(cases=[case]).to(model.device)
    del batch["key_slices"]
    encoder, images = model.radfm.slice_encoder, processor.image_processor
    rows, embeds = _asked(model, processor, disorders)
    counts = batch["slices_per_scan"].tolist()
    if model.radfm.patch_projection is not None:
        with _at_rest(model), torch.no_grad():
            output = model(**batch, text_embeds=embeds)
            logits = output.logits[0, rows]
            patches = encoder(batch["pixel_values"], counts, with_patches=True).patches
            all_maps = (model.radfm.patch_projection(patches.patch_logits) @ embeds.T).movedim(-1, 0).float()
    else:
        with _at_rest(model), _tapped(encoder) as seen, torch.enable_grad():
            output = model(**batch, text_embeds=embeds)
            logits = output.logits[0, rows]
            gradients = [torch.autograd.grad(logit, seen, retain_graph=True) for logit in logits]
        all_maps = [
            torch.cat([_product(encoder.tower, *pair) for pair in zip(seen, of_logit, strict=True)])
            for of_logit in gradients
        ]
    attentions = [part.cpu().numpy() for part in output.slice_attentions.detach().float().split(counts)]
    taken = [images.choose_slices(len(scan.pixels)) for scan in case.scans]
    found = []
    for name, logit, maps in zip(disorders, logits.tolist(), all_maps, strict=True):
        maps = _of_slices(maps, counts, encoder.config.slice_depth).clamp(min=0)  # (slices, h, w)
        maps = maps / maps.max().clamp(min=torch.finfo(torch.float32).tiny)
        coarse = [part.cpu().numpy() for part in maps.split(counts)]
        found.append(Explanation(name, logit, case.scans, coarse, attentions, taken, images))
    return found


def in_the_scan(
    maps: np.ndarray, images: RadFMImageProcessor, shape: tuple[int, int], spacing_mm: tuple | None
) -> np.ndarray:
    """(n, h, w) over the square that a tower sees -> (n, H, W) over the pixels that were fitted into it."""
    (top, height), (left, width) = _fit(images, shape, spacing_mm)
    square = F.interpolate(torch.from_numpy(maps)[:, None], size=(images.size, images.size), mode="bilinear")
    fitted = square[:, :, top : top + height, left : left + width]
    return F.interpolate(fitted, size=tuple(shape), mode="bilinear", antialias=True)[:, 0].clamp(0, 1).numpy()


def overlay(pixels: np.ndarray, saliency_map: np.ndarray) -> np.ndarray:
    """A map in colour over a slice, which stays as it is where the map is dark.

    Args:
        pixels: (H, W) or (H, W, 3) uint8, ready to be shown.
        saliency_map: (H, W) in [0, 1].
    Returns:
        (H, W, 3) uint8.
    """
    grey = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    stops, colours = zip(*_COLOURS, strict=True)
    colour = np.stack([np.interp(saliency_map, stops, channel) for channel in zip(*colours, strict=True)], axis=2)
    cover = _COVER * np.clip(saliency_map, 0, 1)[..., None] ** 0.8
    return np.uint8(np.rint(grey * (1 - cover) + colour * cover))


def to_nifti(scan: Scan, saliency_map: np.ndarray, path: str | Path) -> None:
    """Writes a scan's map (slices, H, W) as NIfTI, where its voxels lie in the patient: a viewer lays it over the
    files that the scan was read from.

    Where the scan does not know its place (`affine` is None), the file has the spacing alone, 1 mm where that is
    unknown, too, and fits `to_nifti(scan, scan.pixels, ...)`.

    Raises:
        ValueError: the map is not over the scan's pixels.
    """
    import nibabel

    if tuple(saliency_map.shape) != tuple(scan.pixels.shape[:3]):
        raise ValueError(f"a map of shape {saliency_map.shape} is not over a scan of shape {scan.pixels.shape[:3]}")
    if scan.affine is None:
        slice_mm, row_mm, column_mm = (mm or 1.0 for mm in scan.spacing_mm or (1.0, 1.0, 1.0))
        affine, code = np.diag([column_mm, row_mm, slice_mm, 1.0]), 0
    else:
        affine, code = _LPS_TO_RAS @ scan.affine[:, [2, 1, 0, 3]], 1  # the scanner's own place
    image = nibabel.Nifti1Image(saliency_map.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine if code else None, code=code)
    image.set_sform(affine if code else None, code=code)
    nibabel.save(image, path)


def _fit(images: RadFMImageProcessor, shape: tuple[int, int], spacing_mm: tuple | None) -> list[tuple[int, int]]:
    """Where a scan's rows and columns lie in the square that a tower sees: (start, length) of each."""
    return [((images.size - length) // 2, length) for length in images._shape(shape, spacing_mm)]


def _asked(model: RadFMForDiagnosis, processor, disorders: Sequence[str]) -> tuple[list[int], Tensor | None]:
    """Which logits are wanted, of those over the given embeddings (texts, d), or else over the vocabulary."""
    vocabulary = model.config.vocabulary
    if not model.head.reads_text:
        return vocabulary.rows(disorders), None
    rows = [vocabulary.get(name) for name in disorders]
    others = [name.strip() for name, row in zip(disorders, rows, strict=True) if row is None]
    read = iter(embed_texts(model, processor, others) if others else ())
    embeds = [next(read) if row is None else model.head.disorder_embeds[row] for row in rows]
    return list(range(len(rows))), torch.stack(embeds)


@contextmanager
def _at_rest(model: RadFMForDiagnosis) -> Iterator[None]:
    """In eval mode with its own tower and weights that want no gradient; afterwards as it was."""
    training = model.training
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        with model.radfm.slice_encoder.tower.unoptimized():  # an optimized one keeps no gradients
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_()
        model.train(training)


@contextmanager
def _tapped(encoder: RadFMSliceEncoder) -> Iterator[list[Tensor]]:
    """Gradients begin at what is put into the list, chunk by chunk, as the tower computes it."""
    seen = []

    def tap(activations: Tensor) -> Tensor:
        seen.append(activations.detach().requires_grad_())
        return seen[-1]

    undo = encoder.tower.replace_activations(tap)
    try:
        yield seen
    finally:
        undo()


def _product(tower: Tower, activations: Tensor, gradient: Tensor) -> Tensor:
    """Gradient times activation, summed over channels: (slabs, h, w)."""
    return tower.sum_channels(activations.detach().float() * gradient.float())


def _of_slices(maps: Tensor, counts: Sequence[int], depth: int) -> Tensor:
    """(slabs, h, w) -> (slices, h, w): the slices of a slab share its map."""
    return maps if depth == 1 else maps.repeat_interleave(slab_sizes(counts, depth, maps.device), dim=0)
