"""Sources of cases. Each lists its cases as plans and reads them, see `radfm.data_prep.plan.Source`."""
