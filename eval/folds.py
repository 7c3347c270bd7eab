"""The scores of a cross-validation: each case by the model that was not trained on its fold, in one table.

    >>> join_folds([score(f"runs/open{k}", Evaluation("datasets/mine", "validation", fold=f"{k}/5")) for k in range(5)])

Decisions:
- Scores of different folds stay as their models gave them, and are measured together: one set of patients for the
  bootstrap, and disorders with few cases have all of them in one AUC. Models of one recipe may differ in what score
  they give to everything, which makes this AUC a little lower than the mean over folds (Forman and Scholz,
  "Apples-to-apples in cross-validation studies", SIGKDD Explorations 12:49, 2010). That holds for all compared models.
- Head, body and tail go by the training split of the data set, so that a disorder has the same band as in an evaluation
  of the validation split.
"""

from collections.abc import Sequence

import numpy as np

from radfm.data_prep.stored_cases import StoredCases
from radfm.eval.score_tables import training_columns
from radfm.eval.scores import OF_DISORDERS, Scores

FOLD = "{fold}"  # in the path of a model: the number of the fold


def split_of_folds(count: int) -> str:
    """What a table of all folds has as its split."""
    return f"{count} folds"


def join_folds(tables: Sequence[Scores], everything: StoredCases) -> Scores:
    """One table of all folds, in their order.

    Args:
        tables: of the validation splits of all folds, by models of one recipe.
        everything: the data set, without a fold.
    Raises:
        ValueError: the tables have other disorders, or cases in common.
    """
    first = tables[0]
    if any(table.names != first.names for table in tables):
        raise ValueError("the folds were scored with different names: score all of them on one data set")
    logits = [table.logits for table in tables if table.logits is not None]
    abouts = [table.about for table in tables]
    common = {key: value for key, value in first.about.items() if all(one.get(key) == value for one in abouts)}
    origin = {key: ", ".join(dict.fromkeys(str(one.get(key)) for one in abouts)) for key in ("model", "checkpoint")}
    return Scores(
        scores=np.concatenate([table.scores for table in tables]),
        names=first.names,
        icd10cm=first.icd10cm,
        case_ids=[case for table in tables for case in table.case_ids],
        patients=[patient for table in tables for patient in table.patients],
        disorders=[names for table in tables for names in table.disorders],
        training=training_columns(everything, first.names, first.about.get("publishable", False)),
        attributes={
            name: [groups for table in tables for groups in table.attributes[name]] for name in first.attributes
        },
        about={key: value for key, value in common.items() if key not in OF_DISORDERS}
        | {key: value for key, value in origin.items() if value != "None"}
        | {
            "split": split_of_folds(len(tables)),
            "left_out": {k: v for one in abouts for k, v in one["left_out"].items()},
        },
        logits=np.concatenate(logits) if len(logits) == len(tables) else None,
    )
