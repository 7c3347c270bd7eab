"""The commands `radfm convert raddiag`, `radfm convert transformers` and `radfm convert merlin`."""

from pathlib import Path
from typing import Annotated, cast

import typer

from radfm.cli.console import quiet_transformers, step


def raddiag(
    src: Annotated[
        Path, typer.Argument(metavar="SRC", help="pytorch_model.bin or .safetensors of RadDiag, or its folder.")
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Folder for the radfm checkpoint.")],
    disorders: Annotated[
        Path | None,
        typer.Option(help="RadDiag's disorder_label_dict.json; by default, the one beside the checkpoint."),
    ] = None,
) -> None:
    """Convert a published RadDiag checkpoint.

    Example: radfm convert raddiag pytorch_model.bin checkpoints/raddiag --disorders disorder_label_dict.json
    """
    from radfm import raddiag
    from radfm.checkpoints.reproduction import write_expected

    folder = src if src.is_dir() else src.parent
    names = raddiag.read_disorders(disorders or folder / "disorder_label_dict.json")
    with step("Looking up ICD-10-CM codes"):
        from radfm.knowledge.disorders import codes

        icd10cm = codes(names)
    with step(f"Converting {src}"):
        quiet_transformers()
        model = raddiag.from_checkpoint(src, names, icd10cm)
        model.save_pretrained(dst)
        raddiag.processor().save_pretrained(dst)
        write_expected(dst)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    level = "case level" if model.config.case_config.num_hidden_layers else "one scan"
    coded = sum(map(bool, icd10cm))
    print(f"{dst}: {level}, {parameters:,} parameters, {len(names):,} disorders, {coded:,} with ICD-10-CM codes")


def transformers(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder of the model, or its name on the Hugging Face Hub.")
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Folder for the radfm checkpoint.")],
) -> None:
    """Convert a vision model of transformers: SigLIP, CLIP, DINO, ViT, ConvNeXt, Swin.

    Example: radfm convert transformers google/medsiglip-448 checkpoints/medsiglip
    """
    from radfm.checkpoints.reproduction import write_expected
    from radfm.configuration_radfm import RadFMVisionConfig
    from radfm.starting_points import from_transformers

    with step(f"Converting {src}"):
        quiet_transformers()
        model, processor = from_transformers(src)
        model.save_pretrained(dst)
        processor.save_pretrained(dst)
        write_expected(dst)
    vision = cast(RadFMVisionConfig, model.config.vision_config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    use = "names disorders zero-shot" if model.config.trained else "has to be fine-tuned before it names disorders"
    print(f"{dst}: {vision.tower}, {parameters:,} parameters, slices of {vision.image_size} pixels; it {use}")


def merlin(
    src: Annotated[
        Path, typer.Argument(metavar="SRC", help="Merlin's .pt, or an image encoder like Merlin's, or .safetensors.")
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Folder for the radfm checkpoint.")],
    head: Annotated[
        str | None,
        typer.Option(
            help="contrastive (any name, by its text), phenotypes, five-year, or backbone (to be trained); by default, "
            "what the file was made for."
        ),
    ] = None,
    phenotypes: Annotated[
        Path | None, typer.Option(help="Merlin's phenotypes.csv; by default, the one beside the checkpoint.")
    ] = None,
    disorders: Annotated[
        Path | None,
        typer.Option(help="A text file with the names that the classifier scores, in its order, one per line."),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="Folder of Clinical-Longformer's tokenizer, or its name on the Hugging Face Hub.")
    ] = "yikuan8/Clinical-Longformer",
) -> None:
    """Convert a checkpoint of Merlin: contrastive, phenotypes, five-year risk, or its image encoder.

    Example: radfm convert merlin i3_resnet_clinical_longformer_best_clip.pt checkpoints/merlin
    """
    if phenotypes is not None and disorders is not None:
        raise ValueError("give --phenotypes or --disorders, not both")
    from radfm.checkpoints.reproduction import write_expected
    from radfm.cli.name_files import read_names
    from radfm.starting_points import from_merlin
    from radfm.starting_points.merlin import Head, read_phenotypes

    names = None if phenotypes is None else read_phenotypes(phenotypes)
    names = names if disorders is None else read_names(disorders)
    with step(f"Converting {src}"):
        quiet_transformers()
        model, processor = from_merlin(src, cast(Head | None, head), names, tokenizer)
    if names := list(model.config.disorders):
        with step("Looking up ICD-10-CM codes"):
            from radfm.knowledge.disorders import codes

            model.set_disorders(names, icd10cm=codes(names))
    with step(f"Writing {dst}"):
        model.save_pretrained(dst)
        processor.save_pretrained(dst)
        write_expected(dst)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if names:
        coded = sum(map(bool, model.config.icd10cm))
        use = f"scores {len(names):,} disorders, {coded:,} with ICD-10-CM codes"
    else:
        use = "names disorders zero-shot" if model.config.trained else "has to be fine-tuned before it names disorders"
    print(f"{dst}: {parameters:,} parameters, volumes of CT; it {use}")
