"""Training together: hospitals train one model and keep their cases. `radfm federate`, see docs/federation.md."""
