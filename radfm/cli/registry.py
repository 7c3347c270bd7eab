"""The commands of `radfm`: one entry each, in the order in which `radfm --help` lists them.

Decisions:
- An entry names the module of its command as text, so that this table imports none of them: a module is imported when
  its command runs or shows its own help (`radfm.cli.group`).
- The commands of data preparation, evaluation and training are defined in those packages; this table only names them.
- `summary` is the first line of the command's docstring, which a test compares: it stands here so that the help of a
  group imports no command.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """
    Attributes:
        name: As it is typed after `radfm`; "train text" is the command `text` of the group `train`.
        summary: One line for the help of the group.
        source: "module:attribute" of the function, or of a `typer.Typer` that brings commands of its own; empty for a
            group whose commands are the entries that begin with its name.
        extra: The extra of the package that it needs (`pip install "radfm[EXTRA]"`).
        computes: Whether it runs a model; its process then keeps the memory that it frees (`radfm.cli.memory`).
        description: Of a group, what its help says after the summary.
        default: Of a group, the command that is meant when the first argument is no command.
    """

    name: str
    summary: str
    source: str = ""
    extra: str | None = None
    computes: bool = False
    description: str = ""
    default: str | None = None


COMMANDS = (
    Command("diagnose", "Name the disorders of a case.", "radfm.cli.diagnose:diagnose", computes=True),
    Command(
        "embed",
        "Write the embeddings of cases, scans or slices into a table.",
        "radfm.cli.embed:embed",
        "data",
        computes=True,
    ),
    Command(
        "examples",
        "List the example studies that come with radfm, or write them into a folder.",
        "radfm.cli.examples:examples",
    ),
    Command("icd", "Find the ICD-10-CM codes of a disorder.", "radfm.cli.icd:icd"),
    Command(
        "prepare",
        "Prepare a data set of cases from files: radfm prepare SOURCE IN OUT.",
        "radfm.data_prep.command:app",
        "data",
    ),
    Command("train", "Train an encoder or a model.", computes=True),
    Command("train text", "Train a text encoder on ICD-10-CM and ontologies.", "radfm.train.command:text", "train"),
    Command(
        "train diagnosis",
        "Train a model to diagnose cases.",
        "radfm.train.command:diagnosis",
        "train",
    ),
    Command(
        "train autoencoder",
        "Train an autoencoder of slices or volumes.",
        "radfm.train.command:autoencoder",
        "train",
    ),
    Command(
        "train latent-classifier",
        "Train a classifier that reads latents.",
        "radfm.train.command:latent_classifier",
        "train",
    ),
    Command(
        "train diffusion",
        "Train a generator of latents by diffusion.",
        "radfm.train.command:diffusion",
        "train",
    ),
    Command(
        "finetune",
        "Fine-tune a checkpoint on your own cases, and keep what it knows.",
        "radfm.train.command:finetune",
        "train",
        computes=True,
    ),
    Command(
        "calibrate",
        "Fit probabilities, thresholds, prediction sets and OOD detection.",
        "radfm.eval.confidence_command:calibrate",
        "train",
        computes=True,
    ),
    Command(
        "evaluate",
        "Evaluate models and text encoders.",
        computes=True,
        description="Models on the cases of a data set, as in radfm evaluate datasets/mine --model runs/mine, which is "
        "short for radfm evaluate cases datasets/mine ...; or text encoders, as in radfm evaluate text runs/text "
        "--ontology disease_ontology.obo; or saliency maps, as in radfm evaluate saliency datasets/phantoms "
        "--model runs/mine.",
        default="cases",
    ),
    Command(
        "evaluate cases",
        "Measure and compare models on the cases of a data set.",
        "radfm.eval.command:cases",
        "train",
    ),
    Command(
        "evaluate text",
        "Measure a text encoder on terms that it was not trained on.",
        "radfm.eval.command:text",
        "train",
    ),
    Command(
        "evaluate saliency",
        "Measure whether saliency maps point to the lesion.",
        "radfm.eval.command:saliency",
        "train",
    ),
    Command(
        "evaluate uncertainty",
        "Measure an ensemble, and the uncertainty from its disagreement.",
        "radfm.eval.confidence_command:uncertainty",
        "train",
    ),
    Command(
        "evaluate ood",
        "Measure out-of-distribution detection.",
        "radfm.eval.confidence_command:ood",
        "train",
    ),
    Command(
        "evaluate zero-shot",
        "Compare models by text alone, open_clip models too.",
        "radfm.eval.confidence_command:zero_shot",
        "train",
    ),
    Command(
        "evaluate learnability",
        "Measure what a classifier loses on the latents of an autoencoder.",
        "radfm.train.study_commands:learnability",
        "train",
    ),
    Command(
        "evaluate augmentation",
        "Measure whether synthetic training cases help, above all for rare disorders.",
        "radfm.train.study_commands:augmentation",
        "train",
    ),
    Command(
        "evaluate transfer",
        "Measure what a model loses on a site that it was not trained on.",
        "radfm.train.study_commands:transfer",
        "train",
    ),
    Command(
        "evaluate anomaly",
        "Measure anomaly scores: normal against abnormal cases, and maps.",
        "radfm.eval.latents_command:anomaly",
        "train",
    ),
    Command(
        "evaluate denoising",
        "Measure how well known noise is removed from slices.",
        "radfm.eval.latents_command:denoising",
        "train",
    ),
    Command(
        "evaluate sharing",
        "Measure how close samples are to training cases.",
        "radfm.eval.latents_command:sharing",
        "train",
    ),
    Command(
        "evaluate course",
        "Measure whether changes of scores between dates agree with true changes.",
        "radfm.train.course_command:course",
        "train",
    ),
    Command(
        "evaluate selection",
        "Measure how many labels each strategy of radfm select needs.",
        "radfm.train.study_commands:selection",
        "train",
    ),
    Command(
        "select",
        "Choose the cases to label next, and write a page to label them.",
        "radfm.eval.selection_command:select",
        "train",
        computes=True,
    ),
    Command("federate", "Train one model at several hospitals, which keep their cases.", computes=True),
    Command(
        "federate simulate",
        "Train the parts of a data set as sites, and compare with each alone and with all in one place.",
        "radfm.train.federation.command:simulate",
        "federate",
    ),
    Command(
        "federate kits",
        "Write the certificates of a server and its sites.",
        "radfm.train.federation.command:kits",
        "federate",
    ),
    Command(
        "federate server",
        "Train one model with the sites that connect.",
        "radfm.train.federation.command:server",
        "federate",
    ),
    Command(
        "federate site",
        "Train with others without sending cases: weights, counts and names of disorders leave this machine.",
        "radfm.train.federation.command:site",
        "federate",
    ),
    Command("serve", "Serve the model as a page in the browser.", "radfm.cli.serve:serve", "serve"),
    Command(
        "publish",
        "Upload a checkpoint or generator with its card to the Hugging Face Hub.",
        "radfm.cli.publish:publish",
        "data",
    ),
    Command(
        "check",
        "Check whether this machine reproduces what a checkpoint answers.",
        "radfm.cli.check:check",
        computes=True,
    ),
    Command(
        "demo",
        "Diagnose real studies, and fine-tune to a small synthetic hospital, in minutes.",
        "radfm.cli.demo_command:demo",
        "train",
        computes=True,
    ),
    Command("convert", "Convert checkpoints of other projects."),
    Command("convert raddiag", "Convert a published RadDiag checkpoint.", "radfm.cli.convert:raddiag"),
    Command(
        "convert transformers",
        "Convert a vision model of transformers: SigLIP, CLIP, DINO, ViT, ConvNeXt, Swin.",
        "radfm.cli.convert:transformers",
    ),
    Command(
        "convert merlin",
        "Convert a checkpoint of Merlin: contrastive, phenotypes, five-year risk, or its image encoder.",
        "radfm.cli.convert:merlin",
    ),
)
