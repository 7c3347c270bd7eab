"""What the tests of commands need: a model built on the spot, and a real study that a dependency ships."""

from pathlib import Path

from pydicom.data import get_testdata_file

# MR images of one patient in three series, part of pydicom's own test files.
STUDY = Path(get_testdata_file("DICOMDIR")).parent / "98892003"

DISORDERS = (
    *("Normal", "Meningioma", "Glioblastoma", "Pituitary adenoma", "Vestibular schwannoma", "Brain metastasis"),
    *("Multiple sclerosis", "Ischemic stroke", "Intracerebral hemorrhage", "Subdural hematoma", "Hydrocephalus"),
    *("Arachnoid cyst", "Cerebral aneurysm", "Sinusitis", "Disc herniation", "Spinal stenosis", "Osteosarcoma"),
    *("Pneumonia", "Pneumothorax", "Pleural effusion", "Pulmonary embolism", "Lung cancer", "Aortic dissection"),
    *("Appendicitis", "Gallstones", "Cirrhosis", "Renal cell carcinoma", "Hydronephrosis", "Rib fracture"),
    *("Anterior cruciate ligament tear", "Meniscal tear", "Osteomyelitis", "Breast cancer", "Thyroid nodule"),
)


def build(folder: Path) -> int:
    """Saves an untrained model that knows the names of `DISORDERS`, and its processor; returns its size in numbers."""
    from radfm.knowledge.disorders import codes
    from radfm.starting_points import embed_texts, untrained

    model, processor = untrained()
    model.set_disorders(DISORDERS, embed_texts(model, processor, DISORDERS), codes(DISORDERS))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
