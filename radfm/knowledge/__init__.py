"""What radfm knows of medicine before it sees an image: ICD-10-CM, disease ontologies, the disorder vocabulary."""
