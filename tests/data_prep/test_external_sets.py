"""The 22 external sets: each is laid out in tiny as its authors publish it, and read."""

import json
import pickle
import re
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.uid import generate_uid as uid

from radfm.data_prep.plan import SPLITS
from radfm.data_prep.sources.external import ABOUT, ESTABLISHED, SETS, External, entry, table
from radfm.data_prep.sources.layout import pattern
from radfm.data_prep.sources.pickled_arrays import read_pickled
from radfm.knowledge import icd10cm
from radfm.knowledge.disorders import Vocabulary
from radfm.modalities import MODALITIES

SIZE = 24
DOC = Path(__file__).parents[2] / "docs" / "external_sets.md"


def number(path) -> int:
    """For pixels that no other file of a set has."""
    return zlib.crc32("/".join(path.parts[-2:]).encode()) % 1000


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number(path)).integers(0, 255, (size, size), dtype=np.uint8)).save(path)


def nifti(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(SIZE * SIZE * 3, dtype=np.int16).reshape(SIZE, SIZE, 3)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 5, 1])), path)


def dicom(path, modality, place=0, series="1.2.3"):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid()
    dataset.Modality, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = modality, series, "1.2"
    dataset.Rows = dataset.Columns = SIZE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 5.0 * place], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.InstanceNumber = [1, 1], place + 1
    dataset.PixelData = (np.arange(SIZE * SIZE, dtype=np.uint16) + number(path)).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def series(folder, modality):
    """Two slices, as TCIA's retriever names them."""
    for place in range(2):
        dicom(folder / f"1-{place + 1}.dcm", modality, place, series=f"1.2.{len(str(folder))}")


def rows(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def vindr_mammo(top):
    top = top / "vindr-mammo" / "1.0.0"
    for study, image in (("s1", "a"), ("s1", "b"), ("s2", "c"), ("s3", "d")):
        dicom(top / "images" / study / f"{image}.dicom", "MG")
    rows(
        top / "breast-level_annotations.csv",
        "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,split",
        "s1,x,a,L,CC,24,24,BI-RADS 4,DENSITY C,training",
        "s1,x,b,L,MLO,24,24,BI-RADS 4,DENSITY C,training",
        "s2,x,c,R,CC,24,24,BI-RADS 1,DENSITY B,test",
        "s9,x,z,R,CC,24,24,BI-RADS 1,DENSITY B,test",
    )
    rows(
        top / "finding_annotations.csv",
        "image_id,study_id,series_id,finding_categories,finding_birads,xmin,ymin,xmax,ymax",
        "a,s1,x,\"['Suspicious Calcification', 'Mass']\",BI-RADS 4,1,1,2,2",
        "b,s1,x,\"['Mass']\",BI-RADS 4,1,1,2,2",
        "c,s2,x,['No Finding'],,,,,",
    )
    return {
        "cases": {
            "s1": ("s1", ["Breast mass", "Suspicious breast calcification"], "train", 2),
            "s2": ("s2", [], "test", 1),
        },
        "rejected": {"images/s3/d.dicom": "has no row", "line 5": "not there"},
        "planes": {"CC", "MLO"},
    }


def cxr14(top):
    for folder, image in (
        ("images_001", "00000001_000"),
        ("images_001", "00000001_001"),
        ("images_002", "00000002_000"),
    ):
        picture(top / folder / "images" / f"{image}.png")
    rows(
        top / "Data_Entry_2017.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
        "00000001_000.png,Cardiomegaly|Effusion,0,1,058,M,PA,2682,2749,0.143,0.143,",
        "00000001_001.png,No Finding,1,1,058,M,AP,2894,2729,0.143,0.143,",
        "00000002_000.png,Hernia,0,2,081,F,PA,2500,2048,0.171,0.171,",
        "00000003_000.png,Hernia,0,3,081,F,PA,2500,2048,0.171,0.171,",
    )
    rows(top / "train_val_list.txt", "00000001_000.png", "00000001_001.png")
    rows(top / "test_list.txt", "00000002_000.png")
    return {
        "cases": {
            "00000001_000.png": ("1", ["Cardiomegaly", "Pleural effusion"], "train", 1),
            "00000001_001.png": ("1", [], "train", 1),
            "00000002_000.png": ("2", ["Diaphragmatic hernia"], "test", 1),
        },
        "rejected": {"line 5": "not there"},
        "planes": {"PA", "AP"},
    }


def vindr_spine(top):
    for split, image in (("train", "a"), ("train", "b"), ("test", "c")):
        dicom(top / f"{split}_images" / f"{image}.dicom", "DX")
    header = "image_id,study_id,series_id,rad_id,lesion_type,xmin,ymin,xmax,ymax"
    train = [
        "a,s1,x,rad1,Osteophytes,1,1,2,2",
        "a,s1,x,rad1,Osteophytes,3,3,4,4",
        "b,s1,x,rad1,Disc space narrowing,1,1,2,2",
    ]
    rows(top / "annotations" / "train.csv", header, *train)
    rows(top / "annotations" / "test.csv", header, "c,s2,x,rad2,No finding,,,,")
    disorders = ["Vertebral osteophyte", "Intervertebral disc space narrowing"]
    return {"cases": {"s1": ("s1", disorders, "train", 2), "s2": ("s2", [], "test", 1)}}


def mosmed(top):
    nifti(top / "COVID19_1110" / "studies" / "CT-0" / "study_0001.nii.gz")
    nifti(top / "COVID19_1110" / "studies" / "CT-2" / "study_0255.nii.gz")
    nifti(top / "COVID19_1110" / "masks" / "study_0255_mask.nii.gz")
    disorders = ["COVID-19 pneumonia, 25 to 50% of the lungs"]
    return {
        "cases": {"study_0001": ("study_0001", [], None, 1), "study_0255": ("study_0255", disorders, None, 1)},
        "codes": {"U07.1", "J12.82"},
    }


def adni(top):
    for place in range(2):
        name = f"ADNI_002_S_0295_MR_MP-RAGE__br_raw_2006041819371309{place}_{place}_S13408_I13722.dcm"
        dicom(top / "ADNI" / "002_S_0295" / "MP-RAGE" / "2006-04-18_08_20_30.0" / "I13722" / name, "MR", place)
    mci = "ADNI_003_S_0907_MR_MPR__GradWarp__N3_Br_20061212171313_S19096_I33000.nii"
    nifti(top / "ADNI" / "003_S_0907" / "MPR__GradWarp__N3" / "2006-09-11_07_38_29.0" / "S19096" / mci)
    nifti(top / "ADNI" / "003_S_0907" / "MPRAGE" / "2007-09-11_07_38_29.0" / "I40000" / "brain.nii.gz")
    rows(top / "ADNI" / "003_S_0907" / "ADNI_003_S_0907_I33000.xml", "<x/>")
    rows(
        top / "ADNI1_Screening_1_05_2024.csv",
        '"Image Data ID","Subject","Group","Sex","Age","Visit","Modality","Description","Type","Acq Date","Format"',
        '"I13722","002_S_0295","AD","M","84","sc","MRI","MP-RAGE","Original","4/18/2006","DCM"',
        '"33000","003_S_0907","MCI","F","88","sc","MRI","MPR","Processed","9/11/2006","NiFTI"',
        '"I40000","003_S_0907","CN","F","89","m12","MRI","MPR","Processed","9/11/2007","NiFTI"',
    )
    rows(top / "ADNIMERGE.csv", "RID,PTID,DX", "295,002_S_0295,Dementia")
    return {
        "cases": {
            "I13722": ("002_S_0295", ["Alzheimer's disease"], None, 1),
            "I33000": ("003_S_0907", ["Mild cognitive impairment"], None, 1),
            "I40000": ("003_S_0907", [], None, 1),
        },
    }


def nsclc(top):
    lung1 = top / "manifest-1603198545583" / "NSCLC-Radiomics"
    series(lung1 / "LUNG1-001" / "09-18-2008-NA-StudyID-69331" / "0.000000-NA-82046", "CT")
    series(lung1 / "LUNG1-001" / "09-18-2008-NA-StudyID-69331" / "300.000000-Segmentation-9.554", "SEG")
    series(lung1 / "LUNG1-002" / "01-01-2014-NA-StudyID-85095" / "1.000000-NA-61228", "CT")
    series(lung1 / "LUNG1-003" / "01-01-2014-NA-StudyID-85096" / "1.000000-NA-61229", "CT")
    series(top / "NSCLC Radiogenomics" / "R01-001" / "09-06-1990-NA-CT" / "3.000000-CT-1", "CT")
    rows(
        top / "NSCLC-Radiomics-Lung1.clinical-version3-Oct-2019.csv",
        "PatientID,age,clinical.T.Stage,Histology,gender",
        "LUNG1-001,78.7515,2,large cell,male",
        "LUNG1-002,83.8001,2,squamous cell carcinoma,male",
    )
    rows(
        top / "NSCLCR01Radiogenomic_DATA_LABELS_2018-05-22_1500-shifted.csv",
        "Case ID,Histology ",
        "R01-001,Adenocarcinoma",
    )
    return {
        "cases": {
            "LUNG1-001/09-18-2008-NA-StudyID-69331": ("LUNG1-001", ["Large cell carcinoma of lung"], None, 1),
            "LUNG1-002/01-01-2014-NA-StudyID-85095": ("LUNG1-002", ["Squamous cell carcinoma of lung"], None, 1),
            "R01-001/09-06-1990-NA-CT": ("R01-001", ["Lung adenocarcinoma"], None, 1),
        },
        "rejected": {"LUNG1-003": "has no row"},
    }


def tcga(top):
    series(top / "manifest-1" / "TCGA-LUAD" / "TCGA-05-4244" / "06-17-2001-NA-CT" / "2.000000-A-1", "CT")
    series(top / "manifest-1" / "TCGA-LUAD" / "TCGA-05-4244" / "06-17-2001-NA-CT" / "3.000000-LONGER-1", "CT")
    series(top / "manifest-1" / "TCGA-GBM" / "TCGA-02-0003" / "06-08-1997-MRI" / "1.000000-AX-1", "MR")
    rows(top / "manifest-1" / "metadata.csv", "Series UID,Collection", "1,TCGA-LUAD")
    return {
        "cases": {
            "TCGA-05-4244/06-17-2001-NA-CT": ("TCGA-05-4244", ["Lung adenocarcinoma"], None, 2),
            "TCGA-02-0003/06-08-1997-MRI": ("TCGA-02-0003", ["Glioblastoma"], None, 1),
        },
        "modalities": {"CT", "MRI"},
    }


def ispy1(top):
    series(top / "ISPY1" / "ISPY1_1001" / "12-05-1984-NA-485859-MR1" / "31800.000000-Dynamic-3dfgre", "MR")
    series(top / "ISPY1" / "ISPY1_1002" / "12-05-1984-NA-485859-MR1" / "31800.000000-Dynamic-3dfgre", "MR")
    rows(
        top / "I-SPY 1 All Patient Clinical and Outcome Data.csv",
        "SUBJECTID,DataExtractDt,age,race_id,ERpos,PgRpos,HR Pos,Her2MostPos,HR_HER2_CATEGORY",
        "1001,1/7/2011,38.73,1,0,0,0,0,3",
    )
    return {
        "cases": {
            "ISPY1_1001/12-05-1984-NA-485859-MR1": (
                "ISPY1_1001",
                ["Breast cancer", "Triple negative breast cancer"],
                None,
                1,
            ),
            "ISPY1_1002/12-05-1984-NA-485859-MR1": ("ISPY1_1002", ["Breast cancer"], None, 1),
        },
        "codes": {"C50.9", "Z17.421"},
    }


def chestx_det10(top):
    for image in ("00009426_006", "00009437_000", "00000042_006", "00030805_000"):
        picture(top / "images_001" / "images" / f"{image}.png")
    train = [
        {"file_name": "00009426_006.png", "syms": ["Effusion", "Effusion"], "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        {"file_name": "00009437_000.png", "syms": [], "boxes": []},
    ]
    rows(top / "train.json", json.dumps(train))
    rows(top / "test.json", json.dumps([{"file_name": "00000042_006.png", "syms": ["Fibrosis"], "boxes": []}, "what?"]))
    return {
        "cases": {
            "00009426_006.png": ("00009426", ["Pleural effusion"], "train", 1),
            "00009437_000.png": ("00009437", [], "train", 1),
            "00000042_006.png": ("00000042", ["Pulmonary fibrosis"], "test", 1),
        },
        "rejected": {"test.json, entry 2": "no object"},
    }


def chexpert(top):
    small = top / "CheXpert-v1.0-small"
    for image in ("train/patient00001/study1/view1_frontal", "train/patient00001/study1/view2_lateral",
                  "train/patient00002/study1/view1_frontal", "valid/patient64541/study1/view1_frontal"):  # fmt: skip
        picture(small / f"{image}.jpg")
    picture(top / "chexlocalize" / "CheXpert" / "test" / "patient64741" / "study1" / "view1_frontal.jpg")
    labels = (
        "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    )
    labels += "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
    header = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{labels}"
    path = "CheXpert-v1.0-small/train/patient0000"
    rows(
        small / "train.csv",
        header,
        f"{path}1/study1/view1_frontal.jpg,Female,68,Frontal,AP,,,-1.0,1.0,,,,,,0.0,,,,1.0",
        f"{path}1/study1/view2_lateral.jpg,Female,68,Lateral,,,,-1.0,1.0,,,,,,0.0,,,,1.0",
        f"{path}2/study1/view1_frontal.jpg,Male,40,Frontal,PA,,,,,,,,,,,,,,",
        f"{path}3/study1/view1_frontal.jpg,Male,40,Frontal,PA,1.0,,,,,,,,,,,,,",
        "somewhere/else.jpg,Male,40,Frontal,PA,1.0,,,,,,,,,,,,,",
    )
    valid = "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP"
    rows(small / "valid.csv", header, f"{valid},0,1,1,1,0,0,0,0,0,0,0,0,0,0")
    test = "test/patient64741/study1/view1_frontal.jpg"
    rows(top / "chexlocalize" / "CheXpert" / "test_labels.csv", f"Path,{labels}", f"{test},1,0,0,0,0,0,0,0,0,0,0,0,0,0")
    big = ["Enlarged cardiomediastinum", "Cardiomegaly", "Lung opacity"]
    return {
        "cases": {
            "train/patient00001/study1": ("patient00001", ["Lung opacity"], "train", 2),
            "train/patient00002/study1": ("patient00002", None, "train", 1),
            "valid/patient64541/study1": ("patient64541", big, "validation", 1),
            "test/patient64741/study1": ("patient64741", [], "test", 1),
        },
        "rejected": {"train.csv, line 5": "not there", "train.csv, line 6": "names no scan"},
        "planes": {"AP", "PA", "lateral"},
    }


def covid_radiography(top):
    for name in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        picture(top / "COVID-19_Radiography_Dataset" / name / "images" / f"{name}-1.png")
        picture(top / "COVID-19_Radiography_Dataset" / name / "masks" / f"{name}-1.png")
    return {
        "cases": {
            "COVID-1": ("COVID-1", ["COVID-19 pneumonia"], None, 1),
            "Lung_Opacity-1": ("Lung_Opacity-1", ["Lung opacity"], None, 1),
            "Normal-1": ("Normal-1", [], None, 1),
            "Viral Pneumonia-1": ("Viral Pneumonia-1", ["Viral pneumonia"], None, 1),
        },
    }


def iu_xray(top):
    for image in ("1_IM-0001-3001", "1_IM-0001-4001", "2_IM-0652-1001", "3_IM-1384-1001"):
        picture(top / "images" / "images_normalized" / f"{image}.dcm.png")
    rows(
        top / "indiana_projections.csv",
        "uid,filename,projection",
        "1,1_IM-0001-3001.dcm.png,Lateral",
        "1,1_IM-0001-4001.dcm.png,Frontal",
        "2,2_IM-0652-1001.dcm.png,Frontal",
        "3,3_IM-1384-1001.dcm.png,Frontal",
    )
    rows(
        top / "indiana_reports.csv",
        "uid,MeSH,Problems,image,indication,comparison,findings,impression",
        "1,normal,normal,Xray Chest PA and Lateral,Positive TB test,None.,clear,Normal",
        '2,x,Cardiomegaly;Aorta;Deformity,Xray Chest PA and Lateral,"Chest pain, cough",None.,big,Big heart',
        "4,x,Cardiomegaly,Xray,,,,",
    )
    return {
        "cases": {"1": ("1", [], None, 2), "2": ("2", ["Cardiomegaly", "Deformity"], None, 1)},
        "rejected": {
            "3_IM-1384-1001.dcm.png": "has no row in indiana_reports.csv",
            "indiana_reports.csv, line 4": "not there",
        },
        "planes": {"lateral", None},
    }


def lndb(top):
    for number in ("0001", "0002", "0007"):
        folder = top / "data0"
        folder.mkdir(parents=True, exist_ok=True)
        header = [
            "ObjectType = Image",
            "NDims = 3",
            "DimSize = 24 24 2",
            "ElementType = MET_SHORT",
            "ElementSpacing = 1 1 1",
        ]
        rows(folder / f"LNDb-{number}.mhd", *header, f"ElementDataFile = LNDb-{number}.raw")
        (folder / f"LNDb-{number}.raw").write_bytes(np.arange(24 * 24 * 2, dtype=np.int16).tobytes())
    rows(top / "masks" / "LNDb-0001_rad1.mhd", "mask")
    rows(top / "trainset_csv" / "trainFleischner.csv", "LNDbID,Fleischner", "1,2", "2,0")
    rows(
        top / "trainset_csv" / "trainNodules_gt.csv",
        "LNDbID,RadID,RadFindingID,FindingID,x,y,z,AgrLevel,Nodule,Volume,Text",
        '1,"1,2","1,1",1,0,0,0,2,1,120.5,5',
        "1,1,2,2,0,0,0,1,0,0,0",
        "2,1,1,1,0,0,0,1,0,0,0",
    )
    return {
        "cases": {"LNDb-1": ("LNDb-1", ["Pulmonary nodule"], None, 1), "LNDb-2": ("LNDb-2", [], None, 1)},
        "rejected": {"data0/LNDb-0007.mhd": "has no row"},
    }


def padchest(top):
    for folder, image in (("0", "1_a"), ("0", "1_b"), ("14", "2_a"), ("14", "3_a"), ("14", "4_a")):
        picture(top / folder / f"{image}.png")
    rows(
        top / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,MethodLabel,Labels",
        "0,1_a.png,0,20140915,S1,P1,1930.0,M,PA,Physician,\"['pulmonary emphysema?', 'hiatal hernia ', 'pacemaker']\"",
        "1,1_b.png,0,20140915,S1,P1,1930.0,M,L,Physician,\"['hiatal hernia', 'pleural effusion']\"",
        "2,2_a.png,14,20140916,S2,P2,1950.0,F,AP_horizontal,RNN_model,['normal']",
        "3,3_a.png,14,20140916,S3,P2,1950.0,F,PA,RNN_model,['exclude']",
        "4,4_a.png,14,20140917,S4,P3,1950.0,F,PA,RNN_model,normal or so",
    )
    return {
        "cases": {
            "S1": ("P1", ["Pulmonary emphysema?", "Hiatal hernia", "Pleural effusion"], None, 2),
            "S2": ("P2", [], None, 1),
            "S3": ("P2", None, None, 1),
        },
        "rejected": {"14/4_a.png": "no list"},
        "planes": {"PA", "lateral", "AP"},
    }


def cc_ccii(top):
    for place in range(12):
        picture(top / "NCP" / "97" / "1134" / f"{place:04d}.jpg")
    picture(top / "NCP" / "97" / "1134" / "0012.jpg", size=32)
    rows(top / "NCP" / "97" / "1134" / "0013.jpg", "no picture")
    picture(top / "NCP" / "97" / "1135" / "0000.jpg")
    picture(top / "Normal" / "1733" / "0" / "0000.png")
    picture(top / "CP" / "1068" / "3107" / "0000.png")
    rows(top / "lesions_slices.csv", "imgpath", "NCP/97/1134/0003.jpg")
    covid, other = ["COVID-19 pneumonia"], ["Community-acquired pneumonia"]
    return {
        "cases": {
            "NCP/97/1134": ("97", covid, None, 1),
            "NCP/97/1135": ("97", covid, None, 1),
            "Normal/1733/0": ("1733", [], None, 1),
            "CP/1068/3107": ("1068", other, None, 1),
        },
        "slices": {"NCP/97/1134": 12},
        "skipped": {"NCP/97/1134/0012.jpg", "NCP/97/1134/0013.jpg"},
    }


def rad_chest(top):
    for scan in ("trn00001", "val00002", "tst00003"):
        np.savez_compressed(top / f"{scan}.npz", ct=np.arange(24 * 24 * 20, dtype=np.int16).reshape(20, 24, 24))
    header = "NoteAcc_DEID,nodule*left_lung,nodule*thyroid,atelectasis*right_lung,pacemaker_or_defib*heart"
    for split, row in (("train", "trn00001,1,1,0,1"), ("valid", "val00002,0,0,0,0"), ("test", "tst00003,0,0,1.0,0")):
        rows(top / f"img{split}_Abnormality_and_Location_Labels.csv", header, row)
    meta = "trn00001,m1", "val00002,m2", "tst00003,m2", "trn09999,m9"
    rows(top / "CT_Scan_Metadata_Complete_35747.csv", "NoteAcc_DEID,MRN_DEID", *meta)
    return {
        "cases": {
            "trn00001": ("m1", ["Nodule"], "train", 1),
            "val00002": ("m2", [], "validation", 1),
            "tst00003": ("m2", ["Atelectasis"], "test", 1),
        },
        "slices": {"trn00001": 20},
    }


def brain_tumor(top):
    picture(top / "Training" / "glioma" / "Tr-gl_0010.jpg")
    picture(top / "Training" / "notumor" / "Tr-no_0010.jpg")
    picture(top / "Testing" / "pituitary" / "Te-pi_0010.jpg")
    picture(top / "Testing" / "meningioma_tumor" / "image(1).jpg")
    picture(top / "Testing" / "pitutary" / "Te-pi_0011.jpg")
    cases = {
        "Training/glioma/Tr-gl_0010.jpg": (["Glioma"], "train"),
        "Training/notumor/Tr-no_0010.jpg": ([], "train"),
        "Testing/pituitary/Te-pi_0010.jpg": (["Pituitary adenoma"], "test"),
        "Testing/meningioma_tumor/image(1).jpg": (["Meningioma"], "test"),
    }
    return {
        "cases": {case: (case, disorders, split, 1) for case, (disorders, split) in cases.items()},
        "rejected": {"Testing/pitutary/Te-pi_0011.jpg": "label 'pitutary'"},
    }


def brain_tumor_17(top):
    glioma = "Glioma (Astrocitoma, Ganglioglioma, Glioblastoma, Oligodendroglioma, Ependimoma) T1C+"
    other = "Outros Tipos de Lesões (Abscessos, Cistos, Encefalopatias Diversas) T2"
    for folder in (glioma, other, "NORMAL T1", "Schwannoma (Acustico, Vestibular - Trigeminal) T1"):
        picture(top / folder / "0a1b.jpeg")
    return {
        "cases": {
            "Glioma T1C+/0a1b.jpeg": ("Glioma T1C+/0a1b.jpeg", ["Glioma"], None, 1),
            "Outros T2/0a1b.jpeg": (
                "Outros T2/0a1b.jpeg",
                ["Other brain lesion (abscess, cyst, encephalopathy)"],
                None,
                1,
            ),
            "NORMAL T1/0a1b.jpeg": ("NORMAL T1/0a1b.jpeg", [], None, 1),
            "Schwannoma T1/0a1b.jpeg": ("Schwannoma T1/0a1b.jpeg", ["Cranial nerve schwannoma"], None, 1),
        },
    }


def pocus(top):
    data = top / "covid19_ultrasound" / "data"
    for file in ("pocus_images/convex/Cov_blines_paperfig1.png", "pocus_images/convex/Reg_butterfly.jpg",
                 "pocus_images/Convex/pneumonia/pneu-gred-6.gif_frame18.jpg",
                 "pocus_images/Convex/pneumonia/pneu-gred-6.gif_frame24.jpg"):  # fmt: skip
        picture(data / file)
    linear = data / "pocus_videos" / "linear"
    (linear / "label_uncertain").mkdir(parents=True)
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (24, 24), dtype=np.uint8)) for i in range(3)]
    frames[0].save(linear / "Vir-1.gif", save_all=True, append_images=frames[1:])
    for name in ("Cov_bolzano_Linee B 5.mpeg", "label_uncertain/Vir_or_Pneu_prospective_file4.mp4"):
        (linear / name).write_bytes(b"\0\0\1\xba")
    bacterial = ["Bacterial pneumonia"]
    return {
        "cases": {
            "convex/Cov_blines_paperfig1.png": ("Cov_blines_paperfig1", ["COVID-19 pneumonia"], None, 1),
            "convex/Reg_butterfly.jpg": ("Reg_butterfly", [], None, 1),
            "Convex/pneu-gred-6.gif_frame18.jpg": ("pneu-gred-6.gif", bacterial, None, 1),
            "Convex/pneu-gred-6.gif_frame24.jpg": ("pneu-gred-6.gif", bacterial, None, 1),
            "linear/Vir-1.gif": ("Vir-1", ["Viral pneumonia"], None, 1),
            "linear/Cov_bolzano_Linee B 5.mpeg": ("Cov_bolzano_Linee B 5", ["COVID-19 pneumonia"], None, 0),
        },
        "slices": {"linear/Vir-1.gif": 3},
        "skipped": {"covid19_ultrasound/data/pocus_videos/linear/Cov_bolzano_Linee B 5.mpeg"},
    }


def mura(top):
    folder = top / "MURA-v1.1"
    picture(folder / "train" / "XR_ELBOW" / "patient00011" / "study1_negative" / "image1.png")
    picture(folder / "train" / "XR_ELBOW" / "patient00011" / "study1_negative" / "image2.png")
    picture(folder / "valid" / "XR_WRIST" / "patient11185" / "study1_positive" / "image1.png")
    rows(folder / "train_labeled_studies.csv", "MURA-v1.1/train/XR_ELBOW/patient00011/study1_negative/,0")
    return {
        "cases": {
            "train/ELBOW/patient00011/study1": ("patient00011", [], "train", 2),
            "valid/WRIST/patient11185/study1": ("patient11185", ["Abnormality of wrist"], "validation", 1),
        },
    }


def knee_mri(top):
    for number, protocol in ((1, 2), (2, 4), (3, 5)):
        path = top / "vol01" / f"329637-{number}.pck"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(np.arange(20 * 24 * 24, dtype=np.uint16).reshape(20, 24, 24), protocol=protocol))
    (top / "vol01" / "329637-4.pck").write_bytes(pickle.dumps(print))
    rows(
        top / "metadata.csv",
        "examId,seriesNo,aclDiagnosis,kneeLR,roiX,roiY,roiZ,roiHeight,roiWidth,roiDepth,volumeFilename",
        "329637,1,0,1,139,184,14,74,72,3,329637-1.pck",
        "329638,2,1,1,139,184,14,74,72,3,329637-2.pck",
        "329639,3,2,1,139,184,14,74,72,3,329637-3.pck",
        "329640,4,2,1,139,184,14,74,72,3,329637-4.pck",
    )
    torn = ["Complete tear of anterior cruciate ligament"]
    return {
        "cases": {
            "329637": ("329637", [], None, 1),
            "329638": ("329638", ["Partial tear of anterior cruciate ligament"], None, 1),
            "329639": ("329639", torn, None, 1),
            "329640": ("329640", torn, None, 0),
        },
        "slices": {"329637": 20, "329639": 20},
        "skipped": {"vol01/329637-4.pck"},
        "codes": {"S83.51"},
    }


def ct_kidney(top):
    folder = top / "CT-KIDNEY-DATASET-Normal-Cyst-Tumor-Stone" / "CT-KIDNEY-DATASET-Normal-Cyst-Tumor-Stone"
    for name in ("Cyst", "Normal", "Stone", "Tumor"):
        picture(folder / name / f"{name}- (1).jpg")
    rows(top / "kidneyData.csv", ",image_id,path,diag,target,Class", "0,Tumor- (1),x,Tumor,3,Tumor")
    disorders = {"Cyst": ["Kidney cyst"], "Normal": [], "Stone": ["Kidney stone"], "Tumor": ["Kidney tumor"]}
    return {"cases": {f"{name}- (1).jpg": (f"{name}- (1).jpg", disorders[name], None, 1) for name in disorders}}


TREES = {
    "VinDr-Mammo": vindr_mammo, "CXR14": cxr14, "VinDr-SpineXR": vindr_spine, "MosMedData": mosmed, "ADNI": adni,
    "NSCLC": nsclc, "TCGA": tcga, "ISPY1": ispy1, "ChestX-Det10": chestx_det10, "CheXpert": chexpert,
    "COVID-19-Radio": covid_radiography, "IU-Xray": iu_xray, "LNDb": lndb, "PadChest": padchest, "CC-CCII": cc_ccii,
    "RadChest": rad_chest, "Brain-Tumor": brain_tumor, "Brain-Tumor-17": brain_tumor_17, "POCUS": pocus, "MURA": mura,
    "KneeMRI": knee_mri, "CT-Kidney": ct_kidney,
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_a_set_in_its_published_layout_is_read(name, tmp_path):
    expected = TREES[name](tmp_path)
    source = External(name, tmp_path)
    listing = source.listing()

    assert listing.listed == listing.planned + len(listing.rejected)
    listed = {
        plan.case_id: (plan.patient_id, plan.disorders if plan.labelled else None, plan.split) for plan in listing.plans
    }
    for case, (patient, disorders, split, _) in expected["cases"].items():
        assert listed[case][0] == patient
        assert (listed[case][1] and sorted(listed[case][1])) == (disorders and sorted(disorders))
        assert listed[case][2] == split
    assert set(listed) == set(expected["cases"])
    assert len(listing.rejected) == len(expected.get("rejected", {}))
    for place, reason in expected.get("rejected", {}).items():
        assert any(place in one.name and reason in one.reason for one in listing.rejected), (place, listing.rejected)
    assert all(one.what in ("row", "file", "folder") for one in listing.rejected)

    codes = {code for plan in listing.plans for given in plan.icd10cm for code in given}
    assert expected.get("codes", codes) <= codes

    modalities, planes, skipped = set(), set(), set()
    for plan, result in zip(listing.plans, source.read(listing.plans), strict=True):
        assert len(result.case.scans) == len(result.origins) == expected["cases"][plan.case_id][3]
        assert result.files == sum(len(item.paths) for item in plan.items)
        assert result.unread == len(result.case.skipped)
        assert not any(str(tmp_path) in scan.source for scan in result.case.scans)
        if plan.case_id in expected.get("slices", {}):
            assert len(result.case.scans[0].pixels) == expected["slices"][plan.case_id]
        modalities |= {scan.modality for scan in result.case.scans}
        planes |= {scan.plane for scan in result.case.scans}
        skipped |= {file for file, _ in result.case.skipped}
    assert modalities == expected.get("modalities", {source.layout.get("modality", "CT")})
    assert expected.get("planes", planes) == planes
    assert skipped == expected.get("skipped", set())


@pytest.mark.parametrize("name", SETS)
def test_an_entry_is_complete_and_its_codes_exist(name):
    about = entry(name)
    for key in (*ABOUT, "files", "case", "labels", "normal", "disorders"):
        assert key in about
        assert about[key] or key == "normal", key
    assert about["established"] in ESTABLISHED
    assert about["homepage"].startswith("http")
    assert set(about.get("split", {}).get("is", {})) | set(about.get("split", {}).get("lists", {})) <= set(SPLITS)
    assert about.get("modality") in (*MODALITIES, None)
    for label, (disorder, *codes) in about["disorders"].items():
        assert disorder[0].isupper(), label
        for code in codes:
            assert icd10cm.normalise(code) == code, label
    silent = [*about["normal"], *about.get("unsaid", ()), *about.get("not_disorders", ())]
    assert not {label.casefold() for label in silent} & {str(label).casefold() for label in about["disorders"]}


def test_a_disorder_has_the_same_codes_in_all_sets():
    codes_of = {}
    for name in SETS:
        for disorder, *codes in entry(name)["disorders"].values():
            assert codes_of.setdefault(disorder, codes) == codes, (name, disorder)


def test_the_names_of_all_disorders_make_a_vocabulary():
    names = {disorder for name in SETS for disorder, *_ in entry(name)["disorders"].values()}
    assert not Vocabulary.from_names(sorted(names)).skipped


def test_there_is_one_file_for_each_set_and_the_documentation_shows_them_all():
    folder = Path(entry.__code__.co_filename).parent / "external"
    assert {file.stem for file in folder.iterdir()} == set(SETS)
    assert table() in DOC.read_text(encoding="utf-8")


def test_names_of_sets_ignore_case_and_unknown_names_are_refused():
    assert External("chexpert", ".").settings["set"] == "CheXpert"
    with pytest.raises(ValueError, match=r"unknown set 'ImageNet': use one of VinDr-Mammo"):
        External("ImageNet", ".")


def test_an_uncertain_label_counts_only_if_chosen(tmp_path):
    chexpert(tmp_path)
    plans = {plan.case_id: plan for plan in External("CheXpert", tmp_path, uncertain="present").listing().plans}
    assert "Cardiomegaly" in plans["train/patient00001/study1"].disorders
    with pytest.raises(ValueError, match="absent or present"):
        External("CheXpert", tmp_path, uncertain="maybe").listing()


def test_the_error_for_a_folder_without_the_set_names_the_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        External("MURA", tmp_path / "nowhere").listing()
    with pytest.raises(ValueError, match=r"holds no file like .*MURA|holds no file like .*XR_"):
        External("MURA", tmp_path).listing()
    picture(tmp_path / "images" / "00000001_000.png")
    with pytest.raises(FileNotFoundError, match=r"no Data_Entry_2017\*\.csv: download it too"):
        External("CXR14", tmp_path).listing()
    rows(tmp_path / "Data_Entry_2017.csv", "Image Index,Finding Labels,Patient ID", "00000001_000.png,Mass,1")
    with pytest.raises(FileNotFoundError, match=r"no train_val_list\.txt"):
        External("CXR14", tmp_path).listing()
    rows(tmp_path / "Data_Entry_2017.csv", "image,label", "00000001_000.png,Mass")
    with pytest.raises(ValueError, match="lacks a column of 'image index'"):
        External("CXR14", tmp_path).listing()


def test_broken_rows_and_labels_cost_themselves_only(tmp_path):
    cxr14(tmp_path)
    file = tmp_path / "Data_Entry_2017.csv"
    text = file.read_text().replace("No Finding,1,1", "Bellyache,1,1") + ",Mass,0,4,050,F,PA\n"
    file.write_text(text + "00000002_000.png,Mass,0,2,050,F,PA,1,2,3,4,5,6,7,8\n")
    listing = External("CXR14", tmp_path).listing()
    reasons = {one.name: one.reason for one in listing.rejected}
    assert set(reasons) == {
        "images_001/images/00000001_001.png",
        *(f"Data_Entry_2017.csv, line {line}" for line in (5, 6, 7)),
    }
    assert "label 'Bellyache'" in reasons["images_001/images/00000001_001.png"]
    assert "has no image index" in reasons["Data_Entry_2017.csv, line 6"]
    assert len(listing.plans) == 2
    assert listing.listed == listing.planned + len(listing.rejected) == 6


def test_ages_in_months_are_not_read_as_years_and_ages_are_at_most_90(tmp_path):
    cxr14(tmp_path)
    file = tmp_path / "Data_Entry_2017.csv"
    file.write_text(file.read_text().replace("0,1,058", "0,1,094Y").replace("1,1,058", "1,1,007M"))
    plans = External("CXR14", tmp_path).listing().plans
    assert [(plan.age, plan.sex) for plan in plans] == [(90, "M"), (None, "M"), (81, "F")]


def test_a_case_of_two_patients_is_refused(tmp_path):
    padchest(tmp_path)
    file = tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    file.write_text(file.read_text().replace("S3,P2", "S2,P7"))
    rejected = External("PadChest", tmp_path).listing().rejected
    assert any("another patient" in one.reason and one.name == "14/3_a.png" for one in rejected)


def test_a_listing_does_not_depend_on_where_the_folder_is(tmp_path):
    plans = []
    for place in ("here", "there"):
        mura(tmp_path / place)
        plans.append(External("MURA", tmp_path / place).listing().plans)
    for one, other in zip(*plans, strict=True):
        assert [item.names for item in one.items] == [item.names for item in other.items]
        assert (one.case_id, one.patient_id, one.split) == (other.case_id, other.patient_id, other.split)


def test_patterns_name_parts_of_paths():
    form = pattern("**/XR_{part}/{patient:patient\\d{5}}/*_{outcome:positive|negative}.{_:png|jpg}")
    match = form.fullmatch("MURA/train/xr_ELBOW/patient00011/study1_negative.PNG")
    assert match.groupdict() == {"part": "ELBOW", "patient": "patient00011", "outcome": "negative"}
    assert form.fullmatch("XR_HAND/patient00011/study1_negative.png")
    assert not form.fullmatch("XR_HAND/more/patient00011/study1_negative.png")
    assert re.fullmatch(form, "XR_HAND/patient0001/study1_negative.png") is None


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickled_arrays_are_read_without_running_them(tmp_path, protocol, order):
    array = np.asarray(np.arange(60, dtype=">i2").reshape(3, 4, 5), order=order)
    (tmp_path / "a.pck").write_bytes(pickle.dumps(array, protocol=protocol))
    np.testing.assert_array_equal(read_pickled(tmp_path / "a.pck"), array)


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


@pytest.mark.parametrize("content", [Trap(), [Trap()], {"a": np.zeros(3)}, np.array([Trap()]), "text", np.array(["x"])])
def test_other_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pck").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"code|not a pickled NumPy array|numbers"):
        read_pickled(tmp_path / "a.pck")
    assert not (tmp_path / "trapped").exists()


def test_a_truncated_pickle_is_reported(tmp_path):
    whole = pickle.dumps(np.zeros((3, 4, 5)))
    for length in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.pck").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            read_pickled(tmp_path / "a.pck")
