"""Tables of DICOM terms: objects that are not images of the patient, views of radiographs, words of anatomy."""

SET_ASIDE = {  # SOP class UID, or a prefix that ends with a dot -> what the object is
    "1.2.840.10008.5.1.4.1.1.88.": "a structured report",
    "1.2.840.10008.5.1.4.1.1.11.": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
    "1.2.840.10008.5.1.4.1.1.481.3": "a radiotherapy structure set (contours)",
    "1.2.840.10008.5.1.4.1.1.481.4": "a radiotherapy treatment record",
    "1.2.840.10008.5.1.4.1.1.481.5": "a radiotherapy plan",
    "1.2.840.10008.5.1.4.1.1.481.6": "a radiotherapy treatment record",
    "1.2.840.10008.5.1.4.1.1.481.7": "a radiotherapy treatment record",
    "1.2.840.10008.5.1.4.1.1.481.8": "a radiotherapy plan",
    "1.2.840.10008.5.1.4.1.1.481.9": "a radiotherapy treatment record",
    "1.2.840.10008.5.1.4.1.1.66.1": "a spatial registration",
    "1.2.840.10008.5.1.4.1.1.66.2": "a list of landmarks",
    "1.2.840.10008.5.1.4.1.1.66.3": "a spatial registration",
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.6": "a set of fibre tracts",
    "1.2.840.10008.5.1.4.1.1.66": "raw data of the scanner",
    "1.2.840.10008.5.1.4.1.1.67": "a table of units",
    "1.2.840.10008.5.1.4.1.1.104.": "an encapsulated document",
    "1.2.840.10008.5.1.4.1.1.9.": "a waveform",
    "1.2.840.10008.5.1.4.1.1.4.2": "MR spectroscopy",
    "1.2.840.10008.5.1.4.39.": "a colour palette",
    "1.2.840.10008.5.1.4.38.": "a hanging protocol",
}
SET_ASIDE_MODALITIES = {
    "SR": "a structured report", "PR": "a presentation state", "KO": "a list of key images",
    "RTSTRUCT": "a radiotherapy structure set (contours)", "RTPLAN": "a radiotherapy plan",
    "RTDOSE": "a radiotherapy dose", "RTRECORD": "a radiotherapy treatment record", "SEG": "a segmentation",
    "REG": "a spatial registration", "DOC": "an encapsulated document", "ECG": "a waveform", "HD": "a waveform",
    "EPS": "a waveform", "AU": "a sound recording", "PLAN": "a plan", "FID": "a list of landmarks",
}  # fmt: skip
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"

VIEWS = {
    "AP": "AP", "PA": "PA", "LL": "lateral", "RL": "lateral", "LAT": "lateral", "LATERAL": "lateral", "ML": "lateral",
    "LM": "lateral", "LLAT": "lateral", "RLAT": "lateral",  "MLO": "MLO", "CC": "CC",
    "RLO": "oblique", "LLO": "oblique", "RAO": "oblique", "LAO": "oblique", "RPO": "oblique", "LPO": "oblique",
}  # fmt: skip
VIEW_CODES = {  # SNOMED RT and CT, DICOM PS3.16 CID 4010 and 4014
    "R-10206": "AP", "R-10214": "PA", "R-10236": "lateral", "R-10232": "lateral", "R-10224": "lateral",
    "R-10228": "lateral", "R-10226": "MLO", "R-10242": "CC", "399368009": "MLO", "399162004": "CC",
    "399260004": "lateral", "399352003": "lateral",
}  # fmt: skip
_ANATOMY = """
abdomen abdomenpelvis abdominal abdpelvis adrenal and ankle anus aorta aortic arch arm artery axilla back bilateral
bile bladder body bone bones bowel brachial brain breast breastbilateral bronchus buttock calcaneus calf cardiac
carotid cerebellum cerebral cervical cervix cheek chest chestabdomen chestabdomenpelvis chestabdpelvis clavicle
coccyx colon cornea coronary cspine ctspine duct duodenum ear elbow entire esophagus extremity eye eyelid face
facial femoral femur fetus fibula finger foot forearm gallbladder hand head headneck headneckchest heart hip humerus
iac ileum iliac inner jaw jejunum joint kidney knee larynx left leg legs limb liver long lower lowerlimb lspine
lstspine lumbar lung lungs mandible maxilla mediastinum mouth neck neckchest nose of orbit orbits ovary pancreas
parotid patella pelvic pelvis penis pharynx pituitary portal prostate pulmonary radius rectum renal rib ribs right
sacrum scalp scapula scrotum sella shoulder sinus sinuses skeleton skull spine spleen ssp sternum stomach
submandibular supraclavicular testis thigh thoracic thoracoabdominal thorax thumb thymus thyroid tibia tmj to toe
tongue tooth trachea trunk tspine ulna upper upperlimb ureter urethra uterus vagina vein vertebra vertebral vessel
vessels vulva whole wholebody with wrist zygoma
"""
BODY_WORDS = frozenset(_ANATOMY.split())
