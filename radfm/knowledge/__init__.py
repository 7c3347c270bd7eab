"""Medical knowledge as text: ICD-10-CM, disease ontologies, definitions, and the vocabulary of disorders."""
