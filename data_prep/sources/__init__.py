"""Where cases come from: each source lists its cases as plans, and reads them. See `radfm.data_prep.plan.Source`."""
