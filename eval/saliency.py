"""Saliency maps: how much each patch of a case contributes to the logit of a disorder.

    >>> from radfm.eval.saliency import saliency
    >>> maps = saliency(model, processor, case, "Pneumothorax")
    >>> [one.shape for one in maps], [scan.pixels.shape for scan in case.scans]

Decisions:
- Towers that were trained on segmentation masks have logits for each patch (`patch_logits`), and these are the map of
  a disorder: the embedding of the case is computed from them, too. On phantoms, gradients localise lesions far less
  well (`radfm.eval.localisation`).
- For other CNNs the map is HiResCAM (Draelos and Carin 2020, arXiv:2011.08891): the gradient of the logit times the
  last feature map, at each patch. Grad-CAM (Selvaraju et al. 2017) averages the gradient over the slice first, and can
  then mark patches that the logit was not computed from.
- The last feature map of small images is too coarse (3 patches a side for 96 pixels). Then it is the deepest stage
  with at least 6 patches a side. The logit is not a sum over these patches, but those that are marked contribute to
  it.
- For vision transformers it is the same product at the patches that enter the last block. Those that leave it have no
  gradient if only the class token is used.
- The gradient passes through the scan and the case encoder, so a map includes the weight of a slice in its scan, and
  that of a scan in its case. All maps of a case are divided by one maximum, so that scans and slices are comparable; a
  scan can be dark.
- Only positive contributions are kept. A dark map does not mean that the disorder is absent.
- The map of a volume has a depth of its own, and goes back to the scan's voxels by the way they came.
- Below that layer the tower keeps no gradients and takes slices in chunks, so the memory is that of a diagnosis.
- A map shows what the logit was computed from, which need not be the lesion. `radfm.eval.localisation` measures how
  often it is, beside random weights, as Adebayo et al. 2018 ("Sanity checks for saliency maps") propose.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from radfm.base_tower_radfm import Tower
from radfm.cases import Case, Scan
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.modeling_radfm import RadFMForDiagnosis
from radfm.processing_radfm import RadFMProcessor
from radfm.starting_points import embed_texts
from radfm.volume_processing_radfm import VolumeGrid, VolumeSettings

_SLICES = 16  # of a volume's map, at once
_FINE = 8  # points a side of a patch, among which the maximum is searched
_COLOURS = ((0.0, (88, 24, 130)), (0.4, (212, 62, 80)), (0.7, (250, 150, 40)), (1.0, (252, 240, 130)))  # of a map
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes of the patient, and NIfTI's
_DARK = 0.05  # of the maximum of the case
_TINY = float(torch.finfo(torch.float32).tiny)
_OPACITY = 0.62  # of the brightest colour


@dataclass
class Explanation:
    """The saliency maps of one disorder in all scans of a case.

    Attributes:
        disorder: its name.
        logit: before calibration; it is what the maps explain.
        scans: those of the case.
        coarse: per scan (slices taken, h, w) float32 in [0, 1], at the resolution of the tower's feature map and in the
            square that the tower gets; of a volume (windows * d, h, w). 1 is the maximum of the case.
        attentions: per scan (slices taken,), the scan encoder's over its slices; the same for all disorders.
        taken: per scan, the indices of the slices that the model got; of a volume, the nearest ones.
    """

    disorder: str
    logit: float
    scans: list[Scan]
    coarse: list[np.ndarray]
    attentions: list[np.ndarray]
    taken: list[list[int]]
    _images: RadFMImageProcessor
    _peaks: dict[int, tuple[int, int, int]] = field(default_factory=dict, repr=False)  # of volumes, once found

    def key_slice(self, scan: int) -> int:
        """The slice with the highest attention; if all have the same, the one with the largest sum of its map."""
        if self.grid(scan):
            return self.peak(scan)[0]
        weights = self.attentions[scan]
        if np.ptp(weights) < 1e-6 * weights.max():
            weights = self.coarse[scan].sum((1, 2))
        return self.taken[scan][int(weights.argmax())]

    def peak(self, scan: int) -> tuple[int, int, int]:
        """Slice, row and column of the maximum of the scan's map, by bicubic interpolation between patches."""
        if grid := self.grid(scan):
            if scan not in self._peaks:
                self._peaks[scan] = self._peak_of_volume(scan, grid)
            return self._peaks[scan]
        pixels, coarse = self.scans[scan].pixels, torch.from_numpy(self.coarse[scan])
        fine = F.interpolate(coarse[:, None], scale_factor=_FINE, mode="bicubic")[:, 0]
        index, *position = np.unravel_index(int(fine.argmax()), fine.shape)
        fit = self._images.placement(pixels.shape[1:3], self.scans[scan].spacing_mm)
        point = []
        for at, cells, (start, length), size in zip(position, fine.shape[1:], fit, pixels.shape[1:3], strict=True):
            in_the_fit = ((at + 0.5) / cells * self._images.size - start) / length
            point.append(min(max(int(in_the_fit * size), 0), size - 1))
        return (self.taken[scan][int(index)], *point)

    def part_of_square(self, scan: int) -> tuple[float, float, float, float]:
        """Where the pixels of a scan are in the square that the tower gets: top, left, height, width, as shares.

        A scan that was cropped starts before the square and ends behind it.
        """
        size, pixels = self._images.size, self.scans[scan].pixels
        (top, height), (left, width) = self._images.placement(pixels.shape[1:3], self.scans[scan].spacing_mm)
        return top / size, left / size, height / size, width / size

    def scan_map(self, scan: int, slices: Sequence[int] | None = None) -> np.ndarray:
        """(slices, H, W) float32 in [0, 1] over a scan's own pixels; or of the given slices alone.

        It is interpolated between the slices that the model got.
        """
        pixels, taken, coarse = self.scans[scan].pixels, self.taken[scan], self.coarse[scan]
        indices = np.arange(len(pixels)) if slices is None else np.asarray(slices)
        if grid := self.grid(scan):
            return grid.back(coarse, {0: indices})
        positions = np.interp(indices, taken, np.arange(len(taken)))
        below = np.floor(positions).astype(int)
        above, share = np.ceil(positions).astype(int), (positions - below)[:, None, None]
        between = coarse[below] * (1 - share) + coarse[above] * share
        return in_the_scan(between.astype(np.float32), self._images, pixels.shape[1:3], self.scans[scan].spacing_mm)

    def cut(self, scan: int, axis: int, index: int) -> np.ndarray:
        """`scan_map` at one position along an axis of the scan's pixels, of which the map has length 1 there."""
        if grid := self.grid(scan):
            return grid.back(self.coarse[scan], {axis: [index]})
        return self.scan_map(scan, [index]) if axis == 0 else self.scan_map(scan).take([index], axis)

    def is_dark(self, scan: int) -> bool:
        """Whether the map of a scan is near zero everywhere, so that its peak means nothing."""
        brightest = self.cut(scan, 0, self.peak(scan)[0]) if self.grid(scan) else self.coarse[scan]
        return float(brightest.max()) < _DARK  # that of a volume also lies over its padding

    @property
    def volume_settings(self) -> VolumeSettings | None:
        """How the model takes scans that it reads as volumes; None for a model that reads none."""
        return VolumeSettings(**self._images.volume) if self._images.volume else None

    def grid(self, scan: int) -> VolumeGrid | None:
        """Where the voxels of a scan's volume come from; None for a scan that was read slice by slice."""
        return self._images.grid(self.scans[scan]) if self._images.reads_volume(self.scans[scan]) else None

    def _peak_of_volume(self, scan: int, grid: VolumeGrid) -> tuple[int, int, int]:
        """The maximum over the voxels, of which a few slices at a time are in memory."""
        best, peak = -1.0, (0, 0, 0)
        for start in range(0, grid.shape[0], _SLICES):
            some = np.arange(start, min(start + _SLICES, grid.shape[0]))
            values = grid.back(self.coarse[scan], {0: some})
            if (highest := float(values.max())) > best:
                slice_, row, column = np.unravel_index(int(values.argmax()), values.shape)
                best, peak = highest, (start + int(slice_), int(row), int(column))
        return peak


def saliency(model: RadFMForDiagnosis, processor: RadFMProcessor, case: Case, disorder: str) -> list[np.ndarray]:
    """Per scan a map (slices, H, W) float32 in [0, 1] over its own pixels; 1 is the maximum of the case.

    Raises:
        ValueError: the case has no scan, or the model does not have this disorder.
    """
    explanation = explain(model, processor, case, [disorder])[0]
    return [explanation.scan_map(scan) for scan in range(len(case.scans))]


def explain(
    model: RadFMForDiagnosis, processor: RadFMProcessor, case: Case, disorders: Sequence[str]
) -> list[Explanation]:
    """One explanation for each disorder, by one pass through the tower.

    Args:
        disorders: names; those that are not in the vocabulary are embedded, if the head reads text.
    Raises:
        ValueError: the case has no scan, or an mlp head does not have a disorder.
    """
    if not case.scans:
        raise ValueError("the case has no scan: read it with radfm.read_case first")
    batch = processor(cases=[case]).to(model.device)
    del batch["key_slices"]
    rows, embeds = _queries(model, processor, disorders)
    with _frozen(model):
        from_patches = model.radfm.patch_projection is not None
        output, all_maps = (_patch_maps if from_patches else _gradient_maps)(model, batch, rows, embeds)
    counts, images = batch["slices_per_scan"].tolist(), processor.image_processor
    attentions = [part.cpu().numpy() for part in output.slice_attentions.detach().float().split(counts)]
    taken = [images.source_slices(scan) for scan in case.scans]
    explanations = []
    for name, logit, maps in zip(disorders, output.logits[0, rows].tolist(), all_maps, strict=True):
        highest = max(float(part.max()) for part in maps if part.numel())
        coarse = [(part.clamp(min=0) / max(highest, _TINY)).cpu().numpy() for part in maps]
        explanations.append(Explanation(name, logit, case.scans, coarse, attentions, taken, images))
    return explanations


def in_the_scan(
    maps: np.ndarray, images: RadFMImageProcessor, shape: tuple[int, int], spacing_mm: tuple | None
) -> np.ndarray:
    """(n, h, w) over the square that a tower gets -> (n, H, W) over the pixels that were fitted into it."""
    (top, height), (left, width) = images.placement(shape, spacing_mm)
    square = F.interpolate(torch.from_numpy(maps)[:, None], size=(images.size, images.size), mode="bilinear")
    # Padding is cut off, and what was cropped is dark.
    fitted = F.pad(square, (-left, left + width - images.size, -top, top + height - images.size))
    return F.interpolate(fitted, size=tuple(shape), mode="bilinear", antialias=True)[:, 0].clamp(0, 1).numpy()


def overlay(pixels: np.ndarray, saliency_map: np.ndarray) -> np.ndarray:
    """A map in colour over a slice, which is unchanged where the map is dark.

    Args:
        pixels: (H, W) or (H, W, 3) uint8, ready to be shown.
        saliency_map: (H, W) in [0, 1].
    Returns:
        (H, W, 3) uint8.
    """
    grey = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    stops = [stop for stop, _ in _COLOURS]
    channels = zip(*(colour for _, colour in _COLOURS), strict=True)
    colour = np.stack([np.interp(saliency_map, stops, channel) for channel in channels], axis=2)
    opacity = _OPACITY * np.clip(saliency_map, 0, 1)[..., None] ** 0.8
    return np.rint(grey * (1 - opacity) + colour * opacity).astype(np.uint8)


def to_nifti(scan: Scan, saliency_map: np.ndarray, path: str | Path) -> None:
    """Writes a scan's map (slices, H, W) as NIfTI in the coordinates of the patient, so that a viewer shows it over the
    files that the scan was read from.

    If the position of the scan is not known (`affine` is None), the file has the spacing alone, 1 mm where that is
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
        affine, code = _LPS_TO_RAS @ scan.affine[:, [2, 1, 0, 3]], 1  # the coordinates of the scanner
    image = nibabel.Nifti1Image(saliency_map.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine if code else None, code=code)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4)  # a tilted gantry: no qform can say so
    image.set_qform(None if sheared or not code else affine, code=0 if sheared else code)
    nibabel.save(image, path)


def _queries(model: RadFMForDiagnosis, processor, disorders: Sequence[str]) -> tuple[list[int], Tensor | None]:
    """The rows of the logits, and the text embeddings (texts, d) that these are of; None: the vocabulary.

    Raises:
        ValueError: the head does not read text, and a name is not in the vocabulary.
    """
    vocabulary = model.config.vocabulary
    if not model.head.reads_text:
        return vocabulary.rows(disorders), None
    rows = [vocabulary.get(name) for name in disorders]
    others = [name.strip() for name, row in zip(disorders, rows, strict=True) if row is None]
    new = iter(embed_texts(model, processor, others) if others else ())
    embeds = [next(new) if row is None else model.head.disorder_embeds[row] for row in rows]
    return list(range(len(rows))), torch.stack(embeds)


@torch.no_grad()
def _patch_maps(model: RadFMForDiagnosis, batch, rows: list[int], embeds: Tensor):
    """The output, and for each disorder and scan (slices, h, w): the patch logits that the case embedding is of."""
    projection = model.radfm.patch_projection
    assert projection is not None
    output = model(**batch, text_embeds=embeds)
    counts = batch["slices_per_scan"].tolist()
    patches = model.radfm.slice_encoder(batch["pixel_values"], counts, with_patches=True).patches
    maps = (projection(patches.patch_logits) @ embeds.T).movedim(-1, 0).float()
    return output, [of_disorder.split(counts) for of_disorder in maps]


@torch.enable_grad()
def _gradient_maps(model: RadFMForDiagnosis, batch, rows: list[int], embeds: Tensor | None):
    """The output, and for each disorder and scan (slices, h, w), or of a volume (windows * d, h, w): gradient times
    activation, summed over channels."""
    radfm, counts = model.radfm, batch["slices_per_scan"].tolist()
    volumes = batch["volumes"].tolist() if "volumes" in batch else [False] * len(counts)
    encoders = [encoder for encoder in (radfm.slice_encoder, radfm.volume_encoder) if encoder is not None]
    with ExitStack() as stack:
        recorded = [stack.enter_context(_recorded(encoder.tower)) for encoder in encoders]
        output = model(**batch, text_embeds=embeds)
        activations = [one for of_tower in recorded for one in of_tower]
        gradients = [torch.autograd.grad(logit, activations, retain_graph=True) for logit in output.logits[0, rows]]
    all_maps = []
    for of_logit in gradients:
        remaining, of_scans = iter(of_logit), {}
        for encoder, of_tower, is_volume in zip(encoders, recorded, (False, True), strict=False):
            chosen = [scan for scan, volume in enumerate(volumes) if volume == is_volume]
            slabs = [slab for act in of_tower for slab in _product(encoder.tower, act, next(remaining))]
            sizes = encoder.slab_sizes([counts[scan] for scan in chosen])
            of_scans |= dict(zip(chosen, _of_scans(slabs, sizes), strict=True))
        all_maps.append([of_scans[scan] for scan in range(len(counts))])
    return output, all_maps


@contextmanager
def _frozen(model: RadFMForDiagnosis) -> Iterator[None]:
    """The model in eval mode, its weights without gradients and its tower not optimised; afterwards as it was."""
    training = model.training
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        with ExitStack() as stack:
            for tower in model.radfm.towers:
                stack.enter_context(tower.unoptimized())  # an optimised tower keeps no gradients
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()
        model.train(training)


@contextmanager
def _recorded(tower: Tower) -> Iterator[list[Tensor]]:
    """The list is filled with the activations of each chunk of slices, at which gradients begin."""
    recorded: list[Tensor] = []

    def record(activations: Tensor) -> Tensor:
        recorded.append(activations.detach().requires_grad_())
        return recorded[-1]

    undo = tower.replace_activations(record)
    try:
        yield recorded
    finally:
        undo()


def _product(tower: Tower, activations: Tensor, gradient: Tensor) -> Tensor:
    """Gradient times activation, summed over channels: (slabs, h, w), or of volumes (slabs, d, h, w)."""
    return tower.sum_channels(activations.detach().float() * gradient.float())


def _of_scans(slabs: list[Tensor], sizes: list[list[int]]) -> list[Tensor]:
    """The maps of slabs, (h, w) or (d, h, w) each -> of scans: (slices, h, w), or one slab behind the other.

    Args:
        sizes: for each scan the slices in each of its slabs, which have the same map.
    """
    remaining, maps = iter(slabs), []
    for of_scan in sizes:
        parts = [(next(remaining), size) for size in of_scan]
        maps.append(torch.cat([part if part.ndim == 3 else part.expand(size, -1, -1) for part, size in parts]))
    return maps
